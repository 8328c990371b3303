"""Prepared signals: what is in them, when they are made anew, and what is left out."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import given
from hypothesis import strategies as st

import train.dataset
from runtime.chain import SignalChain
from runtime.filters import resample
from runtime.spec import ModelSpec
from train.dataset import EcgData, load, mean_by_record, read_signal
from train.errors import DataError, ReadError

RECORD = "records100/01000/01123_lr"  # of fold 9


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_signal_is_what_the_runtime_makes_of_the_recording(
    mini: Path, validation: EcgData, spec: ModelSpec
) -> None:
    record = wfdb.rdrecord(str(mini / RECORD))
    # The files say AVR where the spec says aVR.
    assert [name.upper() for name in record.sig_name] == [lead.upper() for lead in spec.leads]
    wanted = resample(record.p_signal.T.astype(np.float32), 100.0, 100.0, high_hz=spec.band_hz[1])
    assert validation.record[0] == 1123
    np.testing.assert_array_equal(validation.signal_mv(0), wanted)


def test_shapes_and_targets(validation: EcgData, spec: ModelSpec) -> None:
    assert (validation.leads, validation.window_samples, validation.hop_samples) == (12, 1000, 100)
    assert validation.samples.shape == (6 * 12 * 1000,)
    assert validation.samples.dtype == np.float32
    assert validation.first.tolist() == [12_000 * k for k in range(6)]
    assert validation.length.tolist() == [1000] * 6
    assert validation.statements.shape == (6, 71)
    assert (validation.table, validation.padded) == ("PTB-XL", 0)
    assert (len(validation), validation.without_files, validation.unreadable) == (6, 1, ())
    assert validation.record.tolist() == [1123, 10618, 11200, 11926, 18753, 21117]
    named = [[label for label, y in zip(spec.labels, row, strict=True) if y] for row in validation.targets]
    assert named == [["CD"], ["HYP"], ["NORM"], ["MI"], ["NORM"], ["STTC"]]


def test_a_recording_without_diagnosis_stays_as_all_negative(train_data: EcgData) -> None:
    assert not train_data.targets[train_data.record.tolist().index(21323)].any()


def test_leads_come_in_the_order_of_the_spec(mini: Path, spec: ModelSpec, cache: Path, validation: EcgData) -> None:
    two = load(mini, spec.model_copy(update={"leads": ("V2", "avr")}), [9], cache=cache)
    for row in range(6):
        np.testing.assert_array_equal(two.signal_mv(row), validation.signal_mv(row)[[7, 3]])


def test_a_model_of_another_rate(mini: Path, spec: ModelSpec, cache: Path) -> None:
    slow = spec.model_copy(update={"rate_hz": 50.0, "band_hz": (0.5, 20.0), "leads": ("II",)})
    data = load(mini, slow, [9], cache=cache)
    signal, rate_hz = read_signal(mini / RECORD, ["II"])
    np.testing.assert_array_equal(data.signal_mv(0), resample(signal, rate_hz, 50.0, high_hz=20.0))


def test_labels_are_not_part_of_the_cache(mini: Path, spec: ModelSpec, tmp_path: Path) -> None:
    load(mini, spec, [9], cache=tmp_path)
    two = spec.model_copy(update={"labels": ("HYP", "MI"), "thresholds": (0.5, 0.5)})
    data = load(mini, two, [9], cache=tmp_path)
    assert len(folders(tmp_path)) == 1
    assert data.targets.tolist() == [[0, 0], [1, 0], [0, 0], [0, 1], [0, 0], [0, 0]]


def test_the_cache_is_made_once_and_used_again(
    mini: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    first = load(mini, spec, [9], cache=tmp_path, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(k, 6) for k in range(1, 7)]
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "signal.npy"]
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    def never(*_: object) -> None:
        raise AssertionError("a recording was read again")

    monkeypatch.setattr(train.dataset, "read_signal", never)
    second = load(mini, spec, [9], cache=tmp_path)
    np.testing.assert_array_equal(first.samples, second.samples)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times


@pytest.mark.parametrize("update", [{"leads": ("I",)}, {"band_hz": (0.5, 30.0)}], ids=["leads", "band"])
def test_another_signal_spec_makes_a_new_cache(
    mini: Path, spec: ModelSpec, tmp_path: Path, update: dict[str, object]
) -> None:
    load(mini, spec, [9], cache=tmp_path)
    load(mini, spec.model_copy(update=update), [9], cache=tmp_path)
    assert len(folders(tmp_path)) == 2


def test_hops_are_not_part_of_the_cache(mini: Path, spec: ModelSpec, tmp_path: Path) -> None:
    short = spec.model_copy(update={"window_s": 4.0})
    load(mini, short, [9], cache=tmp_path)
    data = load(mini, short.model_copy(update={"hop_s": 2.0}), [9], cache=tmp_path)
    assert len(folders(tmp_path)) == 1
    rows, starts = data.cut()
    assert starts.tolist() == 6 * [0, 200, 400, 600]
    assert rows.tolist() == [row for row in range(6) for _ in range(4)]


def test_a_recording_shorter_than_the_window_is_held_at_its_last_input(
    mini: Path, spec: ModelSpec, tmp_path: Path, validation: EcgData
) -> None:
    long = spec.model_copy(update={"window_s": 12.0})
    data = load(mini, long, [9], cache=tmp_path)
    assert (data.padded, data.length.tolist()) == (6, [1200] * 6)
    assert load(mini, long, [9], cache=tmp_path).padded == 6  # the cache remembers it
    signal, rate_hz = read_signal(mini / RECORD, spec.leads)
    held = np.pad(signal, ((0, 0), (0, 200)), mode="edge")
    np.testing.assert_array_equal(data.signal_mv(0), resample(held, rate_hz, 100.0, high_hz=40.0))
    np.testing.assert_allclose(data.signal_mv(0)[:, -1], signal[:, -1], atol=1e-6)
    assert np.abs(validation.signal_mv(0)[:, -1] - signal[:, -1]).max() > 1e-3  # the low-passed one is another
    assert load(mini, spec, [9], cache=tmp_path).padded == 0  # of a window that they fill
    assert len(folders(tmp_path)) == 2


def test_writing_to_samples_leaves_the_cache_as_it_is(mini: Path, spec: ModelSpec, tmp_path: Path) -> None:
    data = load(mini, spec, [9], cache=tmp_path)
    before = data.samples.copy()
    data.samples[:] = 0
    np.testing.assert_array_equal(load(mini, spec, [9], cache=tmp_path).samples, before)


def test_a_changed_recording_makes_a_new_cache(tree: Path, spec: ModelSpec, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = load(tree, spec, [9], cache=cache)
    path = (tree / RECORD).with_suffix(".dat")
    samples = np.fromfile(path, np.int16)
    (2 * samples).tofile(path)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    after = load(tree, spec, [9], cache=cache)
    assert len(folders(cache)) == 2
    np.testing.assert_allclose(after.samples[:12_000], 2 * before.samples[:12_000], atol=1e-5)
    np.testing.assert_array_equal(after.samples[12_000:], before.samples[12_000:])


def cut_short(path: Path) -> None:
    data = path.with_suffix(".dat").read_bytes()
    path.with_suffix(".dat").write_bytes(data[: len(data) // 2])


def not_a_number(path: Path) -> None:
    samples = np.fromfile(path.with_suffix(".dat"), np.int16)
    samples[12 * 500 + 3] = -32768  # what WFDB's format 16 keeps for "no value"
    samples.tofile(path.with_suffix(".dat"))


def folder_for_a_file(path: Path) -> None:
    (path.parent / "folder.dat").mkdir()
    replace_in(path.with_suffix(".hea"), "01123_lr.dat", "folder.dat")


def header(old: str, new: str) -> Callable[[Path], None]:
    return lambda path: replace_in(path.with_suffix(".hea"), old, new)


DAMAGE = {
    "cut short": (cut_short, "ValueError"),
    "not a number": (not_a_number, "not numbers"),
    "a rate too low": (header(" 100 1000", " 50 1000"), "50 Hz"),
    "no rate": (header(" 100 1000", " 0 1000"), "the header says a rate of 0"),
    "a rate below zero": (header(" 100 1000", " -100 1000"), "the header says a rate of -100"),
    "a rate that is no number": (header(" 100 1000", " nan 1000"), "the header says a rate of nan"),
    "a rate that wfdb takes for another": (header(" 100 1000", " 1e2 1000"), "the header says a rate of 1e2"),
    "a lead twice": (header(" AVL\n", " aVR\n"), "has 2 leads of that name (AVR, aVR), and which one is meant"),
    "no signal": (lambda path: path.with_suffix(".hea").write_text("01123_lr 0 100 1000\n"), "no signal"),
    "no header": (lambda path: path.with_suffix(".hea").write_bytes(bytes(range(256))), "01123_lr"),
    "no voltage": (header("1000.0(0)/mV 16 0 52 1900 0 AVR", "1000.0(0)/mmHg 16 0 52 1900 0 AVR"), "AVR is in mmHg"),
    "a folder for a file": (folder_for_a_file, "Is a directory"),
}


def test_a_lead_that_the_first_recording_lacks_ends_it_and_one_that_another_lacks_does_not(
    tree: Path, spec: ModelSpec, tmp_path: Path, validation: EcgData, caplog: pytest.LogCaptureFixture
) -> None:
    lose_lead = header(" AVL\n", " MLII\n")
    others = sorted(path.with_suffix("") for path in tree.rglob("*.hea") if str(validation.record[1]) in path.stem)
    lose_lead(others[0])
    data = load(tree, spec, [9], cache=tmp_path / "cache")
    assert data.record.tolist() == [validation.record[0], *validation.record[2:]]
    assert "lead AVL is not in it, but I, II" in caplog.messages[0]
    lose_lead(tree / RECORD)
    with pytest.raises(DataError, match=f"{RECORD}: lead AVL is not in it, but I, II"):
        load(tree, spec, [9], cache=tmp_path / "other")


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_recording_that_cannot_be_used_is_named_counted_and_left_out(
    tree: Path,
    spec: ModelSpec,
    tmp_path: Path,
    validation: EcgData,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    says: str,
) -> None:
    damage(tree / RECORD)
    with caplog.at_level(logging.WARNING, "train"):
        data = load(tree, spec, [9], cache=tmp_path / "cache")
    (warning,) = caplog.messages
    assert RECORD in warning
    assert says in warning
    assert "\n" not in warning
    assert data.unreadable == (RECORD,)
    np.testing.assert_array_equal(data.record, validation.record[1:])
    np.testing.assert_array_equal(data.samples, validation.samples[12_000:])
    np.testing.assert_array_equal(data.first, validation.first[:5])
    np.testing.assert_array_equal(data.targets, validation.targets[1:])
    # The cache remembers it.
    assert load(tree, spec, [9], cache=tmp_path / "cache").unreadable == (RECORD,)


@pytest.mark.parametrize("rate", ["100.", "100.0", "100/1000(3)"])
def test_a_rate_may_be_written_in_other_ways(tree: Path, rate: str) -> None:
    header(" 100 1000", f" {rate} 1000")(tree / RECORD)
    assert read_signal(tree / RECORD, ["I"])[1] == 100.0


def test_a_lead_that_is_not_asked_for_may_be_there_twice(tree: Path) -> None:
    header(" AVL\n", " aVR\n")(tree / RECORD)
    assert read_signal(tree / RECORD, ["I", "V2"])[0].shape == (2, 1000)


@pytest.mark.parametrize(("unit", "gain"), [("uV", "1.0"), ("V", "1000000.0"), ("nV", "0.001")])
def test_units_are_brought_to_mv(
    tree: Path, spec: ModelSpec, tmp_path: Path, validation: EcgData, unit: str, gain: str
) -> None:
    header("1000.0(0)/mV", f"{gain}(0)/{unit}")(tree / RECORD)
    data = load(tree, spec, [9], cache=tmp_path)
    np.testing.assert_allclose(data.samples, validation.samples, rtol=1e-5, atol=1e-6)


def test_a_lead_that_is_not_asked_for_may_be_in_any_unit(tree: Path, spec: ModelSpec) -> None:
    wanted, _ = read_signal(tree / RECORD, ("I", "II"))
    header("1000.0(0)/mV 16 0 52 1900 0 AVR", "1000.0(0)/mmHg 16 0 52 1900 0 AVR")(tree / RECORD)
    np.testing.assert_array_equal(read_signal(tree / RECORD, ("I", "II"))[0], wanted)
    with pytest.raises(DataError, match=rf"{RECORD}: signal AVR is in mmHg, which is no voltage and so no ECG$"):
        read_signal(tree / RECORD, spec.leads)


@pytest.mark.parametrize(
    "fault", [OSError(5, "Input/output error"), OSError(24, "Too many open files"), MemoryError()], ids=str
)
def test_a_recording_that_cannot_be_read_now_ends_it_and_nothing_is_kept(
    mini: Path,
    spec: ModelSpec,
    tmp_path: Path,
    validation: EcgData,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
) -> None:
    read = wfdb.rdrecord

    def refuse(name: str) -> wfdb.Record:
        if name.endswith("11200_lr"):
            raise fault
        return read(name)

    with monkeypatch.context() as patch:
        patch.setattr(wfdb, "rdrecord", refuse)
        with pytest.raises(ReadError, match=r"^cannot read .*11200_lr: ") as caught:
            load(mini, spec, [9], cache=tmp_path)
    assert caught.value.exit_code == 2
    assert (str(fault) or "not enough memory") in str(caught.value)
    assert folders(tmp_path) == []
    np.testing.assert_array_equal(load(mini, spec, [9], cache=tmp_path).samples, validation.samples)


@pytest.mark.parametrize("place", ["records100", "records100/01000/01123_lr.dat"])
def test_files_that_disappear_while_they_are_read_end_it_and_nothing_is_kept(
    tree: Path, spec: ModelSpec, tmp_path: Path, validation: EcgData, place: str
) -> None:
    def move(done: int, _total: int) -> None:
        if done == 2:
            (tree / place).rename(tmp_path / "moved")

    cache = tmp_path / "cache"
    with pytest.raises(ReadError, match=f"^{tree}: files changed or disappeared while they were read"):
        load(tree, spec, [9], cache=cache, progress=move)
    assert folders(cache) == []
    (tmp_path / "moved").rename(tree / place)
    np.testing.assert_array_equal(load(tree, spec, [9], cache=cache).samples, validation.samples)


def test_a_folder_whose_name_is_not_utf_8(mini: Path, spec: ModelSpec, tmp_path: Path, validation: EcgData) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        shutil.copytree(mini, root)
    except (OSError, shutil.Error):
        pytest.skip("this file system takes names in UTF-8 only")
    data = load(root, spec, [9], cache=tmp_path / "cache")
    np.testing.assert_array_equal(data.samples, validation.samples)


def test_nothing_readable(tree: Path, spec: ModelSpec, tmp_path: Path) -> None:
    for path in tree.glob("records100/*/*.dat"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 6 recordings of these folds can be read"):
        load(tree, spec, [9], cache=tmp_path / "cache")


def test_a_fold_without_recordings(mini: Path, spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no recordings of fold 5 are there"):
        load(mini, spec, [5], cache=tmp_path)
    with pytest.raises(DataError, match=r"PTB-XL has folds 1 to 10; there is no fold 12$"):
        load(mini, spec, [9, 12], cache=tmp_path)


def test_labels_that_the_data_set_does_not_know(mini: Path, spec: ModelSpec, tmp_path: Path) -> None:
    other = spec.model_copy(update={"labels": ("NORM", "AF", "NSR"), "thresholds": (0.5,) * 3})
    with pytest.raises(DataError, match="the model says AF, NSR, which PTB-XL does not know"):
        load(mini, other, [9], cache=tmp_path)


def test_superclasses_and_statements_can_be_asked_for_together(mini: Path, spec: ModelSpec, cache: Path) -> None:
    mixed = spec.model_copy(update={"labels": ("CD", "CRBBB", "NORM"), "thresholds": (0.5,) * 3})
    assert load(mini, mixed, [9], cache=cache).targets[0].tolist() == [1, 1, 0]


def test_an_interrupted_build_leaves_nothing_and_the_next_one_is_whole(
    mini: Path, spec: ModelSpec, tmp_path: Path, validation: EcgData
) -> None:
    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(mini, spec, [9], cache=tmp_path, progress=stop)
    assert folders(tmp_path) == []
    np.testing.assert_array_equal(load(mini, spec, [9], cache=tmp_path).samples, validation.samples)


@pytest.mark.parametrize("pid", ["1", str(os.getpid())], ids=["another process", "a process with our number"])
def test_what_a_killed_build_left_does_not_matter(
    mini: Path, spec: ModelSpec, tmp_path: Path, validation: EcgData, pid: str
) -> None:
    load(mini, spec, [9], cache=tmp_path)
    (name,) = folders(tmp_path)
    shutil.rmtree(tmp_path / name)
    stale = tmp_path / f"{name}.{pid}.partial"
    stale.mkdir()
    (stale / "signal.npy").write_bytes(b"\x93NUMPY half of it")
    data = load(mini, spec, [9], cache=tmp_path)
    np.testing.assert_array_equal(data.samples, validation.samples)
    assert name in folders(tmp_path)


def test_of_two_builds_at_once_the_first_one_stays(
    mini: Path, spec: ModelSpec, tmp_path: Path, validation: EcgData
) -> None:
    load(mini, spec, [9], cache=tmp_path / "other")
    (tmp_path / "cache").mkdir()

    def overtake(done: int, total: int) -> None:
        if done == total:
            (other,) = (tmp_path / "other").iterdir()
            shutil.copytree(other, tmp_path / "cache" / other.name)

    data = load(mini, spec, [9], cache=tmp_path / "cache", progress=overtake)
    np.testing.assert_array_equal(data.samples, validation.samples)
    assert folders(tmp_path / "cache") == folders(tmp_path / "other")


def test_a_cache_that_cannot_be_written(mini: Path, spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot keep prepared signals") as caught:
        load(mini, spec, [9], cache=tmp_path / "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("signal.npy", b"\x93NUMPY half of it"),
        ("index.json", b"{"),
        ("index.json", b"{}"),
        ("index.json", b'{"rows": [77], "first": [0], "length": [9], "unreadable": [], "padded": 0}'),
    ],
    ids=["signal", "index cut", "index empty", "index of others"],
)
def test_a_damaged_cache(mini: Path, spec: ModelSpec, tmp_path: Path, name: str, content: bytes) -> None:
    load(mini, spec, [9], cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged .*; delete it, and it is made anew") as caught:
        load(mini, spec, [9], cache=tmp_path)
    assert "\n" not in str(caught.value)


def data_of(lengths: list[int], window_samples: int, hop_samples: int, leads: int = 2) -> EcgData:
    """Recordings of samples that say where they are."""
    length = np.asarray(lengths, np.int64)
    none = np.zeros((len(lengths), 1), np.float32)
    return EcgData(
        table="test",
        record=np.arange(len(lengths)),
        samples=np.arange(leads * length.sum(), dtype=np.float32),
        first=leads * (np.cumsum(length) - length),
        length=length,
        leads=leads,
        window_samples=window_samples,
        hop_samples=hop_samples,
        targets=none,
        statements=none,
    )


def test_recordings_of_any_length_share_one_array() -> None:
    data = data_of([7, 3], 4, 2)
    assert data.signal_mv(1).tolist() == [[14, 15, 16], [17, 18, 19]]
    assert data.signal_mv(0).base is not None


def test_a_window_longer_than_its_recording_holds_the_last_value() -> None:
    data = data_of([7, 3], 4, 2)
    windows = data.windows(np.array([1, 0]), np.array([0, 3]))
    assert windows.dtype == np.float32
    assert windows.tolist() == [[[14, 15, 16, 16], [17, 18, 19, 19]], [[3, 4, 5, 6], [10, 11, 12, 13]]]
    windows[:] = 0
    assert data.samples[3] == 3


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 20), st.integers(1, 25))
def test_every_whole_window_is_cut_and_at_least_one(lengths: list[int], window_samples: int, hop_samples: int) -> None:
    rows, starts = data_of(lengths, window_samples, hop_samples).cut()
    wanted = []
    for row, length in enumerate(lengths):
        whole = range(0, length - window_samples + 1, hop_samples)
        wanted += [(row, start) for start in whole or [0]]
    assert list(zip(rows.tolist(), starts.tolist(), strict=True)) == wanted


def test_windows_are_those_that_the_runtime_emits(validation: EcgData, mini: Path, spec: ModelSpec) -> None:
    short = spec.model_copy(update={"window_s": 3.0, "hop_s": 1.4})
    data = replace(validation, window_samples=short.window_samples, hop_samples=short.hop_samples)
    rows, starts = data.cut()
    chain = SignalChain(short, 100.0)
    signal, _ = read_signal(mini / RECORD, spec.leads)
    emitted = [*chain.push(signal), *chain.flush()]
    assert [window.start for window in emitted] == starts[rows == 0].tolist()
    ours = data.windows(rows[rows == 0], starts[rows == 0])
    np.testing.assert_array_equal(ours, np.stack([window.signal_mv for window in emitted]))


def test_means_by_record() -> None:
    values = np.array([[1, 10], [2, 20], [6, 60], [5, -5]], np.float32)
    means = mean_by_record(values, np.array([0, 2, 2, 1]), 3)
    assert means.dtype == np.float32
    assert means.tolist() == [[1, 10], [5, -5], [4, 40]]
