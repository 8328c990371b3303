"""TensorRT engines: what TensorRT refuses of an ONNX file, the engine that it builds, and the cache that keeps it.

    builder = EngineBuilder(find_gpu())
    builder.refusals(file.data)                        # [] or the nodes that TensorRT does not take, with reasons
    engine = cached_engine(builder, file, spec, say=print)
    engine.data                                        # for `runtime.tensorrt_backend`, trtexec, ...

Works with the package ``tensorrt`` 10 or 11 and with ``tensorrt_rtx``, which have one API; `EngineBuilder.tensorrt`
says which was found.  Precision is what the ONNX file says (strongly typed: Q/DQ pairs for int8, a cast graph for
fp16), since TensorRT 11 knows nothing else; TF32 is off, so that float32 means float32.  Without a GPU ``tensorrt_rtx``
still parses, and builds ahead of time for a named compute capability: proof that TensorRT takes the graph, not an
engine for a Jetson, for whose capability it has no target.

A cached engine stands under a key of all that it depends on (`EngineKey`), with a JSON file beside it that spells the
key out.  Anything that does not fit, from a file cut short to another version, is said and leads to a new build.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.cuda import Gpu
from runtime.errors import ModelError, OptionError
from runtime.onnx_file import OnnxFile
from runtime.session import write_atomically
from runtime.spec import ModelSpec

PACKAGES = ("tensorrt", "tensorrt_rtx")
OLDEST = 10  # of tensorrt; tensorrt_rtx counts anew from 1
AHEAD_OF_TIME = "SM80"
MAX_BATCH = 8
_SAY_EVERY_S = 0.2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node that TensorRT does not take."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"{self.operator} {self.node}: {self.reason}"


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that an engine depends on; an engine built under another key is not used.

    Attributes:
        onnx_sha256: of the model's file.
        tensorrt: package and version.
        gpu: name and compute capability, or the capability for which it was built ahead of time.
        precision: as the model's spec says.
        max_batch: windows per call, from 1.
        recipe: how this release builds; raised when it builds otherwise.
    """

    onnx_sha256: str
    tensorrt: str
    gpu: str
    precision: str
    max_batch: int
    recipe: int = 1

    @property
    def digest(self) -> str:
        """Short name of the key, for a file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True)
class Engine:
    """A serialized engine, where it is kept, and how long it took to build (None where it came from the cache)."""

    data: bytes
    path: Path
    key: EngineKey
    built_s: float | None


class _UnusableError(Exception):
    """Why a cached engine is not used."""


def engine_folder() -> Path:
    """Where engines are kept unless told otherwise: `$XDG_CACHE_HOME/m2jlnet/engines`, or under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m2jlnet" / "engines"


def find_gpu() -> Gpu | None:
    """The first visible GPU, or None."""
    try:
        return Gpu()
    except OptionError:
        return None


def find_tensorrt(*, ahead: bool = False) -> Any:
    """The module of one of `PACKAGES`.

    Args:
        ahead: prefer the one that builds without a GPU.

    Raises:
        OptionError: none is installed, or none of those that are can be used.
    """
    problems = []
    for name in reversed(PACKAGES) if ahead else PACKAGES:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            problems.append(f"{name} does not load: {_first_line(str(error))}")
            continue
        if name == "tensorrt" and int(module.__version__.split(".")[0]) < OLDEST:
            problems.append(f"tensorrt is {module.__version__}, and {OLDEST}.0 is the oldest that is supported")
            continue
        return module
    raise OptionError(
        "; ".join(problems)
        or 'TensorRT is not installed: pip install "m2jlnet[tensorrt]" brings tensorrt-rtx, JetPack has tensorrt'
    )


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]  # the base class is known at run time only
        """Keeps what TensorRT complains of; the parser's own account of each node is asked for elsewhere."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)

        def reason(self) -> str:
            return next(filter(None, map(readable, self.errors)), "it gives no reason")

    return Log()


@contextmanager
def _kept_interrupt() -> Iterator[list[int]]:
    """Keep Ctrl-C until TensorRT has returned: an exception in one of its call-backs would be lost.

    Gives a list that is empty until then.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # Ctrl-C goes elsewhere
        return
    before = signal.signal(signal.SIGINT, lambda number, _frame: caught.append(number))
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def _monitor(trt: Any, progress: Say, interrupted: list[int]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base class is known at run time only
        """Tells the phase at work, and tells TensorRT to stop where that is wanted."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.told_s = 0.0

        def phase_start(self, phase_name: str, _parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            progress(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if time.monotonic() - self.told_s >= _SAY_EVERY_S:
                self.told_s = time.monotonic()
                progress(f"{phase_name}: {step + 1} of {self.steps.get(phase_name, step + 1)}")
            return not interrupted

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def readable(text: str) -> str:
    """What one message of TensorRT says, without its places in source files; empty where that is nothing."""
    for line in filter(None, map(str.strip, text.splitlines())):
        if line == "false" or line.startswith("Invalid Node") or "Cuda Runtime" in line:
            continue  # a bare assertion; the node's name again; that there is no GPU, which is known
        inner = re.search(r"Error Code \d+: [^(]*\((.*)\)", line)
        said = re.sub(r"^Assertion failed: .*?: ", "", inner[1] if inner else line)
        return re.split(r"[. ]+(?:In \w+ at|Please set) ", said)[0]
    return ""


def _refusals(parser: Any) -> Iterator[Refusal]:
    for number in range(parser.num_errors):
        error = parser.get_error(number)
        code = str(error.code()).rpartition(".")[2]
        known = {"UNSUPPORTED_NODE": "TensorRT has no such operator"}.get(code, code.lower().replace("_", " "))
        node = error.node_name() or f"node {error.node()}"
        reason = readable(error.desc()).removeprefix(f"{node}: ")
        yield Refusal(node, error.node_operator(), reason or known)


class EngineBuilder:
    """Parses and builds with the TensorRT that is here.

    Args:
        gpu: for which to build; None to build ahead of time.
        capability: build ahead of time for this compute capability, "SM80", whatever GPU is here.
        module: instead of the one that `find_tensorrt` finds.

    Attributes:
        tensorrt: package and version that was found.
        target: for what it builds.

    Raises:
        OptionError: there is no TensorRT that can build for this target.
    """

    def __init__(self, gpu: Gpu | None, *, capability: str | None = None, module: Any = None) -> None:
        self.trt: Any = module or find_tensorrt(ahead=gpu is None or capability is not None)
        package = self.trt.__name__
        self.tensorrt = f"{package} {self.trt.__version__}"
        self._capability: Any = None
        if gpu is not None and capability is None:
            self.target = f"{gpu.name}, compute capability {gpu.capability}"
            return
        known = getattr(self.trt, "ComputeCapability", None)
        if known is None:
            raise OptionError(f"{package} builds for the GPU that it runs on only; tensorrt_rtx builds ahead of time")
        capability = (capability or AHEAD_OF_TIME).upper()
        names = [name for name in dir(known) if name.startswith("SM")]
        if capability not in names:
            raise OptionError(f"{package} cannot build for {capability}; it can for {', '.join(names)}")
        self._capability = getattr(known, capability)
        self.target = f"ahead of time for {capability}"

    def key(self, file: OnnxFile, spec: ModelSpec, max_batch: int = MAX_BATCH) -> EngineKey:
        """What an engine of this model, built here, depends on."""
        return EngineKey(file.sha256, self.tensorrt, self.target, spec.precision, max_batch)

    def _parse(self, data: bytes) -> tuple[Any, Any, Any, list[Refusal]]:
        log = _logger(self.trt)
        try:
            builder = self.trt.Builder(log)
        except (TypeError, RuntimeError):  # its factory gave nothing
            raise OptionError(f"{self.tensorrt} does not start: {log.reason()}") from None
        # 10 asks for strong typing by this flag; later ones always have it.
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
        parser = self.trt.OnnxParser(network, log)
        if not parser.parse(data):
            return log, builder, network, list(_refusals(parser)) or [Refusal("", "the file", log.reason())]
        # TensorRT reads uint8 as int8 after a mere warning, and all values over 127 are lost.
        if any("UINT8" in warning and "INT8 instead" in warning for warning in log.warnings):
            return log, builder, network, [Refusal("", "QuantizeLinear", "its uint8 would be read as int8")]
        return log, builder, network, []

    def refusals(self, data: bytes) -> list[Refusal]:
        """The nodes of an ONNX file that TensorRT does not take, as far as it gets; empty if it takes all.

        Operators that it does not know are found all at once, others up to the first that fails.
        """
        with _kept_interrupt():
            return self._parse(data)[3]

    def build(self, data: bytes, name: str, max_batch: int, progress: Say = lambda _line: None) -> bytes:
        """Build an engine for batches of 1 to `max_batch` windows, best for 1; give it serialized.

        Raises:
            ModelError: TensorRT refuses the graph, or fails; the message names the first node.
            KeyboardInterrupt: the build was stopped by Ctrl-C.
        """
        with _kept_interrupt() as interrupted:
            log, builder, network, refused = self._parse(data)
            if refused:
                raise ModelError(f"{self.tensorrt} refuses {name}: {describe(refused)}")
            config = builder.create_builder_config()
            config.clear_flag(self.trt.BuilderFlag.TF32)
            profile = builder.create_optimization_profile()
            for number in range(network.num_inputs):
                tensor = network.get_input(number)
                one = (1, *tuple(tensor.shape)[1:])
                profile.set_shape(tensor.name, one, one, (max_batch, *one[1:]))
            config.add_optimization_profile(profile)
            if self._capability is not None:
                config.num_compute_capabilities = 1
                config.set_compute_capability(self._capability, 0)
            config.progress_monitor = _monitor(self.trt, progress, interrupted)
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ModelError(f"{self.tensorrt} cannot build {name} ({self.target}): {log.reason()}")
        return bytes(plan)


def describe(refused: list[Refusal]) -> str:
    """Refused nodes in one line, with what may help."""
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    quantized = any(refusal.operator in ("QuantizeLinear", "DequantizeLinear") for refusal in refused)
    hint = "; TensorRT takes int8 with symmetric activations and a float bias only" if quantized else ""
    return f"{refused[0]}{more}{hint}"


def cached_engine(
    builder: EngineBuilder,
    file: OnnxFile,
    spec: ModelSpec,
    *,
    max_batch: int = MAX_BATCH,
    folder: Path | None = None,
    distrust: str | None = None,
    say: Say = lambda _line: None,
    progress: Say = lambda _line: None,
) -> Engine:
    """The engine of a model from the cache, or a new one, which goes there.

    Args:
        folder: of the cache, `engine_folder` unless told otherwise.
        distrust: why the one in the cache must not be used (it does not load).
        say: takes a line on why an engine is built, and on how long it took.
        progress: takes the phase at work, several times a second.

    Raises:
        ModelError, KeyboardInterrupt: see `EngineBuilder.build`.
    """
    folder = folder or engine_folder()
    key = builder.key(file, spec, max_batch)
    path = folder / f"{key.digest}.engine"
    try:
        if distrust:
            raise _UnusableError(f"the cached engine {path} is not used, {distrust}")
        return Engine(_read(path, key), path, key, None)
    except _UnusableError as why:
        say(f"{why}: building one with {builder.tensorrt}, {builder.target}; this can take minutes")
    began_s = time.monotonic()
    data = builder.build(file.data, spec.name, max_batch, progress)
    built_s = time.monotonic() - began_s
    engine = Engine(data, path, key, built_s)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # engines are programs: nobody else may put one there
        save_engine(engine, path)
        say(f"built in {built_s:.1f} s, kept as {path}")
    except OSError as error:
        say(f"built in {built_s:.1f} s, but it cannot be kept and will be built again: {error}")
    return engine


def save_engine(engine: Engine, path: Path) -> None:
    """Write an engine, and beside it as .json what it depends on; each file appears whole or not at all."""
    header = {**asdict(engine.key), "engine_sha256": hashlib.sha256(engine.data).hexdigest()}
    write_atomically(path, engine.data)
    write_atomically(_sidecar(path), json.dumps(header, indent=1) + "\n")


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return header if isinstance(header, dict) else {}


def _read(path: Path, key: EngineKey) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise _UnusableError(_why_missing(path, key)) from None
    except OSError as error:
        raise _UnusableError(f"the cached engine {path} cannot be read ({error.strerror})") from None
    header = _header(_sidecar(path))
    if {name: header.get(name) for name in asdict(key)} != asdict(key):
        raise _UnusableError(f"the cached engine {path} does not say what it was built for")
    if header.get("engine_sha256") != hashlib.sha256(data).hexdigest():
        raise _UnusableError(f"the cached engine {path} is damaged or cut short at {len(data)} bytes")
    return data


def _why_missing(path: Path, key: EngineKey) -> str:
    """Names what has changed where this model has been built before."""
    wanted = asdict(key)
    for sidecar in sorted(path.parent.glob("*.engine.json")):
        header = _header(sidecar)
        if header.get("onnx_sha256") == key.onnx_sha256:
            changed = [
                f"{name} {header.get(name)}, not {value}" for name, value in wanted.items() if header.get(name) != value
            ]
            return f"the cached engine of this model is for {'; '.join(changed)}"
    return "there is no cached engine of this model"
