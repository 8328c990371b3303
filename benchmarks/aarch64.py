"""Whether a model computes on aarch64 what it computes here: front end and back end, in the same releases, emulated.

    python benchmarks/aarch64.py [MODEL ...] [--cpu NAME ...] [--folder FOLDER]

Debian's aarch64 Python and the aarch64 wheels of the numpy, onnxruntime and pydantic that are installed here are put
into a folder (230 MB, kept for the next time; nothing of this machine is changed) and run by qemu (Debian's
qemu-user-static) as each of `CPUS`.  ONNX Runtime chooses its kernels by what `/proc/cpuinfo` says too; in qemu before
8.1 that is this machine's own, on which 1.28 and later crash, so the folder has one of the processor in question.

The signal is the model's golden windows, or for a model without any those of a shipped model of the same input, at each
of `GAINS`.  A line is printed per model and processor, with the largest differences from here: of the model's inputs,
which the front end makes, and of its logits.

Exit code 0: all logits lie within the self-test's tolerance; 1: some do not; 2: they could not be compared.  Needs
Debian's apt; the emulator shows what is computed, not how fast.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.chain import batch_windows
from runtime.errors import RunError
from runtime.golden import GOLDEN_KEY, TOLERANCE, decode
from runtime.model import SHIPPED, Model, find_model, read_model
from runtime.spec import ModelSpec

Float32Array = NDArray[np.float32]

# Processor -> qemu's name for it, and the part number of /proc/cpuinfo.
CPUS = {
    "cortex-a72": ("cortex-a72", "0xd08"),  # Raspberry Pi 4: no dot product
    "cortex-a76": ("cortex-a76", "0xd0b"),  # Raspberry Pi 5; what networks use of Jetson Orin's A78AE is the same
    # Jetson Thor's V3AE is near it: SVE of 128 bits and int8 matrix products.  qemu 7 knows the parts, not the whole.
    "neoverse-v2": ("max,sme=off,sve-max-vq=1", "0xd4f"),
}
GAINS = (1.0, -1.0, 0.7, 1.4)
WHEELS = ("numpy", "onnxruntime", "pydantic")
# What wheels call a C library no newer than Debian 12's.
PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
CPUINFO = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {}\n"
REPOSITORY = Path(__file__).resolve().parent.parent
GUEST = "import sys, aarch64; aarch64.compute_in_emulator(*sys.argv[1:])"


class SetupError(Exception):
    """What keeps the comparison from being made, in one line."""


def run(*command: str | Path, what: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command quietly.

    Raises:
        SetupError: it is not there, or fails; with its last line that is not a warning.
    """
    try:
        subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, env=env)
    except FileNotFoundError as error:
        raise SetupError(f"{what}: {command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        said = [
            line
            for line in error.stderr.splitlines()
            if line.strip() and not line.startswith(("W:", "WARNING", "onnxruntime cpuid"))
        ]
        raise SetupError(f"{what}: {said[-1] if said else f'{command[0]} ended with {error.returncode}'}") from error


def emulator() -> str:
    """The program that runs one of aarch64's."""
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if found is None:
        raise SetupError("qemu-aarch64-static is not installed: apt-get install qemu-user-static")
    return found


def make_root(folder: Path) -> Path:
    """An aarch64 Python with all that it needs, from the Debian that this machine's apt knows."""
    root = folder / "root"
    if root.exists():
        return root
    print(f"getting Debian's aarch64 Python into {folder}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        # Lists, state and downloads of apt's own: this machine's stay as they are, and nobody need be root.
        apt, made = Path(name) / "apt", Path(name) / "root"
        for part in ("lists/partial", "archives/partial"):
            (apt / part).mkdir(parents=True)
        (apt / "status").touch()
        options = (
            "APT::Architecture=arm64",
            "APT::Architectures::=arm64",
            "APT::Install-Recommends=false",
            "APT::Sandbox::User=root",
            "APT::Update::Error-Mode=any",
            f"Dir::State={apt}",
            f"Dir::State::status={apt / 'status'}",
            f"Dir::Cache={apt}",
        )
        apt_get = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
        run(*apt_get, "update", what="the list of Debian's aarch64 packages")
        run(*apt_get, "install", "-y", "--download-only", "python3", "libstdc++6", what="Debian's aarch64 Python")
        made.mkdir()
        for package in sorted((apt / "archives").glob("*.deb")):
            run("dpkg-deb", "-x", package, made, what=package.name)
        if not (made / "lib").exists():  # from Debian 13 on, a link that no package brings
            (made / "lib").symlink_to("usr/lib")
        (made / "proc").mkdir()
        made.rename(root)
    return root


def make_site(folder: Path, python: Path) -> Path:
    """The wheels of the releases that are installed here, for that Python."""
    try:
        wheels = [f"{name}=={version(name)}" for name in WHEELS]
    except PackageNotFoundError as error:
        raise SetupError(f"{error.name} is not installed here: there is nothing to compare with") from error
    site = folder / "-".join((python.name, *wheels)).replace("==", "")
    if site.exists():
        return site
    print(f"getting aarch64 wheels: {', '.join(wheels)}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        made = Path(name) / "site"
        pip: list[str | Path] = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--target",
            made,
            "--only-binary",
            ":all:",
        ]
        target = ["--implementation", "cp", "--python-version", python.name.removeprefix("python")]
        for platform in PLATFORMS:
            target += ["--platform", f"{platform}_aarch64"]
        run(*pip, *target, *wheels, what="aarch64 wheels")
        made.rename(site)
    return site


def signal_for(path: Path) -> tuple[ModelSpec, Float32Array]:
    """A model's spec, and windows (windows, leads, samples) in mV for it.

    Raises:
        SetupError: neither the model nor a shipped one of the same input has golden windows.
        ModelError: the file cannot be used.
    """
    spec = read_model(path)[1]
    for candidate in (path, *sorted(SHIPPED.glob("*.onnx"))):
        file, other = read_model(candidate)
        same = (other.leads, other.rate_hz, other.window_samples) == (spec.leads, spec.rate_hz, spec.window_samples)
        if same and GOLDEN_KEY in file.metadata:
            signal_mv = decode(file.metadata[GOLDEN_KEY], other).signal_mv
            return spec, np.concatenate([np.float32(gain) * signal_mv for gain in GAINS])
    raise SetupError(f"{path} carries no golden windows, and no shipped model takes the same leads, rate and window")


def compute(path: Path, signal_mv: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
    """Both inputs of a model and its logits; one window at a time, as a stream comes."""
    model = Model.load(path)
    ecg, spectrogram = batch_windows(signal_mv, model.spec)
    logits = [model.logits(ecg[k : k + 1], spectrogram[k : k + 1]) for k in range(len(ecg))]
    return ecg, spectrogram, np.concatenate(logits)


def compute_in_emulator(model: str, signal: str, result: str) -> None:
    """What the emulated Python runs: `compute` from file to file."""
    np.savez(result, *compute(Path(model), np.load(signal)))


def difference(left: Float32Array, right: Float32Array) -> float:
    """The largest of all values; no number where one is none."""
    return float(np.abs(left - right).max())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per model and processor; the exit code."""
    parser = argparse.ArgumentParser(
        description="Compare a model on aarch64 (in an emulator) with the same model here.",
        epilog="example: python benchmarks/aarch64.py m2jlnet-ptbxl-super-int8 --cpu cortex-a76",
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="path, or name of a shipped one; default: all shipped"
    )
    parser.add_argument("--cpu", action="append", choices=CPUS, help="default: all; may be repeated")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2jlnet" / "aarch64"
    parser.add_argument(
        "--folder", type=Path, default=cache, help="where the aarch64 Python is kept; default: %(default)s"
    )
    options = parser.parse_args(arguments)
    # Neither side is to send ONNX Runtime's usage data, nor to wait for it.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        return compare(options.models, options.cpu or list(CPUS), options.folder.absolute())
    except (SetupError, RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def compare(models: Sequence[str], cpus: Sequence[str], folder: Path) -> int:
    """The work of `main`.

    Raises:
        SetupError, ModelError, OSError: they cannot be compared.
    """
    paths = [find_model(name).absolute() for name in models] or sorted(SHIPPED.glob("*.onnx"))
    signals = [signal_for(path) for path in paths]
    qemu = emulator()
    folder.mkdir(parents=True, exist_ok=True)
    root = make_root(folder)
    python = (root / "usr" / "bin" / "python3").resolve()
    site = make_site(folder, python)
    env = {
        "PYTHONPATH": os.pathsep.join(map(str, (site, REPOSITORY, REPOSITORY / "benchmarks"))),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    print(f"{site.name.replace('-', ' ')}; here on {os.uname().machine}, python{sys.version.split()[0]}")
    print(f"{'model':32} {'processor':12} {'windows':>7} {'inputs':>8} {'logits':>8}  bit-identical")
    passed = True
    with tempfile.TemporaryDirectory() as name:
        signal, result = Path(name) / "signal.npy", Path(name) / "result.npz"
        for path, (spec, signal_mv) in zip(paths, signals, strict=True):
            here = compute(path, signal_mv)
            np.save(signal, signal_mv)
            for cpu in cpus:
                processor, part = CPUS[cpu]
                (root / "proc" / "cpuinfo").write_text(CPUINFO.format(part))
                command = (qemu, "-cpu", processor, "-L", root, python, "-P", "-s", "-c", GUEST, path, signal, result)
                run(*command, what=f"{path.name} on {cpu}", env=env)
                with np.load(result) as there:
                    ecg, spectrogram, logits = (difference(one, there[f"arr_{k}"]) for k, one in enumerate(here))
                    same = "yes" if here[-1].tobytes() == there["arr_2"].tobytes() else "no"
                inputs = np.maximum(ecg, spectrogram)  # unlike max(), it keeps what is no number
                print(f"{path.stem:32} {cpu:12} {len(signal_mv):7} {inputs:8.1e} {logits:8.1e}  {same}", flush=True)
                passed &= logits <= TOLERANCE[spec.precision]
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
