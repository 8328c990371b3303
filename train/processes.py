"""Several processes under torchrun: what one does for all, or before the others.

    row = for_all(fabric, lambda: write_and_tell())         # the first process does it, all get what it gives
    data = first_one_first(fabric, lambda: load(...))       # the first prepares the cache, the others find it

What fails in the first process fails in all of them with the same error; else they would wait for it, or end with the
network's complaints instead of the user's one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning_fabric import Fabric

T = TypeVar("T")


def for_all(fabric: Fabric, work: Callable[[], T]) -> T:
    """What `work` gives in the first process, in all processes; it is not called in the others.

    What it gives, and errors that a user can mend (those with an `exit_code`), have to survive pickling.
    """
    if fabric.world_size == 1:
        return work()
    done: T | None = None
    failed: Exception | None = None
    if fabric.is_global_zero:
        try:
            done = work()
        except Exception as error:
            if not hasattr(error, "exit_code"):
                raise
            failed = error
    done, failed = fabric.broadcast((done, failed))
    if failed is not None:
        raise failed
    return done  # type: ignore[return-value]  # of the type that `work` gives, None included


def first_one_first(fabric: Fabric, work: Callable[[], T]) -> T:
    """What `work` gives in each process; the others begin when the first one is done."""
    kept: list[T] = []
    for_all(fabric, lambda: kept.append(work()))
    return kept[0] if kept else work()
