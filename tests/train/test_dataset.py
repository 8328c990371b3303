"""Prepared signals: what is in them, when they are made anew, and what is left out."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wfdb

import train.dataset
from runtime.filters import resample
from runtime.spec import ModelSpec
from train.dataset import EcgData, default_cache, load_ptbxl, read_signal
from train.errors import DataError

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
    np.testing.assert_array_equal(validation.signal_mv[0], wanted[:, : spec.window_samples])


def test_shapes_and_targets(validation: EcgData, spec: ModelSpec) -> None:
    assert validation.signal_mv.shape == (6, 12, 1000)
    assert validation.signal_mv.dtype == np.float32
    assert (len(validation), validation.without_files, validation.unreadable) == (6, 1, ())
    assert validation.record.tolist() == [1123, 10618, 11200, 11926, 18753, 21117]
    named = [[label for label, y in zip(spec.labels, row, strict=True) if y] for row in validation.targets]
    assert named == [["CD"], ["HYP"], ["NORM"], ["MI"], ["NORM"], ["STTC"]]


def test_a_recording_without_diagnosis_stays_as_all_negative(train_data: EcgData) -> None:
    assert not train_data.targets[train_data.record.tolist().index(21323)].any()


def test_leads_come_in_the_order_of_the_spec(mini: Path, spec: ModelSpec, cache: Path, validation: EcgData) -> None:
    two = load_ptbxl(mini, spec.model_copy(update={"leads": ("V2", "avr")}), [9], cache=cache)
    np.testing.assert_array_equal(two.signal_mv, validation.signal_mv[:, [7, 3]])


def test_a_model_of_another_rate(mini: Path, spec: ModelSpec, cache: Path) -> None:
    slow = spec.model_copy(update={"rate_hz": 50.0, "band_hz": (0.5, 20.0), "leads": ("II",)})
    data = load_ptbxl(mini, slow, [9], cache=cache)
    signal, rate_hz = read_signal(mini / RECORD, ["II"])
    np.testing.assert_array_equal(data.signal_mv[0], resample(signal, rate_hz, 50.0, high_hz=20.0)[:, :500])


def test_labels_are_not_part_of_the_cache(mini: Path, spec: ModelSpec, tmp_path: Path) -> None:
    load_ptbxl(mini, spec, [9], cache=tmp_path)
    two = spec.model_copy(update={"labels": ("HYP", "MI"), "thresholds": (0.5, 0.5)})
    data = load_ptbxl(mini, two, [9], cache=tmp_path)
    assert len(folders(tmp_path)) == 1
    assert data.targets.tolist() == [[0, 0], [1, 0], [0, 0], [0, 1], [0, 0], [0, 0]]


def test_the_cache_is_made_once_and_used_again(
    mini: Path, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    first = load_ptbxl(mini, spec, [9], cache=tmp_path, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(k, 6) for k in range(1, 7)]
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "signal.npy"]
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    def never(*_: object) -> None:
        raise AssertionError("a recording was read again")

    monkeypatch.setattr(train.dataset, "read_signal", never)
    second = load_ptbxl(mini, spec, [9], cache=tmp_path)
    np.testing.assert_array_equal(first.signal_mv, second.signal_mv)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times


@pytest.mark.parametrize(
    "update",
    [{"leads": ("I",)}, {"band_hz": (0.5, 30.0)}, {"window_s": 8.0}],
    ids=["leads", "band", "window"],
)
def test_another_signal_spec_makes_a_new_cache(
    mini: Path, spec: ModelSpec, tmp_path: Path, update: dict[str, object]
) -> None:
    load_ptbxl(mini, spec, [9], cache=tmp_path)
    data = load_ptbxl(mini, spec.model_copy(update=update), [9], cache=tmp_path)
    assert len(folders(tmp_path)) == 2
    assert data.signal_mv.shape[2] == update.get("window_s", 10.0) * 100  # type: ignore[operator]


def test_a_changed_recording_makes_a_new_cache(tree: Path, spec: ModelSpec, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = load_ptbxl(tree, spec, [9], cache=cache)
    path = (tree / RECORD).with_suffix(".dat")
    samples = np.fromfile(path, np.int16)
    (2 * samples).tofile(path)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
    after = load_ptbxl(tree, spec, [9], cache=cache)
    assert len(folders(cache)) == 2
    np.testing.assert_allclose(after.signal_mv[0], 2 * before.signal_mv[0], atol=1e-5)
    np.testing.assert_array_equal(after.signal_mv[1:], before.signal_mv[1:])


def cut_short(path: Path) -> None:
    data = path.with_suffix(".dat").read_bytes()
    path.with_suffix(".dat").write_bytes(data[: len(data) // 2])


def not_a_number(path: Path) -> None:
    samples = np.fromfile(path.with_suffix(".dat"), np.int16)
    samples[12 * 500 + 3] = -32768  # what WFDB's format 16 keeps for "no value"
    samples.tofile(path.with_suffix(".dat"))


def five_seconds(path: Path) -> None:
    replace_in(path.with_suffix(".hea"), " 100 1000", " 100 500")
    cut_short(path)


def header(old: str, new: str) -> Callable[[Path], None]:
    return lambda path: replace_in(path.with_suffix(".hea"), old, new)


DAMAGE = {
    "cut short": (cut_short, "ValueError"),
    "not a number": (not_a_number, "not numbers"),
    "five seconds": (five_seconds, "5 s long, the window is 10 s"),
    "a lead is missing": (header(" AVL\n", " MLII\n"), "lead AVL is not in it"),
    "a rate too low": (header(" 100 1000", " 50 1000"), "50 Hz"),
    "no rate": (header(" 100 1000", " 0 1000"), "rate"),
    "no signal": (lambda path: path.with_suffix(".hea").write_text("01123_lr 0 100 1000\n"), "no signal"),
    "no header": (lambda path: path.with_suffix(".hea").write_bytes(bytes(range(256))), "01123_lr"),
}


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
        data = load_ptbxl(tree, spec, [9], cache=tmp_path / "cache")
    (warning,) = caplog.messages
    assert RECORD in warning
    assert says in warning
    assert "\n" not in warning
    assert data.unreadable == (RECORD,)
    np.testing.assert_array_equal(data.record, validation.record[1:])
    np.testing.assert_array_equal(data.signal_mv, validation.signal_mv[1:])
    np.testing.assert_array_equal(data.targets, validation.targets[1:])
    # The cache remembers it.
    assert load_ptbxl(tree, spec, [9], cache=tmp_path / "cache").unreadable == (RECORD,)


def test_nothing_readable(tree: Path, spec: ModelSpec, tmp_path: Path) -> None:
    for path in tree.glob("records100/*/*.dat"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 6 recordings of these folds can be read"):
        load_ptbxl(tree, spec, [9], cache=tmp_path / "cache")


def test_a_fold_without_recordings(mini: Path, spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no recordings of fold 5, 12 are there"):
        load_ptbxl(mini, spec, [5, 12], cache=tmp_path)


def test_an_interrupted_build_leaves_nothing_and_the_next_one_is_whole(
    mini: Path, spec: ModelSpec, tmp_path: Path, validation: EcgData
) -> None:
    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_ptbxl(mini, spec, [9], cache=tmp_path, progress=stop)
    assert folders(tmp_path) == []
    np.testing.assert_array_equal(load_ptbxl(mini, spec, [9], cache=tmp_path).signal_mv, validation.signal_mv)


@pytest.mark.parametrize("pid", ["1", str(os.getpid())], ids=["another process", "a process with our number"])
def test_what_a_killed_build_left_does_not_matter(
    mini: Path, spec: ModelSpec, tmp_path: Path, validation: EcgData, pid: str
) -> None:
    load_ptbxl(mini, spec, [9], cache=tmp_path)
    (name,) = folders(tmp_path)
    shutil.rmtree(tmp_path / name)
    stale = tmp_path / f"{name}.{pid}.partial"
    stale.mkdir()
    (stale / "signal.npy").write_bytes(b"\x93NUMPY half of it")
    data = load_ptbxl(mini, spec, [9], cache=tmp_path)
    np.testing.assert_array_equal(data.signal_mv, validation.signal_mv)
    assert name in folders(tmp_path)


def test_of_two_builds_at_once_the_first_one_stays(
    mini: Path, spec: ModelSpec, tmp_path: Path, validation: EcgData
) -> None:
    load_ptbxl(mini, spec, [9], cache=tmp_path / "other")
    (tmp_path / "cache").mkdir()

    def overtake(done: int, total: int) -> None:
        if done == total:
            (other,) = (tmp_path / "other").iterdir()
            shutil.copytree(other, tmp_path / "cache" / other.name)

    data = load_ptbxl(mini, spec, [9], cache=tmp_path / "cache", progress=overtake)
    np.testing.assert_array_equal(data.signal_mv, validation.signal_mv)
    assert folders(tmp_path / "cache") == folders(tmp_path / "other")


def test_a_cache_that_cannot_be_written(mini: Path, spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot keep prepared signals") as caught:
        load_ptbxl(mini, spec, [9], cache=tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "m2jlnet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "m2jlnet"
