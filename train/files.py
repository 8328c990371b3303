"""Files that are there whole or not at all, whatever happens to the process or to the machine.

    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(...)
    put_in_place(partial, path)

Who makes a file writes it beside, and sweeps up what a killed process left there: `alone_in` does for the folder of a
run, and sees to it that this process is no longer alive.

    with alone_in(Path("runs/base")):
        ...
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

from filelock import FileLock, Timeout

from train.errors import CheckpointError, DataError

LOCK = ".lock"


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if it is not there, and sweep out what a killed process was writing in it.

    A process that ends, by whatever, holds nothing any more.  Who holds it may hold it again within.  An empty `LOCK`
    stays, for a process that waits with it open must not be left with another file than the next one's.

    Raises:
        CheckpointError: another process holds it, or it cannot be written.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(folder / LOCK, is_singleton=True).acquire(blocking=False))
            for unfinished in folder.glob("*.[0-9]*.partial"):
                unfinished.unlink(missing_ok=True)
        except Timeout:
            raise CheckpointError(
                f"another process is at work in {folder}: wait for its end, or choose another --out"
            ) from None
        except OSError as error:
            raise CheckpointError(f"cannot write to {folder}: {error.strerror or error}") from error
        except NotImplementedError as error:
            raise CheckpointError(f"the disk of {folder} knows no locks: choose another --out") from error
        yield


def sha256_of(path: Path) -> str:
    """Digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_in_place(partial: Path, target: Path) -> None:
    """Rename a finished file, or folder of files, to its name, so that a power cut too leaves the old or the new one.

    A rename alone can reach the disk before what it names: the name then stands for nothing.

    Raises:
        OSError: the disk does not take it, or `target` is a folder with something in it.
    """
    for path in [*partial.iterdir(), partial] if partial.is_dir() else [partial]:
        _to_disk(path)
    os.replace(partial, target)
    _to_disk(target.parent)


def _to_disk(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # folders cannot be opened there
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        # Some file systems have no such call for folders (network ones): they order renames themselves.
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(number)
    finally:
        os.close(number)


def refuse_one_file_for_two(places: Mapping[str, Path | None]) -> None:
    """What is read and written under which name; raises DataError where one file would be written over another."""
    files = {what: file for what, file in places.items() if file is not None}
    for (one, file), (other, over) in combinations(files.items(), 2):
        if file.resolve() == over.resolve() or (file.exists() and over.exists() and file.samefile(over)):
            raise DataError(f"{over}: {other} would be written over {one}")
