"""What a model's spec says of the recordings that it comes from, and which folds that names.

    origin("PTB-XL 1.0.1", range(1, 9))                         # "PTB-XL 1.0.1 folds 1-8"
    folds_named("PTB-XL 1.0.1 folds 1-8, 100 Hz", "PTB-XL")     # {1, 2, 3, 4, 5, 6, 7, 8}

A spec keeps this as text (`trained_on`, `thresholds_from`), and of an .onnx file there is nothing else to go by.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

SPAN = r"\d+(?:-\d+)?"
ORIGIN = re.compile(rf"(?P<source>.+?) folds? (?P<folds>{SPAN}(?:,{SPAN})*)")


def origin(source: str, folds: Sequence[int]) -> str:
    """A data set and some of its folds, for people; `folds_named` reads it."""
    ordered = sorted(folds)
    ends = [k for k, (one, other) in enumerate(pairwise(ordered), start=1) if other != one + 1]
    spans = (ordered[first:end] for first, end in pairwise([0, *ends, len(ordered)]))
    named = ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)
    return f"{source} fold{'s' if len(ordered) > 1 else ''} {named}"


def folds_named(text: str, title: str) -> set[int] | None:
    """The folds of the data set `title` that an origin names.

    Empty if it names those of another data set, None if it names none.
    """
    found = ORIGIN.match(text)
    if found is None:
        return None
    # A release may follow the title, and older models write "CinC 2017" for CinC2017.
    if not _plain(found["source"]).startswith(_plain(title)):
        return set()
    spans = (span.partition("-") for span in found["folds"].split(","))
    return {fold for first, _, last in spans for fold in range(int(first), int(last or first) + 1)}


def _plain(name: str) -> str:
    return name.replace(" ", "").lower()
