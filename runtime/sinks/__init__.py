"""Where events go, by URL, several at once:

    sinks = open_sinks(["-", "sqlite:alerts.db", "mqtt://broker/ward"], name="patch-12")
    sinks.write(event)                      # returns at once, whatever the sinks do
    sinks.write_block(origin, block)        # for those that keep samples
    sinks.close()
    sinks.report()                          # {"sqlite:alerts.db": {"written": 12, "dropped": 0, "errors": 0}, ...}

A kind of sink is one module of this package, found by its `URLS`: examples of its addresses, which begin with its
scheme.  Its ``open_sink(url, name)`` gives something with `write` and `close`, see `runtime.sinks.base`; `Delivery`
adds the queue, the thread and the counts.  `docs/alerts.md` is the user's page.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from runtime.errors import SinkError
from runtime.sinks.base import BlockSink, Origin, Sink, SinkGone, redacted
from runtime.sinks.delivery import Delivery

__all__ = ["BlockSink", "Delivery", "Origin", "Sink", "SinkGone", "known_urls", "open_sink", "open_sinks", "report_of"]


def _kinds() -> dict[str, ModuleType]:
    """Scheme -> the module of this package that has it among its `URLS`."""
    modules = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {url.partition(":")[0]: module for module in modules for url in getattr(module, "URLS", ())}


def known_urls() -> list[str]:
    """An example of each address there is."""
    return sorted({url for module in _kinds().values() for url in module.URLS})


def report_of(sinks: Iterable[Sink]) -> dict[str, dict[str, Any]]:
    """What became of events and samples, by the addresses of the sinks behind every `Delivery`."""
    deliveries = [sink for sink in sinks if isinstance(sink, Delivery)]
    return {url: counts for delivery in deliveries for url, counts in delivery.report().items()}


def kind_of(url: str) -> ModuleType:
    """The module that opens such a sink.

    Raises:
        SinkError: there is none.
    """
    module = _kinds().get(url.partition(":")[0])
    if module is None:
        raise SinkError(f"sink {redacted(url)!r} is not known; there is: {', '.join(known_urls())}")
    return module


def open_sink(url: str, name: str = "m2jl") -> Sink:
    """Open what a URL names; what comes back is called in the caller's thread and may block it.

    Args:
        name: of the device, or of the gateway where there are several.

    Raises:
        SinkError: not known, or it cannot be opened.
    """
    sink: Sink = kind_of(url).open_sink(url, name)
    return sink


def open_sinks(urls: Sequence[str], name: str = "m2jl", *, patience_s: float = 0.0) -> Delivery:
    """Open several, each behind a queue and a thread of its own; see `Delivery`.

    Raises:
        SinkError: one of them is not known, cannot be opened or is there twice; those before it are closed again.
    """
    opened: dict[str, Sink] = {}
    try:
        for url in urls:
            shown = redacted(url)
            if shown in opened:
                raise SinkError(f"sink {shown} is there twice")
            opened[shown] = open_sink(url, name)
    except BaseException:
        for sink in opened.values():
            sink.close()
        raise
    return Delivery(opened, patience_s=patience_s)
