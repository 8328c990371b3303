"""`m2jl bench`: what models cost on this machine, and how many patients it can watch.

    rows = bench([Path("a.onnx"), Path("b.onnx")], BenchConfig(threads=(1, 2)), accuracy=[])
    rows[1]["latency_ms"]["p50"], rows[1]["against_first"]["latency_ms"]

`measure` makes the rows, `compare` sets them against earlier ones, `report` draws them, `stream` plays many devices in
real time.  Latency is that of the model alone on ready inputs; `hop_ms` that of the whole chain, from the bytes of a
hop (12 leads of 24 bits at 500 Hz unless the model has other leads, ten samples a frame) to the alert logic.
"""

from runtime.bench.measure import BenchConfig, bench, read_accuracy
from runtime.bench.signal import synthetic_ecg
from runtime.machine import installed, machine

__all__ = ["BenchConfig", "bench", "installed", "machine", "read_accuracy", "synthetic_ecg"]
