"""`m2jl emulate`, `wire` and `devices`: options and printing; the work is in the other modules."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import IO, Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _firmware_bridge() -> None:
    """The serial side."""


def parse_speed(text: str) -> float:
    """A factor over zero, or `max`."""
    try:
        speed = math.inf if text == "max" else float(text)
    except ValueError:
        speed = math.nan
    if not speed > 0:
        raise typer.BadParameter(f"{text!r} is neither a number over zero nor 'max'")
    return speed


def when_asked_to_end(stop: Callable[[], object]) -> None:
    """Call `stop` on Ctrl-C, on SIGTERM, and on SIGHUP: the terminal is closed, or the connection to it is gone.

    Under nohup SIGHUP is ignored already, and stays so.
    """
    import signal

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # Windows has none
        numbers.append(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, lambda *_: stop())


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
            "(AMOUNT bits), drop, duplicate (bytes), repeat (a frame so often again), swap (with the next frame), "
            "version, pause, unplug, leadoff, saturate (for AMOUNT seconds) or restart.",
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
        when_asked_to_end(emulator.stop)
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


@app.command("wire")
def wire(
    source: Annotated[
        str,
        typer.Argument(
            help="serial:///dev/ttyUSB0?baud=230400, tcp://host:port, or a file that --record made.", show_default=False
        ),
    ],
    duration: Annotated[
        float | None, typer.Option(min=0.1, metavar="SECONDS", help="Stop after so long on the clock.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep all bytes that come, damaged or not. An older FILE is replaced once a device has answered.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a second.")] = False,
) -> None:
    """Watch the wire: rate, loss, damaged frames by reason, clock drift, loose electrodes, a strip of every lead.

    Starts the device and stops it at the end: after --duration, with its recording, or on Ctrl-C. A lost link is waited
    for. Prints a line a second where there is no terminal. Needs no model.

    Example: m2jl wire serial:///dev/ttyUSB0 --record session.bin
    """
    import io
    import json
    import logging
    import math
    from contextlib import ExitStack
    from dataclasses import asdict

    from firmware_bridge.device import Device
    from firmware_bridge.errors import OptionError
    from firmware_bridge.wire import replay
    from firmware_bridge.wire_view import show

    logging.basicConfig(format="m2jl: %(message)s", level=logging.ERROR)
    if duration is not None and not math.isfinite(duration):
        raise typer.BadParameter(f"{duration} is no duration", param_hint="--duration")
    if "://" not in source:
        for option, value in (("--record", record), ("--duration", duration)):
            if value is not None:
                raise OptionError(f"{option} is for a device; {source} is a recording, which is read whole")
        info, stats = replay(Path(source))
        if as_json:
            typer.echo(json.dumps({"event": "replay", "device_id": info.device_id, "stats": asdict(stats)}))
            return
        typer.echo(f"{info.device_id} ({info.firmware}): {', '.join(info.leads)} at {info.rate_hz:g} Hz")
        for name, count in asdict(stats).items():
            typer.echo(f"{name:<20} {count}")
        return
    with ExitStack() as stack:

        def kept(path: Path, mode: str) -> IO[bytes]:
            try:
                return stack.enter_context(path.open(mode))
            except OSError as error:
                raise OptionError(f"--record {path}: {error.strerror}") from error

        if record is None:
            device = stack.enter_context(Device.open(source))
        else:
            # What was kept before stays until a device has answered.
            file = io.BytesIO() if record.exists() else kept(record, "xb")
            device = stack.enter_context(Device.open(source, tap=lambda data: file.write(data)))
            if isinstance(file, io.BytesIO):
                early, file = file.getvalue(), kept(record, "wb")
                file.write(early)
        when_asked_to_end(device.interrupt)
        show(device, duration_s=duration, as_json=as_json)


@app.command("devices")
def devices(
    urls: Annotated[
        list[str] | None, typer.Argument(metavar="[URL]...", help="More places to ask, such as tcp://host:port.")
    ] = None,
    baud: Annotated[int, typer.Option(min=1, help="Bits per second on the serial ports.")] = 230_400,
    timeout: Annotated[float, typer.Option(min=0.1, max=60, metavar="SECONDS", help="How long each may take.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the serial ports and what answers on them. Nothing is started.

    Example: m2jl devices
    """
    import json
    import logging

    from firmware_bridge.ports import survey

    logging.basicConfig(format="m2jl: %(message)s", level=logging.ERROR)
    ports = survey(urls or [], baud=baud, timeout_s=timeout)
    if as_json:
        typer.echo(json.dumps([port.to_dict() for port in ports]))
        return
    for port in ports:
        about = ", ".join(filter(None, (port.description, port.usb)))
        typer.echo(f"{port.url}{f'  ({about})' if about else ''}")
        if port.info is None:
            typer.echo(f"    {port.problem}")
        else:
            info = port.info
            typer.echo(
                f"    {info.device_id} ({info.firmware}): {', '.join(info.leads)} at {info.rate_hz:g} Hz, "
                f"{info.adc_bits} bits; answers in {1000 * (port.round_trip_s or 0):.1f} ms"
            )
    if not ports:
        typer.echo("no serial port is there", err=True)
