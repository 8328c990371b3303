"""`m2jl emulate`: a serial device made of a recording."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _firmware_bridge() -> None:
    """The serial side: emulated devices."""


def parse_speed(text: str) -> float:
    """A factor over zero, or `max`."""
    try:
        speed = math.inf if text == "max" else float(text)
    except ValueError:
        speed = math.nan
    if not speed > 0:
        raise typer.BadParameter(f"{text!r} is neither a number over zero nor 'max'")
    return speed


@app.command("emulate")
def emulate(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="A WFDB record, with or without its suffix.")],
    tcp: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="PORT", help="Listen on this TCP port instead; 0 takes a free one."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on, with --tcp.")] = "127.0.0.1",
    link: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Give the pseudo-terminal this name, which stays.")
    ] = None,
    speed: Annotated[
        float,
        typer.Option(parser=parse_speed, metavar="N|max", help="Times real time, or as fast as it is read."),
    ] = 1.0,
    repeat: Annotated[int, typer.Option(min=1, help="Replay the record this many times, without a gap.")] = 1,
    autostart: Annotated[bool, typer.Option("--autostart", help="Stream without waiting for START.")] = False,
    samples_per_frame: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Samples of every lead in one frame.", show_default="50 frames a second"),
    ] = None,
    bits: Annotated[int, typer.Option(help="Width of a sample on the wire, 16 or 24.")] = 24,
    rate_hz: Annotated[
        float | None, typer.Option(min=0.1, metavar="HZ", help="Resample the record.", show_default="the record's")
    ] = None,
    drift_ppm: Annotated[
        float, typer.Option(min=-100_000, max=100_000, metavar="PPM", help="How much the device's clock is fast.")
    ] = 0.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:EVERY_S[:AMOUNT]",
            help="Let something go wrong about every EVERY_S seconds of signal; may be repeated. KIND is bitflip "
            "(AMOUNT bits), drop, duplicate (bytes), repeat (a frame so often again), version, pause, unplug, "
            "leadoff, saturate (for AMOUNT seconds) or restart.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="When faults come and what they hit.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per event.")] = False,
) -> None:
    """Emulate a wearable: replay RECORD as a serial device on a pseudo-terminal or a TCP port.

    The first line on stdout is the address to open. Serves one client; ends with the recording, or on Ctrl-C.

    Example: m2jl emulate records500/00000/00008_hr --speed 2

    Example: m2jl emulate 00008_hr --repeat 100 --link /tmp/ecg --fault bitflip:10 --fault unplug:60:2 --drift-ppm 80
    """
    if bits not in (16, 24):
        raise typer.BadParameter(f"{bits} bits are not on offer, 16 and 24 are", param_hint="--bits")

    import json
    import signal

    from firmware_bridge.emulator import Emulator
    from firmware_bridge.endpoint import PtyEndpoint, TcpEndpoint
    from firmware_bridge.faults import FaultKind, Faults, parse_fault
    from firmware_bridge.recording import read_recording
    from firmware_bridge.virtual_device import VirtualDevice

    wanted = [parse_fault(text) for text in fault or []]
    if tcp is not None and link is not None:
        raise typer.BadParameter("a link goes to a pseudo-terminal, not to a TCP port", param_hint="--link")
    if tcp is None and link is None and any(each.kind is FaultKind.UNPLUG for each in wanted):
        raise typer.BadParameter(
            "unplug changes the number of a pseudo-terminal: name it with --link PATH, or use --tcp PORT",
            param_hint="--fault",
        )
    recording = read_recording(record)
    if rate_hz is not None:
        recording = recording.at_rate(rate_hz)
    device = VirtualDevice(
        recording,
        bytes_per_sample=bits // 8,
        samples_per_frame=samples_per_frame,
        repeat=repeat,
        seed=seed if wanted else None,
    )
    faults = Faults(wanted, rate_hz=recording.rate_hz, seed=seed) if wanted else None
    with PtyEndpoint(link) if tcp is None else TcpEndpoint(tcp, host) as endpoint:
        emulator = Emulator(device, endpoint, speed=speed, autostart=autostart, drift_ppm=drift_ppm, faults=faults)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: emulator.stop())
        listening = {
            "event": "listening",
            "url": endpoint.url,
            "record": recording.name,
            "leads": recording.leads,
            "rate_hz": recording.rate_hz,
            "duration_s": recording.duration_s * repeat,
        }
        typer.echo(json.dumps(listening) if as_json else endpoint.url)
        pace = "as fast as it is read" if math.isinf(speed) else f"{speed:g} times real time"
        typer.echo(
            f"{recording.name}: {len(recording.leads)} leads at {recording.rate_hz:g} Hz, "
            f"{recording.duration_s * repeat:g} s, {pace}; "
            f"{'streams at once' if autostart else 'waits for START'}",
            err=True,
        )
        report = emulator.run()
    ended = {
        "event": "end",
        "finished": report.finished,
        "samples_sent": report.samples_sent,
        "frames_sent": report.frames_sent,
        "faults": dict(report.faults),
    }
    if as_json:
        typer.echo(json.dumps(ended))
    word = "done" if report.finished else "ended early"
    hit = "".join(f", {count} x {kind}" for kind, count in report.faults.items())
    typer.echo(f"{word}: {report.samples_sent} samples of every lead in {report.frames_sent} frames{hit}", err=True)
