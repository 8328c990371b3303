"""Small words of messages.

counted(1, "lead"), counted(12, "lead")                     # "1 lead", "12 leads"
f"epoch is not known{meant('epoch', ['epochs', 'batch'])}"  # "epoch is not known; did you mean epochs?"
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def counted(count: int, noun: str) -> str:
    """A number with its noun, which takes an s where it is not one."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def meant(word: str, known: Iterable[str], prefix: str = "") -> str:
    """What a misspelt word may stand for, as a clause; all that there is where nothing is near.

    Args:
        prefix: what stands before the word and before each of the known ones, and is no part of them.
    """
    known = sorted(known)
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {prefix}{near[0]}?" if near else f"; there is: {', '.join(known)}"
