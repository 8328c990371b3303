"""What is put in its place is on the disk before its name is, and a folder is one process's at a time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from train.errors import CheckpointError
from train.files import alone_in, put_in_place


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the disk, and what is renamed, in order, by name."""
    made: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(number: int) -> None:
        made.append(f"sync {Path(os.readlink(f'/proc/self/fd/{number}')).name}")
        fsync(number)

    def renamed(source: Path, target: Path) -> None:
        made.append(f"rename {source.name} {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return made


def test_a_file_reaches_the_disk_before_its_name_does(tmp_path: Path, calls: list[str]) -> None:
    partial, target = tmp_path / "a.1.partial", tmp_path / "a"
    target.write_text("old")
    partial.write_text("new")
    put_in_place(partial, target)
    assert calls == ["sync a.1.partial", "rename a.1.partial a", f"sync {tmp_path.name}"]
    assert target.read_text() == "new"
    assert not partial.exists()


def test_a_folder_goes_with_all_that_is_in_it(tmp_path: Path, calls: list[str]) -> None:
    partial, target = tmp_path / "cache.1.partial", tmp_path / "cache"
    partial.mkdir()
    for name in ("index.json", "signal.npy"):
        (partial / name).write_text(name)
    put_in_place(partial, target)
    assert sorted(calls[:2]) == ["sync index.json", "sync signal.npy"]
    assert calls[2:] == ["sync cache.1.partial", "rename cache.1.partial cache", f"sync {tmp_path.name}"]
    assert (target / "index.json").read_text() == "index.json"


def test_a_file_that_does_not_reach_the_disk_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    partial, target = tmp_path / "a.1.partial", tmp_path / "a"
    target.write_text("old")
    partial.write_text("new")
    with pytest.raises(OSError, match="No space left"):
        put_in_place(partial, target)
    assert target.read_text() == "old"


def test_a_file_system_that_cannot_sync_folders_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def of_files(number: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{number}")).is_dir():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(number)

    monkeypatch.setattr(os, "fsync", of_files)
    partial = tmp_path / "a.1.partial"
    partial.write_text("new")
    put_in_place(partial, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "new"


def test_a_folder_is_one_process_s_until_that_ends_by_whatever(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    code = "import sys, train.files as f\nwith f.alone_in(f.Path(sys.argv[1])): print('held', flush=True), input()"
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        unfinished = folder / f"last.safetensors.{other.pid}.partial"
        unfinished.write_text("half")
        with pytest.raises(CheckpointError, match=rf"^another process is at work in {folder}: "), alone_in(folder):
            pass
        assert unfinished.exists()
        other.send_signal(signal.SIGKILL)
    for _ in range(2):  # it lets go at the end, too
        with alone_in(folder):
            assert not unfinished.exists()
        assert [path.name for path in folder.iterdir()] == [".lock"]
    with alone_in(folder), alone_in(folder):  # who holds it may hold it again
        pass
    with alone_in(folder), subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as other:
        with alone_in(folder):
            pass
        assert "another process is at work in" in other.communicate()[1]


def test_a_place_that_cannot_be_written_is_no_folder_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(CheckpointError, match=rf"^cannot write to {place}: "), alone_in(place):
            pass
