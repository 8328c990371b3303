"""Remarks: what a data set says of its recordings beside their labels, as further targets of the auxiliary head.

    said = train.ptbxl.remarks(Path("ptb-xl"))
    remarks = columns([said[name] for name in data.record.tolist()], AT_LEAST)        # (records, remarks) of 0 and 1

Statements are what is left when a report has been coded.  The report itself says more: how sure its reader was, which
leads show it, of what it is suggestive, which voltage was high.  A network that learns to foretell these words has to
look at what the reader looked at, and names superclasses better for it (docs/benchmarks.md).  They are there while
training only, and nobody is asked for them later.

A remark is any text; `words` makes them of a report.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

AT_LEAST = 60  # recordings that have a remark, and that lack it: of fewer nothing general is learned

_WORD = re.compile(r"[a-zäöüß0-9/]+")
_UMLAUTS = (("ae", "ä"), ("oe", "ö"), ("ue", "ü"))  # typed either way, often in one and the same report


def words(report: str) -> Iterator[str]:
    """The words of a report and each two that follow each other."""
    text = report.lower()
    for plain, umlaut in _UMLAUTS:
        text = text.replace(plain, umlaut)
    found = _WORD.findall(text)
    yield from (f"word {word}" for word in found)
    yield from (f"words {one} {other}" for one, other in pairwise(found))


def columns(remarks: Sequence[frozenset[str]], at_least: int) -> NDArray[np.float32]:
    """Which recording has which remark, (recordings, remarks) of 0 and 1.

    Left out are remarks that fewer than `at_least` recordings have or lack, and such as the same recordings have as
    another one.
    """
    counts = Counter(remark for of_one in remarks for remark in of_one)
    names = sorted(name for name, count in counts.items() if at_least <= count <= len(remarks) - at_least)
    index = {name: k for k, name in enumerate(names)}
    said = np.zeros((len(remarks), len(names)), np.float32)
    for row, of_one in zip(said, remarks, strict=True):
        row[[index[remark] for remark in of_one if remark in index]] = 1.0
    _, first = np.unique(said, axis=1, return_index=True)
    return said[:, np.sort(first)]
