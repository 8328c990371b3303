"""`m2jl train` as a command: real runs, killed and gone on with, every preset, and errors of one line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

import train.dataset
import train.model
import train.trainer
from train import checkpoint
from train.cli import stepper
from train.model import NetConfig
from train.presets import PRESETS

M2jl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def small_base(monkeypatch: pytest.MonkeyPatch, small: NetConfig) -> None:
    """The preset's network, made small."""
    monkeypatch.setitem(train.model.NETS, "base", small)


@contextmanager
def process(*arguments: object, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`m2jl train ARGUMENTS` as a process of one thread, ended afterwards whatever happens."""
    running = subprocess.Popen(
        [sys.executable, "-m", "m2jl", "train", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def figures(log: Path) -> list[dict[str, float]]:
    """The log's lines without the time they took."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_one_epoch_of_the_real_preset_as_a_process(mini: Path, tmp_path: Path) -> None:
    arguments = ("ptbxl-super", "--data", mini, "--epochs", "1", "--cache", tmp_path / "c", "--out", "run")
    with process(*arguments, folder=tmp_path) as running:
        out, err = running.communicate(timeout=100)
    assert running.returncode == 0, err
    assert out.startswith("run/best.safetensors: epoch 1, validation macro-AUC 0.")
    assert "14 recordings to train on, 6 to choose on, 1 named without files, 0 unreadable and left out; base, " in err
    net, info = checkpoint.load_network(tmp_path / "run" / "best.safetensors")
    assert info["preset"] == "ptbxl-super"
    assert (info["train_folds"], info["validation_fold"], info["records"]) == ([1, 2, 3, 4, 5, 6, 7, 8], 9, 14)
    # Whether refitting finds pacing on these few recordings is the luck of a network of one epoch.
    assert replace(net.config, silencing=0) == PRESETS["ptbxl-super"].network(71)
    assert net.spec.parameters == train.model.count_parameters(net)


@pytest.fixture(scope="module")
def longer(mini: Path, cache: Path) -> tuple[object, ...]:
    """A command whose epochs have seven steps each."""
    return (
        *("ptbxl-super", "--data", mini, "--cache", cache, "--net", "nano"),
        *("--epochs", 4, "--batch", 2, "--device", "cpu"),
    )


def wait_for(path: Path, running: subprocess.Popen[str]) -> None:
    until_s = time.monotonic() + 100
    while not path.exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until_s
        time.sleep(0.005)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on_to_the_same_figures(
    m2jl: M2jl, longer: tuple[object, ...], tmp_path: Path, how: signal.Signals
) -> None:
    """Stopped in the middle of its second epoch, from outside."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    with process(*longer, "--out", out, folder=tmp_path) as running:
        wait_for(out / "curves.svg", running)  # the last file of the first epoch
        first = json.loads((out / "log.jsonl").read_text().splitlines()[0])
        time.sleep(0.4 * first["seconds"])
        running.send_signal(how)
        said, err = running.communicate(timeout=60)
    if how == signal.SIGINT:
        assert running.returncode == 130
        assert said == ""
        *_, line = err.strip().splitlines()
        assert line == f"stopped; {out} holds the last whole epoch if there was one; the same command goes on from it"
        assert "Traceback" not in err
    else:
        assert running.returncode == -how
    kept = checkpoint.load(out / "last.safetensors")[1]["history"]
    assert 1 <= len(kept) < 4

    code, _, err = m2jl("train", *longer, "--out", out)
    assert code == 0, err
    assert "epoch   1/4" not in err
    assert "epoch   4/4" in err
    code, _, err = m2jl("train", *longer, "--out", whole)
    assert code == 0, err
    assert figures(out / "log.jsonl") == figures(whole / "log.jsonl")
    ours, theirs = (checkpoint.load(folder / "last.safetensors")[0] for folder in (out, whole))
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.usefixtures("small_base")
def test_the_same_command_again_goes_on_and_another_is_refused(
    m2jl: M2jl, mini: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "ptbxl-super", "--data", mini, "--cache", cache, "--out", tmp_path / "run", "--epochs", 3)
    epoch = train.trainer._Epochs.train

    def interrupted(self: Any, number: int, hooks: Any) -> dict[str, float]:
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, number, hooks)

    with monkeypatch.context() as patch:
        patch.setattr(train.trainer._Epochs, "train", interrupted)
        code, out, err = m2jl(*command)
    assert (code, out) == (130, "")
    assert err.count("the same command goes on from it\n") == 1

    code, out, err = m2jl(*command)
    assert code == 0, err
    assert "epoch   3/3" in err
    assert "epoch   1/3" not in err
    assert out.startswith(str(tmp_path / "run" / "best.safetensors"))

    for other in ((*command[:-1], 4), (*command, "--seed", 2), (*command, "--batch", 4), (*command, "--patience", 1)):
        code, _, err = m2jl(*other)
        assert code == 2
        assert "holds a run with another fit" in err.strip().splitlines()[-1]


def test_ctrl_c_while_recordings_are_read_ends_it_too(
    m2jl: M2jl, mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train.dataset, "read_signal", interrupted)
    code, out, err = m2jl("train", "ptbxl-super", "--data", mini, "--cache", tmp_path / "c", "--out", tmp_path / "run")
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert list((tmp_path / "c").iterdir()) == []


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(
    m2jl: M2jl, mini: Path, cpsc_tree: Path, cinc_tree: Path, tmp_path: Path, cache: Path, name: str
) -> None:
    data = {"cpsc2018": cpsc_tree, "cinc2017": cinc_tree}.get(name, mini)
    out = tmp_path / "run"
    code, said, err = m2jl(
        *("train", name, "--data", data, "--cache", cache, "--out", out, "--net", "nano"),
        *("--epochs", 1, "--batch", 4),
    )
    assert code == 0, err
    assert said.startswith(f"{out / 'best.safetensors'}: epoch 1, validation macro-AUC ")
    net, info = checkpoint.load_network(out / "best.safetensors")
    assert (info["preset"], info["net_name"]) == (name, "nano")
    assert net.spec.labels == PRESETS[name].spec.labels
    losses = {key for key in figures(out / "log.jsonl")[0] if key.startswith("loss_")}
    wanted = {"loss_classify"}
    wanted |= {"loss_contrast"} if PRESETS[name].contrastive else set()
    wanted |= {"loss_auxiliary"} if PRESETS[name].auxiliary else set()
    assert losses == wanted


def test_other_leads_rate_window_noise_and_precision(
    m2jl: M2jl, mini: Path, fixtures: Path, tmp_path: Path, cache: Path
) -> None:
    """All wishes at once."""
    out = tmp_path / "run"
    code, _, err = m2jl(
        *("train", "ptbxl-super", "--data", mini, "--cache", cache, "--out", out, "--net", "nano", "--leads", "I, V1"),
        *("--rate-hz", 125, "--window-s", 5, "--epochs", 5, "--batch", 7, "--seed", 3, "--patience", 1),
        *("--noise", fixtures / "nstdb", "--device", "cpu", "--precision", "bf16"),
    )
    assert code == 0, err
    assert "nano, " in err
    assert ", on cpu in bf16-mixed\n" in err
    net, info = checkpoint.load_network(out / "best.safetensors")
    assert (net.spec.leads, net.spec.rate_hz, net.spec.window_samples) == (("I", "V1"), 125.0, 625)
    # Release 1.0.1 has more recordings than the excerpt's table names.
    assert (net.spec.trained_on, net.spec.thresholds_from) == ("PTB-XL folds 1-8, 125 Hz", "PTB-XL fold 9")
    fit = info["fit"]
    assert (fit["epochs"], fit["batch"], fit["seed"], fit["patience"]) == (5, 7, 3, 1)
    assert fit["augmentation"]["noise"] == pytest.approx(0.3)
    assert {t.dtype for t in net.state_dict().values() if t.is_floating_point()} == {torch.float32}


@pytest.mark.usefixtures("small_base")
def test_second_opinions_are_made_once_and_shared_between_seeds(
    m2jl: M2jl, mini: Path, tmp_path: Path, cache: Path
) -> None:
    held = tmp_path / "held"
    command = ("train", "ptbxl-super", "--data", mini, "--cache", cache, "--batch", 8)
    crossed = (*command, "--epochs", 1, "--cross-fit", 1, "--held", held)
    code, _, err = m2jl(*crossed, "--out", tmp_path / "first")
    assert code == 0, err
    assert err.count("epoch   1/1") == 8  # seven folds have recordings, and the network itself
    assert sorted(path.name for path in held.iterdir()) == [f"1-{fold}" for fold in (1, 2, 3, 4, 6, 7, 8)]
    code, _, err = m2jl(*crossed, "--out", tmp_path / "second", "--seed", 2)
    assert code == 0, err
    assert err.count("epoch   1/1") == 1
    first, second = (checkpoint.load(tmp_path / name / "last.safetensors")[1] for name in ("first", "second"))
    assert first["opinions"] == second["opinions"]
    assert "loss_teacher" in first["history"][0]
    # Networks of another size and schedule take the same ones.
    for name, options in (("other", ("--net", "nano")), ("tuned", ("--start", tmp_path / "first/best.safetensors"))):
        code, _, err = m2jl(*command, "--held", held, "--epochs", 2, *options, "--out", tmp_path / name)
        assert code == 0, err
        assert err.count("epoch   2/2") == err.count("epoch   1/2") == 1
        assert checkpoint.load(tmp_path / name / "last.safetensors")[1]["opinions"] == first["opinions"]
    # The same folder without them would be another run.
    code, _, err = m2jl(*command, "--epochs", 1, "--out", tmp_path / "first")
    assert code == 2
    assert "holds a run with another opinion" in err.strip().splitlines()[-1]


@pytest.mark.usefixtures("small_base")
def test_a_network_is_born_again_from_its_teachers(m2jl: M2jl, mini: Path, tmp_path: Path, cache: Path) -> None:
    command = ("train", "ptbxl-super", "--data", mini, "--cache", cache, "--epochs", 1, "--batch", 8)
    for seed in (1, 2):
        code, _, err = m2jl(*command, "--seed", seed, "--out", tmp_path / str(seed))
        assert code == 0, err
    teachers = [tmp_path / str(seed) / "best.safetensors" for seed in (1, 2)]
    asked = ("--teacher", teachers[0], "--teacher", teachers[1])
    code, _, err = m2jl(*command, *asked, "--mixup", 0.4, "--out", tmp_path / "again")
    assert code == 0, err
    assert "loss_teacher" in figures(tmp_path / "again" / "log.jsonl")[0]
    assert len(checkpoint.load(tmp_path / "again" / "best.safetensors")[1]["teachers_sha256"]) == 2
    code, _, err = m2jl(*command, *asked, "--leads", "I,II", "--out", tmp_path / "two-leads")
    assert code == 2
    assert "has leads" in err.strip().splitlines()[-1]
    tuned = ("--start", teachers[0], "--gain", 0, "--peak-rate", 1e-4, "--out", tmp_path / "tuned")
    code, _, err = m2jl(*command, *tuned)
    assert code == 0, err
    _, info = checkpoint.load(tmp_path / "tuned" / "best.safetensors")
    assert info["start_sha256"] == hashlib.sha256(teachers[0].read_bytes()).hexdigest()
    assert (info["fit"]["peak_rate"], info["fit"]["augmentation"]["gain"]) == (1e-4, 0.0)


def test_lists(m2jl: M2jl) -> None:
    code, out, _ = m2jl("train", "--list")
    assert code == 0
    for name in (*PRESETS, *train.model.NETS):
        assert name in out


def test_help_shows_an_example(m2jl: M2jl) -> None:
    for command in ("train", "evaluate"):
        code, out, _ = m2jl(command, "--help")
        assert code == 0
        assert f"Example: m2jl {command} " in out


SUPER = ("ptbxl-super", "--data", "MINI")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ptbxl-sub", "--data", "."), "there is no preset 'ptbxl-sub'; there are: ptbxl-super"),
        (("ptbxl-super", "--data", "no-such-folder"), "there is no folder no-such-folder"),
        (("ptbxl-super", "--data", "EMPTY"), "holds no known data set"),
        (("cinc2017", "--data", "MINI"), "which PTB-XL does not know"),
        ((*SUPER, "--net", "huge"), "there is no network 'huge'; there are: base, small, tiny, nano"),
        ((*SUPER, "--leads", "I,XX,Y"), "there is no lead 'XX', 'Y'; there are: I, II, III, aVR, "),
        ((*SUPER, "--leads", ""), "there is no lead ''; there are: "),
        ((*SUPER, "--leads", "I,I"), "ptbxl-super: leads must be named, each once"),
        ((*SUPER, "--window-s", "0.003"), "window of 0.003 s is 0.3 samples at 100 Hz"),
        ((*SUPER, "--window-s", "nan"), "window_s"),
        ((*SUPER, "--rate-hz", "60"), "band 0.5-40 Hz does not lie under half of 60 Hz"),
        ((*SUPER, "--rate-hz", "-5"), "rate_hz"),
        ((*SUPER, "--noise", "EMPTY"), "bw.hea is not there; `m2jl data get nstdb` fetches it"),
        ((*SUPER, "--out", "FILE"), "cannot write to "),
    ],
)
def test_what_a_user_can_mend_ends_with_2_and_one_line(
    m2jl: M2jl, mini: Path, cache: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    places = {"MINI": mini, "EMPTY": tmp_path / "empty", "FILE": tmp_path / "file" / "run"}
    out = () if "--out" in arguments else ("--out", tmp_path / "run")
    code, said, err = m2jl("train", *(places.get(a, a) for a in arguments), *out, "--cache", cache)
    assert (code, said) == (2, "")
    *before, line = err.strip().splitlines()
    # Where all but the place to write to is well, the recordings have been told of.
    assert len(before) == ("--out" in arguments)
    assert line.startswith("m2jl: error: ")
    assert says in line
    assert not (tmp_path / "run").exists()


def test_a_lead_that_no_recording_has_is_one_line(
    m2jl: M2jl, cinc_tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("--leads", "I,V1", "--cache", tmp_path / "c", "--out", tmp_path / "run")
    code, said, err = m2jl("train", "cinc2017", "--data", cinc_tree, *options)
    assert (code, said) == (2, "")
    (line,) = err.strip().splitlines()
    assert "lead V1" in line
    assert caplog.messages == []


def test_a_gpu_that_is_not_there_is_no_reason_to_train_on_something_else(
    m2jl: M2jl, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = m2jl("train", "ptbxl-super", "--data", mini, "--device", "cuda")
    assert code == 2
    assert "there is no CUDA device" in err


@pytest.mark.usefixtures("small_base")
def test_a_batch_too_large_for_the_memory_is_told_by_its_option(
    m2jl: M2jl, mini: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines.")

    monkeypatch.setattr(train.trainer, "update_average", full)
    code, out, err = m2jl(
        "train", "ptbxl-super", "--data", mini, "--cache", cache, "--out", tmp_path / "run", "--batch", 6
    )
    assert (code, out) == (2, "")
    line = err.strip().splitlines()[-1]
    assert line == "m2jl: error: cpu has too little memory for batches of 6: try a smaller --batch"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "PRESET"),
        (("ptbxl-super",), "--data"),
        (("ptbxl-super", "--epochs", "0"), "--epochs"),
        (("ptbxl-super", "--batch", "1"), "--batch"),
        (("ptbxl-super", "--patience", "-1"), "--patience"),
        (("ptbxl-super", "--cross-fit", "-1"), "--cross-fit"),
        (("ptbxl-super", "--precision", "fp8"), "--precision"),
        (("ptbxl-super", "--device", "tpu"), "--device"),
        (("ptbxl-super", "--positives", "some"), "--positives"),
        (("ptbxl-super", "--gain", "-1"), "--gain"),
        (("ptbxl-super", "--peak-rate", "0"), "--peak-rate"),
        (("ptbxl-super", "--data", ".", "--start", "absent.safetensors"), "absent.safetensors"),
        (("ptbxl-super", "--data", ".", "--teacher", "absent.safetensors"), "absent.safetensors"),
        (("ptbxl-super", "--data", ".", "--teacher", __file__, "--cross-fit", "2"), "--teacher"),
        (("ptbxl-super", "--data", ".", "--teacher", __file__, "--held", "."), "--teacher"),
        (("ptbxl-super", "--data", ".", "--start", __file__, "--cross-fit", "2"), "--held alone"),
    ],
)
def test_a_wrong_call_names_the_argument(m2jl: M2jl, arguments: tuple[str, ...], says: str) -> None:
    code, _, err = m2jl("train", *arguments)
    assert code == 2
    assert says in err


def time_left(monkeypatch: pytest.MonkeyPatch, steps: list[tuple[float, int]], total: int) -> list[str]:
    """What a log file is told while steps are done at these instants, in seconds."""
    clock = {"now_s": 0.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now_s"])
    said = io.StringIO()
    bar = Progress(console=Console(file=said, width=200), disable=True)
    step = stepper(bar, bar.add_task("training", total=None))
    for clock["now_s"], done in steps:
        step(done, total)
    return said.getvalue().splitlines()


def test_the_time_left_is_reckoned_from_what_this_run_has_done(monkeypatch: pytest.MonkeyPatch) -> None:
    # Gone on with at step 1000 of 2000, after a minute of preparation; 3 s a step.
    gone_on = [(60.0 + 3 * k, 1000 + k) for k in range(1, 12)]
    assert time_left(monkeypatch, gone_on, 2000) == ["1002 of 2000, 50 min left"]


def test_the_time_left_begins_anew_with_another_network(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [(3.0 * k, k) for k in range(1, 122)]
    second = [(363.0 + 3 * k, k) for k in range(1, 11)]
    told = time_left(monkeypatch, first + second, 121)
    assert told[0] == "10 of 121, 6 min left"
    assert told[-2:] == ["120 of 121, 0 min left", "9 of 121, 6 min left"]


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--list")], ids=" ".join)
def test_a_table_that_nobody_reads_to_its_end_is_no_error(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """As in `m2jl train --list | head -1`: the pipe's other end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "m2jl", *arguments], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")
