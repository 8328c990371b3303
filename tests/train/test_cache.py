"""The folder of prepared signals: what it lists, what is removed from it, and what never is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.spec import ModelSpec
from train.cache import QUIET_S, default_cache, listed, remove, sweep
from train.dataset import load

M2jl = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
DAY_S = 86400
KEY = "0123456789abcdef01234567"


@pytest.fixture
def used(mini: Path, spec: ModelSpec, tmp_path: Path) -> Path:
    """A cache of fold 9 at twelve leads, and of folds 9 and 10 at lead I that nobody used for 40 days."""
    load(mini, spec.model_copy(update={"leads": ("I",)}), [9, 10], cache=tmp_path)
    (old,) = tmp_path.iterdir()
    age(old, 40 * DAY_S)
    load(mini, spec, [9], cache=tmp_path)
    return tmp_path


@pytest.fixture
def ended() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def age(folder: Path, age_s: float) -> None:
    for path in (*folder.iterdir(), folder):
        os.utime(path, 2 * (time.time() - age_s,))


def partial(cache: Path, pid: int, age_s: float = 2 * QUIET_S) -> Path:
    """What a preparation has written so far."""
    folder = cache / f"ptb-xl-{KEY}.{pid}.partial"
    folder.mkdir(parents=True)
    (folder / "signal.npy").write_bytes(bytes(1000))
    age(folder, age_s)
    return folder


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "m2jlnet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "m2jlnet"


def test_what_is_there_is_listed_with_what_it_is_for(used: Path, spec: ModelSpec) -> None:
    first, second = listed(used)
    assert (first.data, first.records, first.state) == ("ptb-xl", 12, "whole")
    assert first.about == {"leads": ["I"], "rate_hz": 100.0, "window_s": 10.0, "folds": [9, 10]}
    assert (second.records, second.about["leads"], second.about["folds"]) == (6, list(spec.leads), [9])
    assert first.unused_s == pytest.approx(40 * DAY_S, abs=60)
    assert second.unused_s < 60
    assert second.bytes == sum(path.stat().st_size for path in second.folder.iterdir()) > 6 * 12 * 1000 * 4
    assert listed(used / "none") == []


def test_loading_a_cache_is_a_use_of_it(used: Path, mini: Path, spec: ModelSpec) -> None:
    load(mini, spec.model_copy(update={"leads": ("I",)}), [9, 10], cache=used)
    assert [prepared.unused_s < 60 for prepared in listed(used)] == [True, True]


def test_caches_of_earlier_releases_and_damaged_ones_are_listed_too(used: Path) -> None:
    old, damaged = (prepared.folder / "index.json" for prepared in listed(used))
    fields = json.loads(old.read_text())
    del fields["about"]
    old.write_text(json.dumps(fields))
    damaged.write_text("[")
    assert {(prepared.records, len(prepared.about)) for prepared in listed(used)} == {(12, 0), (None, 0)}


def test_what_is_none_of_ours_is_neither_seen_nor_touched(used: Path, tmp_path: Path, ended: int) -> None:
    elsewhere = tmp_path / "elsewhere"
    for name in ("notes", f"ptb-xl-{KEY}0", "ptb-xl-0123.1.partial", f"x.{ended}.partial"):
        (elsewhere / name).mkdir(parents=True)
    (elsewhere / f"ptb-xl-{KEY}").symlink_to(listed(used)[0].folder)
    (elsewhere / f"cpsc2018-{KEY}").write_text("a file")
    before = sorted(elsewhere.iterdir())
    sweep(elsewhere)
    assert listed(elsewhere) == []
    assert sorted(elsewhere.iterdir()) == before


def test_what_a_killed_preparation_left_goes_when_the_next_cache_is_made(
    mini: Path, spec: ModelSpec, tmp_path: Path, ended: int
) -> None:
    left, ours = partial(tmp_path, ended), partial(tmp_path, os.getpid())
    alive, elsewhere = partial(tmp_path, os.getppid()), partial(tmp_path, 2**22 + ended, age_s=0)
    reused = partial(tmp_path, 1, age_s=2 * DAY_S)  # the first process of a machine always runs
    states = {prepared.folder: prepared.state for prepared in listed(tmp_path)}
    gone, kept = {left, ours, reused}, {alive, elsewhere}
    assert states == dict.fromkeys(gone, "left") | dict.fromkeys(kept, "unfinished")
    load(mini, spec, [9], cache=tmp_path)
    assert {path for path in gone | kept if path.exists()} == kept
    assert len(listed(tmp_path)) == 3


@pytest.fixture
def damaged(used: Path) -> Path:
    """The cache of fold 9 without its index."""
    folder = listed(used)[1].folder
    (folder / "index.json").unlink()
    return folder


def test_what_has_lost_its_index_is_told_and_made_anew(
    m2jl: M2jl, used: Path, damaged: Path, mini: Path, spec: ModelSpec
) -> None:
    assert {prepared.folder: prepared.state for prepared in listed(used)}[damaged] == "damaged"
    code, out, _ = m2jl("data", "cache", "--cache", used)
    assert code == 0
    assert f"{damaged.name}: 0.3 MB, used today, damaged\n" in out
    (damaged / "signal.npy").write_bytes(b"half of it")
    assert len(load(mini, spec, [9], cache=used)) == 6
    assert sorted(path.name for path in damaged.iterdir()) == ["index.json", "signal.npy"]
    assert [prepared.state for prepared in listed(used)] == ["whole", "whole"]


def test_what_has_lost_its_index_can_be_removed_by_its_name(m2jl: M2jl, used: Path, damaged: Path) -> None:
    code, _, err = m2jl("data", "cache", "--cache", used, "--prune", damaged.name)
    assert (code, err) == (0, "")
    assert [prepared.state for prepared in listed(used)] == ["whole"]


def test_what_another_process_has_made_anew_meanwhile_is_not_removed(
    used: Path, damaged: Path, mini: Path, spec: ModelSpec
) -> None:
    (seen,) = (prepared for prepared in listed(used) if prepared.folder == damaged)
    load(mini, spec, [9], cache=used)
    remove(seen)
    assert (damaged / "index.json").is_file()
    assert [prepared.state for prepared in listed(used)] == ["whole", "whole"]


LOAD_WHEN_TOLD = """\
import sys
from pathlib import Path
import wfdb
from runtime.spec import ModelSpec
from train.dataset import load
mini, cache, spec = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
print(len(load(Path(mini), ModelSpec.model_validate_json(spec), [9], cache=Path(cache))))
"""


def test_processes_that_find_the_same_damage_at_once_all_load_it(
    used: Path, damaged: Path, mini: Path, spec: ModelSpec
) -> None:
    command = [sys.executable, "-c", LOAD_WHEN_TOLD, str(mini), str(used), spec.model_dump_json()]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as ending:
        processes = [
            ending.enter_context(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True))
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        assert [process.communicate()[0] for process in processes] == ["6\n", "6\n"]
    assert len(list(used.iterdir())) == 2
    assert [prepared.state for prepared in listed(used)] == ["whole", "whole"]
    assert (damaged / "index.json").is_file()


def test_what_is_removed_is_made_anew(mini: Path, spec: ModelSpec, used: Path) -> None:
    for prepared in listed(used):
        remove(prepared)
    assert list(used.iterdir()) == []
    assert len(load(mini, spec, [9], cache=used)) == 6


def test_the_command_lists(m2jl: M2jl, used: Path) -> None:
    code, out, err = m2jl("data", "cache", "--cache", used)
    assert (code, err) == (0, "")
    old, new, total = out.splitlines()
    says = "0.0 MB, unused for 40 days, 12 recordings, lead I, 100 Hz, windows of 10 s, folds 9,10"
    assert old == f"{listed(used)[0].name}: {says}"
    assert new.endswith("used today, 6 recordings, 12 leads, 100 Hz, windows of 10 s, folds 9")
    assert total.startswith("2, 0.3 MB, in ")
    code, out, _ = m2jl("data", "cache", "--cache", used, "--json")
    assert [row["removed"] for row in json.loads(out)] == [False, False]
    assert [row["folder"] for row in json.loads(out)] == [str(prepared.folder) for prepared in listed(used)]


def test_the_command_removes_what_is_old(m2jl: M2jl, used: Path, ended: int) -> None:
    left, alive = partial(used, ended, 50 * DAY_S), partial(used, os.getppid())
    old, kept = (prepared for prepared in listed(used) if prepared.state == "whole")
    code, out, err = m2jl("data", "cache", "--cache", used, "--prune-days", 30)
    assert (code, err) == (0, "")
    first, second, total = out.splitlines()
    assert first.startswith(f"removed {left.name}: ")
    assert first.endswith("left unfinished by a killed process")
    assert second.startswith(f"removed {old.name}: ")
    assert total == f"removed 2, 0.0 MB, from {used}"
    assert sorted(used.iterdir()) == sorted([kept.folder, alive])
    code, out, _ = m2jl("data", "cache", "--cache", used, "--prune-days", 30)
    assert (code, out) == (0, f"removed 0, 0.0 MB, from {used}\n")


def test_the_command_removes_what_is_named(m2jl: M2jl, used: Path) -> None:
    old, new = listed(used)
    code, out, err = m2jl("data", "cache", "--cache", used, "--prune", new.name, "--json")
    assert (code, err) == (0, "")
    assert [(row["folder"], row["removed"]) for row in json.loads(out)] == [(str(new.folder), True)]
    assert list(used.iterdir()) == [old.folder]
    code, out, _ = m2jl("data", "cache", "--cache", used, "--prune", "ptb-xl")
    assert code == 0
    assert list(used.iterdir()) == []


def test_the_command_removes_of_what_is_named_only_what_is_old_too(m2jl: M2jl, used: Path) -> None:
    other = used / f"cpsc2018-{KEY}"
    shutil.copytree(listed(used)[0].folder, other)
    age(other, 50 * DAY_S)
    old, new = (prepared.folder for prepared in listed(used) if prepared.data == "ptb-xl")
    for name, days in (("cpsc2018", 60), (new.name, 30)):
        code, out, _ = m2jl("data", "cache", "--cache", used, "--prune", name, "--prune-days", days)
        assert (code, out) == (0, f"removed 0, 0.0 MB, from {used}\n")
    code, out, _ = m2jl("data", "cache", "--cache", used, "--prune", "ptb-xl", "--prune-days", 30, "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)] == [old.name]
    assert sorted(used.iterdir()) == sorted([other, new])


@pytest.mark.parametrize("name", ["cpsc2018", "ptb", KEY])
def test_a_name_that_is_not_there_removes_nothing(m2jl: M2jl, used: Path, name: str) -> None:
    before = sorted(used.iterdir())
    code, out, err = m2jl("data", "cache", "--cache", used, "--prune", "ptb-xl", "--prune", name)
    assert (code, out) == (2, "")
    assert err == f"m2jl: error: there is no {name} in {used}; m2jl data cache lists what there is\n"
    assert sorted(used.iterdir()) == before


def test_another_users_folder_in_a_shared_cache_is_passed_over(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = used / f"ptb-xl-{'0' * 24}"
    closed.mkdir()
    before = [prepared.name for prepared in listed(used) if prepared.folder != closed]
    entries = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return entries(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert [prepared.name for prepared in listed(used)] == before
    sweep(used)
    assert closed.is_dir()
