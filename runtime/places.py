"""Whether a file can be written: better known before an hour of work than after it.

if why := why_not(Path("report.html")):
    raise OptionError(f"cannot write report.html: {why}")
"""

from __future__ import annotations

from pathlib import Path
from tempfile import NamedTemporaryFile


def why_not(file: Path, *, parents: bool = False) -> str:
    """Why a file cannot be written at a place, as a clause; empty where it can.

    Args:
        parents: its writer makes the folders that are not there.
    """
    try:
        if file.exists() and not file.is_file():
            return "it is there, and no file"
        folder = file.absolute().parent
        while parents and not folder.exists():
            folder = folder.parent
        NamedTemporaryFile(dir=folder, prefix=f"{file.name}.", suffix=".partial").close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
