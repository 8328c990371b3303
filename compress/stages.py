"""Which stages of a run are done, each known by the hash of everything it depends on.

    done = Stages(out)
    row = done.row("export", depends)               # None: to be done (again); `done.why` says for what reason
    done.forget()                                   # before its files are touched
    done.keep("export", depends, row, [out / "student-fp32.onnx"])

The list lies in ``stages.json``.  A stage counts as done while what it depends on is the same and its files are as it
left them; when one is done anew, all later ones are forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.checkpoint import write_text
from train.files import sha256_of

LIST = "stages.json"


class Stages:
    """The stages of one output folder, which is there, in the order in which they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept = self._read()
        self._asked: list[str] = []
        self.why = ""

    def _read(self) -> dict[str, dict[str, Any]]:
        """What an earlier run left; a list that cannot be read is as good as none, for everything can be done again."""
        try:
            kept = json.loads((self._folder / LIST).read_text(encoding="utf-8"))
            return {
                str(stage): {part: entry[part] for part in ("depends", "files", "row")} for stage, entry in kept.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    @property
    def files(self) -> set[str]:
        """Names of the files of all stages that are done."""
        return {name for entry in self._kept.values() for name in entry["files"]}

    def known(self, stage: str, depends: Mapping[str, Any]) -> bool:
        """Whether a stage is done."""
        self.why = self._changed(stage, depends)
        if not self.why:
            self._asked.append(stage)
        return not self.why

    def row(self, stage: str, depends: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a stage gave, None where it must be done (again)."""
        return self._kept[stage]["row"] if self.known(stage, depends) else None

    def forget(self) -> None:
        """Forget what has not been asked for: a stage that is to be done anew, and all later ones."""
        kept = {name: entry for name, entry in self._kept.items() if name in self._asked}
        if kept != self._kept:
            self._kept = kept
            self._write()

    def keep(self, stage: str, depends: Mapping[str, Any], row: dict[str, Any], files: Sequence[Path]) -> None:
        """Note that a stage is done, with the files that it gave, which are in the folder."""
        self._asked.append(stage)
        self._kept[stage] = {
            "depends": _plain(depends),
            "files": {str(path.relative_to(self._folder)): sha256_of(path) for path in files},
            "row": _plain(row),
        }
        self._write()

    def _write(self) -> None:
        write_text(self._folder / LIST, json.dumps(self._kept, indent=1) + "\n")

    def _changed(self, stage: str, depends: Mapping[str, Any]) -> str:
        """Why a stage must be done (again), "" if it need not."""
        if stage not in self._kept:
            return "not done yet"
        entry = self._kept[stage]
        before, now = entry["depends"], _plain(depends)
        for key in before.keys() | now.keys():
            if before.get(key) != now.get(key):
                return f"{key} is another than before"
        for name, digest in entry["files"].items():
            path = self._folder / name
            if not path.is_file():
                return f"{name} is gone"
            if sha256_of(path) != digest:
                return f"{name} was changed"
        return ""


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: what is compared must not differ by having been written."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain
