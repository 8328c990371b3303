"""Errors of compression, as one family::

CompressError
├── RecipeError   a recipe that cannot be read, misspelt or impossible     (exit code 2)
└── GateFailed    the work ran, and accuracy or parity fell too far        (exit code 1)
"""


class CompressError(Exception):
    """Base of all faults of compression that a user can mend."""

    exit_code = 2


class RecipeError(CompressError):
    """A recipe that cannot be followed."""


class GateFailed(CompressError):  # noqa: N818 - an outcome, as its name says
    """A stage's result is not good enough; the message names the stage, the figure and the label."""

    exit_code = 1
