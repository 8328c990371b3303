"""The folder of prepared signals: what lies in it, how long it was not used, and clearing it up.

    for prepared in listed(default_cache()):            # those that were not used for longest come first
        prepared.name, prepared.bytes, prepared.unused_s, prepared.about
    remove(prepared)
    sweep(default_cache())                              # what killed processes left unfinished, and what lost its index

`train.dataset` writes and reads what is in it: a folder gets its name when all of it is there, so one that lacks its
index is in nobody's making, and in the way of who would make it.  Nothing here touches a folder whose name is none that
it gives, so that a cache may lie among other things.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX = "index.json"
NAME = re.compile(r"(?P<data>[a-z0-9-]+)-[0-9a-f]{24}(\.(?P<pid>\d+)\.partial)?")
# A preparation writes more often than once a minute, also one on another machine that shares the folder, whose process
# is not seen here; their clocks may differ. And a process that has written nothing for a day has only the same number,
# or is a zombie.
QUIET_S, DEAD_S = 600.0, 86_400.0
ABOUT = {"leads", "rate_hz", "window_s", "folds"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """One folder of prepared signals.

    Attributes:
        data: title of the data set, in small letters.
        records: how many recordings are in it; None where its index cannot be read.
        about: `leads`, `rate_hz`, `window_s` and `folds`; empty if another release made it.
        bytes: of its files.
        unused_s: since it was made or last loaded.
        state: `whole`; `unfinished`, that is, being made; `left` unfinished by a process that is no more; or `damaged`,
            that is, without its index.
    """

    folder: Path
    data: str
    records: int | None
    about: dict[str, Any]
    bytes: int
    unused_s: float
    state: str

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name


def default_cache() -> Path:
    """Where caches go unless told otherwise: `$XDG_CACHE_HOME/m2jlnet`, or `~/.cache/m2jlnet`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2jlnet"


def partial_of(folder: Path) -> Path:
    """Where this process makes what is to become `folder`."""
    return folder.with_name(f"{folder.name}.{os.getpid()}.partial")


def touch(folder: Path) -> None:
    """Note that a folder is used now, where its owner lets us."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def listed(cache: Path) -> list[Prepared]:
    """What lies in a cache, longest unused first; nothing where there is no such folder."""
    return sorted(_look(cache), key=lambda prepared: (-prepared.unused_s, prepared.name))


def _look(cache: Path) -> Iterator[Prepared]:
    now_s = time.time()
    for folder in cache.iterdir() if cache.is_dir() else ():
        name = NAME.fullmatch(folder.name)
        if name is None or folder.is_symlink() or not folder.is_dir():
            continue
        try:
            files = {path.name: path.stat() for path in folder.iterdir()}
            used_s = max([folder.stat().st_mtime, *(file.st_mtime for file in files.values())])
        except OSError:
            continue  # it was finished, or removed, meanwhile; or it is another user's, and closed to us
        records, about = _index(folder)
        unused_s = max(0.0, now_s - used_s)
        state = "whole" if INDEX in files else "damaged"
        if name["pid"]:
            alive = unused_s < QUIET_S or (unused_s < DEAD_S and _runs(int(name["pid"])))
            state = "unfinished" if alive else "left"
        size_bytes = sum(file.st_size for file in files.values())
        yield Prepared(folder, name["data"], records, about, size_bytes, unused_s, state)


def _index(folder: Path) -> tuple[int | None, dict[str, Any]]:
    try:
        index = json.loads((folder / INDEX).read_text())
        about = index.get("about", {})
        return len(index["rows"]), about if about.keys() >= ABOUT else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, {}


def _runs(pid: int) -> bool:
    """Whether another process of this number runs; ours makes one folder at a time, and looks before it does."""
    if pid == os.getpid():
        return False
    try:
        with contextlib.suppress(PermissionError):  # it is there, and another user's
            os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    return True


def remove(prepared: Prepared) -> None:
    """Delete a folder; who loads it at the moment finds it whole or not at all.

    A damaged one that another process has made anew since it was listed is not deleted.

    Raises:
        OSError: it cannot be deleted.
    """
    going = prepared.folder
    if prepared.state in ("whole", "damaged"):
        touch(going)  # under its new name it is then, to others, in our making, not left by us long ago
        going = going.rename(partial_of(going))
        if prepared.state == "damaged" and (going / INDEX).exists():
            going.rename(prepared.folder)
            return
    shutil.rmtree(going)


def sweep(cache: Path) -> None:
    """Remove what killed processes left unfinished, and what has lost its index; what cannot be removed stays.

    Safe while others make, load and sweep the same cache.
    """
    for prepared in _look(cache):  # not `listed`: each is removed as soon as it was looked at
        if prepared.state in ("left", "damaged"):
            with contextlib.suppress(OSError):
                remove(prepared)
