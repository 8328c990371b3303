"""Files that are there whole or not at all, whatever happens to the process or to the machine.

    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(...)
    put_in_place(partial, path)

Who makes a file writes it beside, and sweeps up what a killed process left there.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


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
