"""What `m2jl run` does before the first window: is the model what it says, and are its first answers fast?

print(check(path, model))        # self-test on the golden windows in the file, then a warm-up
"""

from __future__ import annotations

from pathlib import Path

from runtime.errors import RunError
from runtime.golden import GOLDEN_KEY, WHO_ADDS, read_golden, self_test
from runtime.model import Model, read_model

WARM_UPS = 3


class SelfTestError(RunError):
    """The model does not compute here what it computed where it was made."""

    exit_code = 1


def check(path: Path, model: Model) -> str:
    """Test the model that was loaded from `path`, and run it a few times; give what there is to say of it.

    Raises:
        SelfTestError: its logits are not those of its golden windows.
        runtime.errors.ModelError: the golden windows are damaged, or the model fails on them.
    """
    if GOLDEN_KEY in read_model(path)[0].metadata:
        result = self_test(model, read_golden(path))
        found = f"{result.windows} windows on {model.backend.name}, largest error of a logit {result.max_error:.2g}"
        if not result.passed:
            raise SelfTestError(
                f"{path} failed its self-test: {found}, tolerance {result.tolerance:g}; it must not be used here"
            )
        says = f"self-test passed: {found}, tolerance {result.tolerance:g}"
    else:
        says = f"{path} carries no golden windows, so it starts without a self-test; {WHO_ADDS}"
    for _ in range(WARM_UPS):
        model.warm_up()
    return says
