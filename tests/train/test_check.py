"""What `m2jl data check` finds in the excerpt of PTB-XL, in damaged copies of it, and in data sets made here."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from train.check import Report, check
from train.datasets import DATA_SETS
from train.errors import DataError
from train.fetch import CHECKSUMS
from train.table import open_table

M2jl = Callable[..., tuple[int, str, str]]

FIRST = "records100/00000/00285_lr"
FOLD_9 = "records100/01000/01123_lr"


def damage(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def write_sums(root: Path) -> None:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.relative_to(root).as_posix()}\n" for path in files]
    (root / CHECKSUMS).write_text("".join(lines))


def write_record(path: Path, samples: NDArray[np.int16], *, format: str = "16", comments: tuple[str, ...] = ()) -> None:
    """A WFDB record of (samples, leads), whose header holds the right checksums."""
    sums = samples.astype(np.int64).sum(axis=0) & 0xFFFF
    blob = samples.astype("<i2").tobytes()
    if format == "212":
        pairs = samples.reshape(-1, 2).astype(np.int64) & 0xFFF
        low, high = pairs.T
        blob = np.stack((low & 0xFF, low >> 8 | high >> 8 << 4, high & 0xFF), axis=1).astype(np.uint8).tobytes()
    suffix = "mat" if "+24" in format else "dat"
    lines = [f"{path.name} {samples.shape[1]} 360 {len(samples)}"]
    lines += [f"{path.name}.{suffix} {format} 200 12 0 0 {total} 0 L{k}" for k, total in enumerate(sums)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".hea").write_text("\n".join((*lines, *(f"#{line}" for line in comments), "")))
    path.with_suffix(f".{suffix}").write_bytes((b"\0" * 24 if "+24" in format else b"") + blob)


def noise(seed: int, leads: int = 2, count: int = 360) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-900, 900, (count, leads)).astype(np.int16)


def test_the_excerpt_is_read_and_its_one_missing_recording_named(mini: Path) -> None:
    report = check(mini)
    assert (report.data, report.records, report.named, report.published) == ("ptb-xl", 26, 27, 21_837)
    assert report.missing == ["records100/00000/00001_lr"]
    assert report.labels == {"NORM": 9, "MI": 6, "STTC": 5, "CD": 4, "HYP": 6, "none": 1}
    assert (report.unreadable, report.duplicates, report.not_numbers) == ({}, [], [])
    assert (report.flat, report.flat_leads) == ([], {})
    assert report.checksums is None
    assert not report.whole


def whole(tree: Path) -> Path:
    """The copy without the row that has no files."""
    table = tree / "ptbxl_database.csv"
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(line for line in lines if not line.startswith("1,")), encoding="utf-8")
    return tree


def test_a_whole_folder(tree: Path) -> None:
    assert check(whole(tree)).whole
    assert check(tree, quick=True).whole


def test_a_file_that_is_gone(tree: Path) -> None:
    (whole(tree) / f"{FIRST}.dat").unlink()
    (tree / f"{FOLD_9}.hea").unlink()
    report = check(tree)
    assert report.unreadable == {
        FIRST: "00285_lr.dat is not there",
        FOLD_9: "it has no header",
    }
    assert (report.records, report.missing) == (24, [])


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(
    ("suffix", "change", "says"),
    [
        (".dat", lambda blob: blob[:-1], "00285_lr.dat has 23,999 bytes, 24,000 are needed"),
        (".dat", lambda _blob: b"", "00285_lr.dat has 0 bytes, 24,000 are needed"),
        (".hea", lambda _blob: b"", "the header is empty or damaged"),
        (".hea", lambda blob: blob[:150], "the header names 12 signals and describes 3"),
        (".hea", lambda blob: blob.replace(b" 16 ", b" sixteen "), "a signal line of the header is damaged"),
        (".hea", lambda blob: b"\xff" + blob[:12], "the header names 12 signals and describes 0"),
    ],
    ids=["one byte short", "empty", "empty header", "header cut", "format", "header cut early"],
)
def test_what_is_cut_or_damaged_is_named(
    tree: Path, suffix: str, change: Callable[[bytes], bytes], says: str, quick: bool
) -> None:
    damage(whole(tree) / f"{FIRST}{suffix}", change)
    report = check(tree, quick=quick)
    assert report.unreadable == {FIRST: says}
    assert report.records == 25
    assert not report.whole


def test_one_changed_sample_is_found_by_the_headers_own_checksum(tree: Path) -> None:
    damage(whole(tree) / f"{FIRST}.dat", lambda blob: blob[:24] + bytes([blob[24] ^ 1]) + blob[25:])
    assert check(tree, quick=True).whole
    assert check(tree).unreadable == {FIRST: "the samples of I do not add up to the header's checksum"}


def test_the_publishers_list_is_compared_and_outranks_the_header(tree: Path) -> None:
    damage(whole(tree) / f"{FIRST}.dat", lambda blob: blob[:24] + bytes([blob[24] ^ 1]) + blob[25:])
    write_sums(tree)
    report = check(tree)
    assert report.whole
    assert report.checksums is not None
    assert report.checksums.listed == report.checksums.matched == 54
    damage(tree / f"{FOLD_9}.dat", lambda blob: blob + b"\0")
    damage(tree / "scp_statements.csv", lambda blob: blob + b"\n")
    (tree / f"{FIRST}.hea").unlink()
    report = check(tree, quick=True)
    assert report.checksums is not None
    assert sorted(report.checksums.mismatched) == [f"{FOLD_9}.dat", "scp_statements.csv"]
    assert (report.checksums.matched, report.checksums.absent) == (51, 1)
    assert not report.whole


def test_duplicates_are_grouped_and_told_apart_by_fold(tree: Path) -> None:
    folder = tree / "records100"
    for target in (FOLD_9, "records100/04000/04448_lr"):
        shutil.copy(tree / f"{FIRST}.dat", tree / f"{target}.dat")
    within = sorted(folder.glob("1[34]000/*_lr.dat"))
    shutil.copy(within[0], within[1])
    report = check(tree, quick=True)
    named = [str(path.relative_to(tree).with_suffix("")) for path in within[:2]]
    assert report.duplicates == [[FIRST, FOLD_9, "records100/04000/04448_lr"], named]
    assert report.across_folds[0] == report.duplicates[0]


def test_flat_leads_and_samples_that_are_not_numbers(tmp_path: Path) -> None:
    samples = noise(1)
    write_record(tmp_path / "fine", samples)
    samples[:, 1] = 7
    write_record(tmp_path / "one", samples)
    write_record(tmp_path / "all", np.zeros_like(samples))
    samples = noise(2)
    samples[5, 0] = -32768
    write_record(tmp_path / "gap", samples)
    report = check(tmp_path)
    assert (report.data, report.records, report.published) == ("wfdb", 4, None)
    assert (report.flat, report.flat_leads, report.not_numbers) == (["all"], {"one": ["L1"]}, ["gap"])
    assert report.whole


def test_format_212_is_decoded(tmp_path: Path) -> None:
    samples = noise(3)
    samples[7, 1] = -2048
    write_record(tmp_path / "a", samples, format="212")
    report = check(tmp_path)
    assert (report.records, report.not_numbers, report.unreadable) == (1, ["a"], {})
    damage(tmp_path / "a.dat", lambda blob: bytes([blob[0] ^ 1]) + blob[1:])
    assert check(tmp_path).unreadable == {"a": "the samples of L0 do not add up to the header's checksum"}
    damage(tmp_path / "a.dat", lambda blob: blob[:-2])
    assert check(tmp_path).unreadable == {"a": "a.dat has 1,078 bytes, 1,080 are needed"}


def test_other_formats_are_read_through_wfdb(tmp_path: Path) -> None:
    import wfdb

    signal = noise(4).astype(np.int64) * 100
    signal[:, 1] = 3
    wfdb.wrsamp(
        "a", 250, ["mV"] * 2, ["I", "II"], d_signal=signal, fmt=["24"] * 2, adc_gain=[200.0] * 2,
        baseline=[0] * 2, write_dir=str(tmp_path),
    )  # fmt: skip
    report = check(tmp_path)
    assert (report.records, report.unreadable, report.flat_leads) == (1, {}, {"a": ["II"]})
    damage(tmp_path / "a.dat", lambda blob: bytes([blob[0] ^ 1]) + blob[1:])
    assert check(tmp_path).unreadable == {"a": "the samples of I do not add up to the header's checksum"}


def test_a_record_in_segments_needs_all_of_them(tmp_path: Path) -> None:
    write_record(tmp_path / "a_1", noise(5))
    write_record(tmp_path / "a_2", noise(6))
    (tmp_path / "a.hea").write_text("a/3 2 360 720\na_1 360\n~ 10\na_2 360\n")
    assert check(tmp_path).records == 3
    (tmp_path / "a_2.hea").unlink()
    assert check(tmp_path).unreadable == {"a": "its segment a_2 is not there"}


def test_records_that_a_list_names(tmp_path: Path) -> None:
    write_record(tmp_path / "sub" / "a", noise(7))
    (tmp_path / "RECORDS").write_text("sub/\n")
    (tmp_path / "sub" / "RECORDS").write_text("a\nb\n")
    report = check(tmp_path)
    assert (report.named, report.missing, report.whole) == (2, ["sub/b"], False)
    (tmp_path / "sub" / "RECORDS").unlink()
    (tmp_path / CHECKSUMS).write_text(f"{'0' * 64} sub/a.hea\n{'0' * 64} sub/c.hea\n")
    assert check(tmp_path, quick=True).missing == ["sub/c"]


def test_cinc2017_by_its_table(tmp_path: Path) -> None:
    for number in (1, 2):
        write_record(tmp_path / "training" / "A00" / f"A0000{number}", noise(number, leads=1), format="16+24")
    (tmp_path / "training" / "REFERENCE.csv").write_text("A00001,N\nA00002,A\nA00003,O\n")
    report = check(tmp_path)
    assert (report.data, report.records, report.missing) == ("cinc2017", 2, ["A00003"])
    assert report.labels == {"NORMAL": 1, "AF": 1}
    (tmp_path / "REFERENCE-v3.csv").write_text("A00001,~\nA00002,A\n")
    assert check(tmp_path).labels == {"NOISY": 1, "AF": 1}
    assert check(tmp_path).whole


def test_cpsc2018_in_wfdb_form(tmp_path: Path) -> None:
    for stem, codes in {"A0001": "164889003, 59118001", "Q0002": "164889003,1", "A0003": ""}.items():
        write_record(tmp_path / stem, noise(int(stem[1:])), format="16+24", comments=("Age: 7", f"Dx: {codes}"))
    report = check(tmp_path)
    assert (report.data, report.records) == ("cpsc2018", 3)
    assert report.labels == {"AF": 2, "RBBB": 1, "1": 1, "none": 1}


def test_cpsc2018_in_its_own_form(tmp_path: Path) -> None:
    from scipy.io import savemat

    for number in (1, 2):
        savemat(tmp_path / f"A000{number}.mat", {"ECG": {"sex": "Male", "data": noise(number).T / 200.0}})
    (tmp_path / "REFERENCE.csv").write_text(
        "Recording,First_label,Second_label,Third_label\nA0001,5,2,\nA0002,1,,\nA0003,1,,\n"
    )
    report = check(tmp_path)
    assert (report.data, report.records, report.missing) == ("cpsc2018", 2, ["A0003"])
    assert report.labels == {"RBBB": 1, "AF": 1, "NSR": 1}
    for cut in (60, -100):
        damage(tmp_path / "A0001.mat", lambda blob, cut=cut: blob[:cut])
        assert list(check(tmp_path).unreadable) == ["A0001"]
    assert list(check(tmp_path, quick=True).unreadable) == ["A0001"]


def words(*codes: tuple[int, int]) -> bytes:
    return b"".join((code << 10 | low).to_bytes(2, "little") for code, low in codes)


def test_mitdb_by_its_annotations(tmp_path: Path) -> None:
    write_record(tmp_path / "100", noise(8), format="212")
    beats = words((28, 18), (63, 5)) + b"(AFIB\0" + words((1, 77), (5, 300), (59, 0)) + b"\0\0\xff\x7f"
    (tmp_path / "100.atr").write_bytes(beats + words((1, 0), (0, 0)))
    report = check(tmp_path)
    assert (report.data, report.labels, report.whole) == ("mitdb", {"N": 2, "(AFIB": 1, "V": 1}, True)
    (tmp_path / "100.atr").write_bytes(beats)
    assert check(tmp_path).unreadable == {"100.atr": "100.atr is truncated"}
    (tmp_path / "100.atr").rename(tmp_path / "101.atr")
    assert check(tmp_path).missing == ["100.atr"]


def fails(root: Path, says: str) -> None:
    with pytest.raises(DataError) as caught:
        check(root)
    assert "\n" not in str(caught.value)
    assert says in str(caught.value)


def test_folders_that_are_no_data_set(tmp_path: Path, tree: Path) -> None:
    fails(tmp_path / "none", "there is no folder")
    fails(tmp_path, f"PTB-XL lies in {tree}: name that folder")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", "holds no data set")
    (tree / "scp_statements.csv").unlink()
    fails(tree, "there is no scp_statements.csv in it")


def test_a_damaged_table_is_named_with_its_line(tree: Path) -> None:
    damage(tree / "ptbxl_database.csv", lambda blob: blob.replace(b"{'LAFB': 100.0, 'SR': 0.0}", b"{'LAFB'", 1))
    fails(tree, "ptbxl_database.csv, line 3")


def test_a_table_that_names_nothing_is_no_whole_data_set(m2jl: M2jl, tree: Path) -> None:
    damage(tree / "ptbxl_database.csv", lambda blob: blob.partition(b"\n")[0])
    fails(tree, "ptbxl_database.csv names no recordings")
    assert m2jl("data", "check", tree)[0] == 2


def test_a_list_that_names_a_recording_again(fixtures: Path, tmp_path: Path) -> None:
    root = shutil.copytree(fixtures / "cinc2017", tmp_path / "cinc2017")
    damage(root / "training" / "REFERENCE.csv", lambda blob: blob + blob.partition(b"\n")[0])
    fails(root, "REFERENCE.csv, line 5 names A00004 again")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("A00004,N\nA00034,X\n", "REFERENCE.csv, line 2: 'X' is none of N, A, O, ~"),
        ("Recording,First_label\nA0001,10\n", "REFERENCE.csv, line 2: '10' holds more than numbers 1 to 9"),
        ("Recording,First_label\nA0001,-1\n", "REFERENCE.csv, line 2: '-1' holds more than numbers 1 to 9"),
        ("Recording,First_label\nA0001,5.0\n", "REFERENCE.csv, line 2: '5.0' holds more than numbers 1 to 9"),
        ("Recording,First_label\n", "REFERENCE.csv names no recordings"),
    ],
)
def test_a_list_that_training_refuses_is_no_whole_data_set(
    fixtures: Path, tmp_path: Path, content: str, says: str
) -> None:
    root = shutil.copytree(fixtures / "cinc2017", tmp_path / "cinc2017")
    (root / "training" / "REFERENCE.csv").write_text(content)
    fails(root, says)
    with pytest.raises(DataError, match=re.escape(says)):
        open_table(root)


@pytest.mark.parametrize("rate", ["0", "-360", "nan", "5e2"])
def test_a_rate_that_is_none(tmp_path: Path, rate: str) -> None:
    write_record(tmp_path / "a", noise(9))
    damage(tmp_path / "a.hea", lambda blob: blob.replace(b" 360 ", f" {rate} ".encode()))
    assert check(tmp_path).unreadable == {"a": f"the header says a rate of {rate}, which is none"}


def test_linked_folders_are_followed(tree: Path, tmp_path: Path) -> None:
    (tree / "records100").rename(tmp_path / "elsewhere")
    (whole(tree) / "records100").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "back").symlink_to(tree, target_is_directory=True)
    report = check(tree)
    assert (report.whole, report.records) == (True, 26)


@pytest.mark.parametrize(
    ("fault", "says"),
    [(MemoryError(), "not enough memory"), (PermissionError(13, "Permission denied"), "Permission denied")],
    ids=["memory", "denied"],
)
def test_a_recording_that_cannot_be_read_now_is_named_with_the_reason(
    tree: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, says: str
) -> None:
    def refuse(*_: object) -> None:
        raise fault

    monkeypatch.setattr("train.check.decode", refuse)
    assert set(check(tree).unreadable.values()) == {f"cannot be read: {says}"}


def test_one_rate_may_be_chosen(tree: Path) -> None:
    for path in sorted(tree.glob("records100/*/*_lr.*")):
        copy = tree / "records500" / path.parent.name / path.name.replace("_lr", "_hr")
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes()
        copy.write_bytes(text.replace(b"_lr", b"_hr") if path.suffix == ".hea" else text)
    report = check(tree, quick=True)
    assert (report.records, report.labels["NORM"]) == (52, 9)  # a recording's labels count once
    assert len(report.missing) == 2
    assert check(tree, quick=True, rate_hz=100).records == 26
    shutil.rmtree(tree / "records500")
    assert check(tree, quick=True, rate_hz=500).records == 0


def test_progress_reaches_the_end(mini: Path) -> None:
    steps: list[tuple[int, int]] = []
    check(mini, progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (26, 26)


def test_the_command_says_what_is_wrong(m2jl: M2jl, tree: Path) -> None:
    damage(tree / f"{FIRST}.dat", lambda blob: blob[:-1])
    shutil.copy(tree / f"{FOLD_9}.dat", tree / "records100/04000/04448_lr.dat")
    code, out, err = m2jl("data", "check", tree)
    assert (code, err) == (1, "")
    for line in (
        f"{tree}: PTB-XL 1.0.1, 24 recordings, 21,837 are published",
        "missing: 1 of 27 that are named: records100/00000/00001_lr",
        f"  {FIRST}: 00285_lr.dat has 23,999 bytes, 24,000 are needed",
        "the same bytes under several names: 1 (1 across folds)",
    ):
        assert line in out.splitlines()
    assert out.splitlines()[-1] == "not whole"


def test_the_command_in_json(m2jl: M2jl, tree: Path, tmp_path: Path) -> None:
    code, out, _ = m2jl("data", "check", whole(tree), "--json", "--quick")
    report = json.loads(out)
    assert code == 0
    assert (report["whole"], report["decoded"], report["data"], report["records"]) == (True, False, "ptb-xl", 26)
    assert set(Report.__dataclass_fields__) < set(report)
    (tmp_path / "empty").mkdir()
    code, out, err = m2jl("data", "check", tmp_path / "empty", "--json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("m2jl: error: ")


def test_help_shows_an_example_and_names_each_data_set(m2jl: M2jl) -> None:
    code, out, _ = m2jl("data", "check", "--help")
    assert code == 0
    assert "Example: m2jl data check ptb-xl" in out
    code, out, _ = m2jl("data", "get", "--help")
    assert code == 0
    assert all(name in out for name in DATA_SETS)
