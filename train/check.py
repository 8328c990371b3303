"""What a folder of recordings holds, and what of it is missing, damaged, doubled or silent.

    report = check(Path("ptb-xl"))
    report.records, report.missing, report.unreadable, report.duplicates, report.whole

A WFDB header tells how long its signal files must be, and (in most data sets) a 16-bit checksum of each signal, so
damage is found without the publisher's list too.  Samples of formats 16 and 212 are decoded here, straight from the
file; the few other formats go through wfdb.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train import cinc2017, cpsc2018
from train.cpsc2018 import diagnosis_codes, read_matlab
from train.datasets import DATA_SETS, SNOMED
from train.errors import DataError
from train.fetch import CHECKSUMS, parse_checksums
from train.files import sha256_of
from train.noise import RECORDS
from train.ptbxl import COLUMN_OF_RATE, DATABASE, entries
from train.table import files_under
from train.wfdb_files import (
    SignalLine,
    UnreadableError,
    decode,
    expected_bytes_of,
    read_header,
)

NOT_A_SAMPLE = {"16": -(2**15), "24": -(2**23), "32": -(2**31), "80": -(2**7), "212": -(2**11)}

# Annotation codes of MIT-BIH's beats and the words that carry no beat.
BEATS = dict(zip(range(1, 14), "NLRaVFJASEj/Q", strict=True)) | {34: "e", 38: "f"}
RHYTHM, SKIP, AUX = 28, 59, 63

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Checksums:
    """What the list of checksums in the folder says."""

    listed: int
    matched: int = 0
    absent: int = 0
    mismatched: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What `check` found.

    Attributes:
        data: name of the data set; "wfdb" for any other folder of recordings.
        records: recordings that are there and readable.
        named: recordings that a table, a RECORDS file or a list of checksums names.
        published: recordings that the publisher has, where known.
        unreadable: record -> why.
        duplicates: recordings whose signal files are byte for byte the same.
        across_folds: those of `duplicates` that lie in more than one of PTB-XL's folds.
        not_numbers: recordings with samples that are marked as invalid.
        flat: recordings in which nothing moves; `flat_leads` where that is so of some leads.
        decoded: False for a quick check, which does not look at samples.
    """

    data: str
    title: str
    folder: str
    published: int | None = None
    records: int = 0
    named: int = 0
    missing: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    across_folds: list[list[str]] = field(default_factory=list)
    not_numbers: list[str] = field(default_factory=list)
    flat: list[str] = field(default_factory=list)
    flat_leads: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    checksums: Checksums | None = None
    decoded: bool = True

    @property
    def whole(self) -> bool:
        """Nothing is missing, nothing is unreadable, and no checksum is wrong."""
        return not (self.missing or self.unreadable or (self.checksums and self.checksums.mismatched))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "whole": self.whole}


class _Survey:
    """Goes through the recordings of a folder once and fills the report."""

    def __init__(self, root: Path, report: Report, files: dict[str, int], digests: dict[str, str]) -> None:
        self._root, self._report, self._files, self._digests = root, report, files, digests
        self._same: dict[str, list[str]] = defaultdict(list)
        self.comments: dict[str, tuple[str, ...]] = {}
        self.seen: dict[str, bool] = {}  # files whose checksum was compared -> whether it is right

    def look_at(self, record: str) -> None:
        """Read one recording; what is wrong with it goes into the report."""
        try:
            if f"{record}.hea" in self._files:
                self._look_at_wfdb(record)
            elif f"{record}.mat" in self._files:
                self._look_at_matlab(record)
            else:
                raise UnreadableError("it has no header")
            self._report.records += 1
        except UnreadableError as error:
            self._report.unreadable[record] = str(error)
        except (OSError, MemoryError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not enough memory"
            self._report.unreadable[record] = f"cannot be read: {reason}"

    def _look_at_wfdb(self, record: str) -> None:
        header = read_header(self._root / f"{record}.hea")
        self.comments[record] = header.comments
        folder = record.rpartition("/")[0]
        for segment in header.segments:
            if segment != "~" and f"{folder}/{segment}.hea".lstrip("/") not in self._files:
                raise UnreadableError(f"its segment {segment} is not there")
        blobs = {
            file: self._map(f"{folder}/{file}".lstrip("/"), file, expected_bytes_of(header.frames, signals))
            for file, signals in header.files().items()
            if file != "~"  # a signal that is named only
        }
        digests = {file: hashlib.sha256(blob.data).hexdigest() for file, blob in blobs.items()}
        for file, digest in digests.items():
            self._compare(f"{folder}/{file}".lstrip("/"), digest)
        if digests:
            self._same["".join(digests.values())].append(record)
        if not self._report.decoded:
            return
        flat: list[str] = []
        for file, blob in blobs.items():
            signals = header.files()[file]
            samples = decode(self._root / record, blob, header.frames, signals)
            if samples is not None:
                trusted = self.seen.get(f"{folder}/{file}".lstrip("/"), False)
                flat += self._look_at_samples(record, samples, signals, trusted=trusted)
        self._note_flat(record, flat, len(header.signals))

    def _map(self, name: str, file: str, expected_bytes: int) -> NDArray[np.uint8]:
        """The bytes of a signal file that is as long as its header says."""
        size = self._files.get(name)
        if size is None:
            raise UnreadableError(f"{file} is not there")
        if size < expected_bytes:
            raise UnreadableError(f"{file} has {size:,} bytes, {expected_bytes:,} are needed")
        return np.memmap(self._root / name, np.uint8, "r") if size else np.empty(0, np.uint8)

    def _look_at_samples(
        self, record: str, samples: NDArray[np.int32], signals: list[SignalLine], *, trusted: bool
    ) -> list[str]:
        """The flat leads among the samples of one file."""
        sums = samples.sum(axis=0, dtype=np.int64) & 0xFFFF
        for signal, total in zip(signals, sums, strict=True):
            # Some publishers write 0 for "not computed"; and their own list of files outranks the header.
            if signal.checksum not in (0, int(total)) and not trusted:
                raise UnreadableError(f"the samples of {signal.lead} do not add up to the header's checksum")
        mark = NOT_A_SAMPLE.get(signals[0].format)
        low, high = samples.min(axis=0, initial=2**31 - 1), samples.max(axis=0, initial=-(2**31))
        if mark is not None and (low == mark).any() and record not in self._report.not_numbers:
            self._report.not_numbers.append(record)
        return [signal.lead for signal, is_flat in zip(signals, low >= high, strict=True) if is_flat]

    def _look_at_matlab(self, record: str) -> None:
        """A recording of CPSC2018's own form: a MATLAB structure `ECG` that holds `data`."""
        name = f"{record}.mat"
        path = self._root / name
        digest = sha256_of(path)
        self._compare(name, digest)
        self._same[digest].append(record)
        if self._files[name] < 128:
            raise UnreadableError(f"{name} is truncated")
        if self._report.decoded:
            signal = read_matlab(path)
            if not np.isfinite(signal).all():
                self._report.not_numbers.append(record)
            flat = [str(k + 1) for k, lead in enumerate(signal) if lead.size == 0 or np.ptp(lead) == 0]
            self._note_flat(record, flat, len(signal))

    def _note_flat(self, record: str, flat: list[str], leads: int) -> None:
        if flat and len(flat) == leads:
            self._report.flat.append(record)
        elif flat:
            self._report.flat_leads[record] = flat

    def _compare(self, name: str, digest: str) -> None:
        if name in self._digests:
            self.seen[name] = self._digests[name] == digest

    def finish(self, fold_of: dict[str, int]) -> None:
        """What needs all recordings: duplicates, and the checksums of files that are not signals."""
        report = self._report
        report.duplicates = sorted(group for group in self._same.values() if len(group) > 1)
        report.across_folds = [
            group for group in report.duplicates if len({fold_of.get(record) for record in group}) > 1 and fold_of
        ]
        if not self._digests:
            return
        report.checksums = Checksums(len(self._digests))
        for name, digest in self._digests.items():
            if name not in self._files:
                report.checksums.absent += 1
            elif self._is_right(name, digest):
                report.checksums.matched += 1
            else:
                report.checksums.mismatched.append(name)

    def _is_right(self, name: str, digest: str) -> bool:
        if name in self.seen:
            return self.seen[name]
        try:
            return sha256_of(self._root / name) == digest
        except OSError:
            return False


def _sizes(root: Path) -> dict[str, int]:
    """Path relative to `root` -> size in bytes."""
    sizes = {}
    for file in files_under(root):
        try:
            sizes[file] = os.stat(root / file).st_size
        except OSError:
            continue  # a link that leads nowhere
    return sizes


def _table(root: Path) -> tuple[str, dict[str, list[str]]]:
    """Whose list of labels is there, as `_recognise` says it, and record's own name -> its labels.

    It is read as training reads it: what stops that must not be called whole.

    Raises:
        DataError: the list is damaged, or there are several that do not agree.
    """
    if (reference := cpsc2018.find_reference(root)) is not None:
        findings = cpsc2018.read_findings(reference)
        return "cpsc2018-matlab", {name: sorted(labels or ()) for name, labels in findings.items()}
    if (reference := cinc2017.find_reference(root)) is not None:
        return "cinc2017", {name: [label] for name, label in cinc2017.read_classes(reference).items()}
    return "", {}


def _recognise(root: Path, files: dict[str, int], listed: str, table: dict[str, list[str]]) -> str:
    """Name of the data set in a folder; "cpsc2018-matlab" for CPSC2018 in its publisher's own form."""
    if DATABASE in files:
        return "ptb-xl"
    deeper = next((path for path in files if path.endswith(f"/{DATABASE}")), None)
    if deeper:
        raise DataError(f"PTB-XL lies in {root / deeper.rpartition('/')[0]}: name that folder")
    headers = [path for path in files if path.endswith(".hea")]
    stems = [path.rpartition("/")[2].removesuffix(".hea") for path in headers]
    if listed == "cpsc2018-matlab" and any(path.endswith(".mat") for path in files):
        return listed
    if listed == "cinc2017" and all(re.fullmatch(r"A\d{5}", stem) for stem in (*stems, *table)):
        return "cinc2017"
    if stems and all(re.fullmatch(r"[AQ]\d{4}", stem) for stem in stems):
        return "cpsc2018"
    if stems and all(re.fullmatch(r"(x_)?[12]\d\d", stem) for stem in stems):
        beats = any(path.endswith(".atr") for path in files)
        return "mitdb" if beats else "wfdb"
    if set(stems) == set(RECORDS):
        return "nstdb"
    if not stems:
        raise DataError(f"{root} holds no data set: no table of PTB-XL, no WFDB header, no table of CPSC2018")
    return "wfdb"


def _named_by_lists(root: Path, files: dict[str, int], digests: dict[str, str]) -> set[str]:
    """Recordings that a RECORDS file or the list of checksums names."""
    named = {path.removesuffix(".hea") for path in digests if path.endswith(".hea")}
    for path in files:
        folder, _, name = path.rpartition("/")
        if name == "RECORDS":
            lines = (root / path).read_text(encoding="utf-8", errors="replace").split()
            # A line that ends in a slash names a folder with its own list.
            named |= {f"{folder}/{line}".lstrip("/") for line in lines if not line.endswith("/")}
    return named


def _beat_counts(path: Path) -> Counter[str]:
    """Beats by symbol, and rhythms as "(AFIB", of a file of annotations in MIT's format."""
    words = np.frombuffer(data := path.read_bytes(), "<u2", count=path.stat().st_size // 2)
    counts: Counter[str] = Counter()
    at, last = 0, 0
    while at < len(words) and words[at]:
        code, low = int(words[at]) >> 10, int(words[at]) & 0x3FF
        if code == AUX and last == RHYTHM:
            counts[data[2 * at + 2 : 2 * at + 2 + low].rstrip(b"\0").decode("ascii", "replace")] += 1
        counts[BEATS.get(code, "")] += 1
        at += 1 + (2 if code == SKIP else (low + 1) // 2 if code == AUX else 0)
        last = code if code < SKIP else last
    if at >= len(words):
        raise UnreadableError(f"{path.name} is truncated")
    del counts[""]
    return counts


@dataclass(slots=True)
class _Plan:
    """What there is to look at, before any recording is opened."""

    records: list[str]
    named: set[str]
    labels: dict[str, list[str]] = field(default_factory=dict)
    folds: dict[str, int] = field(default_factory=dict)


def _plan_ptbxl(root: Path, files: dict[str, int], rate_hz: int | None) -> _Plan:
    plan = _Plan([], set())
    there = [rate for rate in COLUMN_OF_RATE if any(path.startswith(f"records{rate}/") for path in files)]
    for entry in entries(root):
        for rate in [rate_hz] if rate_hz else there or [100]:
            plan.labels[entry.files[rate]] = sorted(entry.superclasses)
            plan.folds[entry.files[rate]] = entry.fold
    plan.named = set(plan.labels)
    plan.records = [name for name in plan.labels if f"{name}.hea" in files or f"{name}.dat" in files]
    return plan


def _plan_others(
    kind: str, root: Path, files: dict[str, int], table: dict[str, list[str]], digests: dict[str, str]
) -> _Plan:
    suffix = ".mat" if kind == "cpsc2018-matlab" else ".hea"
    records = sorted(path.removesuffix(suffix) for path in files if path.endswith(suffix))
    by_stem = {record.rpartition("/")[2]: record for record in records}
    labels = {by_stem.get(name, name): row for name, row in table.items()}
    return _Plan(records, _named_by_lists(root, files, digests) | set(labels), labels)


def _label_counts(kind: str, root: Path, plan: _Plan, survey: _Survey, report: Report) -> Counter[str]:
    """How often each label occurs among the recordings that are readable."""
    counts: Counter[str] = Counter()
    counted: set[str] = set()
    for record in plan.records:
        # PTB-XL has each recording at two rates: 00285_lr and 00285_hr.
        own = record.rpartition("/")[2].partition("_")[0] if kind == "ptb-xl" else record
        if record in report.unreadable or own in counted:
            continue
        counted.add(own)
        labels = plan.labels.get(record)
        if kind == "mitdb":
            try:
                counts += _beat_counts(root / f"{record}.atr")
            except FileNotFoundError:
                report.missing.append(f"{record}.atr")
            except (OSError, UnreadableError) as error:
                report.unreadable[f"{record}.atr"] = str(error)
            continue
        if kind == "cpsc2018":
            labels = [SNOMED.get(code, code) for code in diagnosis_codes(survey.comments[record]) or []]
        if labels is not None:
            counts.update(labels or ["none"])
    return counts


def check(
    root: Path,
    *,
    quick: bool = False,
    rate_hz: int | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Report:
    """Look at every recording under `root`.

    Args:
        quick: compare sizes and checksums, and leave the samples alone.
        rate_hz: look only at PTB-XL's recordings of that rate; both that are there otherwise.
        progress: called with the recordings done and their total.

    Raises:
        DataError: the folder cannot be read, is no data set, or its table is damaged.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    files = _sizes(root)
    listed, table = ("", {}) if DATABASE in files else _table(root)
    kind = _recognise(root, files, listed, table)
    digests = {}
    if CHECKSUMS in files:
        digests = parse_checksums(
            (root / CHECKSUMS).read_text(encoding="utf-8", errors="replace"), str(root / CHECKSUMS)
        )
    plan = _plan_ptbxl(root, files, rate_hz) if kind == "ptb-xl" else _plan_others(kind, root, files, table, digests)
    known = DATA_SETS.get(kind.removesuffix("-matlab"))
    report = Report(
        data=known.name if known else "wfdb",
        title=known.title if known else "WFDB recordings",
        folder=str(root),
        published=known.records if known else None,
        named=len(plan.named),
        missing=sorted(plan.named.difference(plan.records)),
        decoded=not quick,
    )
    survey = _Survey(root, report, files, digests)
    for done, record in enumerate(plan.records, start=1):
        survey.look_at(record)
        if done % 50 == 0 or done == len(plan.records):
            progress(done, len(plan.records))
    survey.finish(plan.folds)
    report.labels = dict(_label_counts(kind, root, plan, survey, report).most_common())
    return report
