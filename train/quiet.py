"""Keep a library's advice about itself off the terminal while it works for us; its errors still come through."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(logger: str | None) -> Iterator[None]:
    """Hold back what is printed on stdout, and what `logger` (None for the root) says below an error."""
    speaker = logging.getLogger(logger)
    level = speaker.level
    speaker.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        speaker.setLevel(level)
