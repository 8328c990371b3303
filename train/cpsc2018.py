"""CPSC2018: twelve leads at 500 Hz, 6 to 144 s long, any of nine findings each, in either of its two forms.

    table = read_table(Path("cpsc2018"))
    table.recordings[0].name, table.recordings[0].labels           # "A0689", {"AF"}

The PhysioNet/CinC Challenge 2020 published it as WFDB records whose headers name the findings by SNOMED CT codes
(`#Dx: 164889003,59118001`); the original has `REFERENCE.csv` with numbers 1 to 9, and MATLAB structures without
headers.  Codes beyond the nine findings are left out, and a recording that has others only stays in, as all-negative.
Every recording of the published set shows something; one of which nothing is said has lost its label, and is left out.

Source: Liu et al., "An open access database for evaluating the algorithms of electrocardiogram rhythm and morphology
abnormality detection", Journal of Medical Imaging and Health Informatics 8(7):1368-1373 (2018), CC BY 4.0.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.datasets import CPSC_NUMBERS, SNOMED
from train.errors import DataError
from train.table import HASHED_FOLDS, HASHED_TEST_FOLDS, Recording, Table, by_stem, csv_by_name, find_csv, hashed_fold
from train.wfdb_files import UnreadableError, read_header

log = logging.getLogger("train")

FINDINGS = tuple(SNOMED.values())
MATLAB_RATE_HZ = 500.0
REFERENCE = "REFERENCE.csv"
NAME = r"[AQ]\d{4}"  # Q: the challenge's extra recordings of the same source


def diagnosis_codes(comments: Sequence[str]) -> list[str] | None:
    """SNOMED CT codes of a header's `Dx:` comment; None where there is no such comment."""
    said = next(filter(None, (re.fullmatch(r"Dx\s*:(.*)", line) for line in comments)), None)
    return None if said is None else [code for code in said[1].replace(" ", "").split(",") if code]


def read_matlab(path: Path) -> NDArray[np.float32]:
    """Samples (leads, samples) in mV of a recording in the original form: a structure `ECG` that holds `data`.

    Raises:
        UnreadableError: it is no such file.
        OSError, MemoryError: it cannot be read, or not now.
    """
    from scipy.io import loadmat

    # Read here, so that scipy's own OSErrors tell of damage alone; its stubs do not know that it takes open files.
    content = io.BytesIO(path.read_bytes())
    try:
        signal = np.asarray(loadmat(content)["ECG"]["data"][0, 0], dtype=np.float32)  # type: ignore[arg-type]
    except MemoryError:
        raise
    except Exception as error:
        raise UnreadableError(f"not a readable MATLAB recording: {error}") from error
    if signal.ndim != 2:
        raise UnreadableError(f"not a readable MATLAB recording: its data has {signal.ndim} dimensions")
    return signal


def find_reference(root: Path) -> Path | None:
    """The original's table, at any depth; raises DataError where several do not agree."""
    return find_csv(root, (REFERENCE,), lambda first: first[:2] == ["Recording", "First_label"])


def recognises(root: Path) -> bool:
    """Whether either form of this set lies in the folder, at any depth."""
    if find_reference(root) is not None:
        return True
    headers = by_stem(root, ".hea")
    return all(re.fullmatch(NAME, name) for name in headers) and any(
        re.search(rb"^\s*#\s*Dx\s*:", path.with_suffix(".hea").read_bytes(), re.MULTILINE) for path in headers.values()
    )


def read_table(root: Path) -> Table:
    """Read the findings, and see which recordings are there, at any depth.

    Raises:
        DataError: there is neither form of the set, it is damaged or its table names a recording twice, or none of the
            recordings is there.
    """
    signals = by_stem(root, ".mat")
    reference = find_reference(root)
    said = read_findings(reference) if reference else _findings_of_headers(by_stem(root, ".hea"))
    if not said:
        raise DataError(f"{root} is not a CPSC2018 folder: there is no {REFERENCE} and no header in it")
    findings = {name: labels for name, labels in said.items() if labels is not None}
    unlabelled = len(said) - len(findings)
    if unlabelled:
        log.warning("%d recordings without a diagnosis are left out", unlabelled)
    recordings = tuple(
        Recording(name, hashed_fold(name), labels, signals[name])
        for name, labels in findings.items()
        if name in signals
    )
    if not recordings:
        raise DataError(f"{root}: none of the {len(findings)} recordings with a diagnosis is there")
    missing = len(findings) - len(recordings)
    return Table("CPSC2018", root, recordings, missing, FINDINGS, FINDINGS, HASHED_FOLDS, HASHED_TEST_FOLDS, unlabelled)


def _findings_of_headers(headers: dict[str, Path]) -> dict[str, frozenset[str] | None]:
    """Findings by name; None where the header names no diagnosis at all."""
    findings: dict[str, frozenset[str] | None] = {}
    for name, path in headers.items():
        try:
            codes = diagnosis_codes(read_header(path.with_suffix(".hea")).comments)
        except UnreadableError:
            findings[name] = frozenset()  # reading its signal will tell
            continue
        findings[name] = frozenset(SNOMED[code] for code in codes if code in SNOMED) if codes else None
    return findings


def read_findings(reference: Path) -> dict[str, frozenset[str] | None]:
    """Findings by name; None where the line names none.

    Raises:
        DataError: the table cannot be read, names no recording or one twice, or says something else than findings.
    """
    findings: dict[str, frozenset[str] | None] = {}
    _, *rows = csv_by_name(reference).items()
    if not rows:
        raise DataError(f"{reference} names no recordings")
    for number, (name, words) in enumerate(rows, start=2):
        try:
            findings[name] = frozenset(CPSC_NUMBERS[int(word)] for word in words if word.strip()) or None
        except (KeyError, ValueError):
            raise DataError(f"{reference}, line {number}: {','.join(words)!r} holds more than numbers 1 to 9") from None
    return findings
