"""Errors that a user of the runtime can mend, as one family::

    RunError
    ├── ModelError     the .onnx file is missing, damaged, unsafe or carries no (valid) ModelSpec
    ├── SourceError    the source URL is malformed, or what it names cannot be used with this model
    ├── SinkError      the sink URL is malformed or cannot be written
    └── OptionError    an option or a file given on the command line makes no sense

Each message is one line that says what is wrong and where.  ``exit_code`` is what `m2jl` ends with when one of
them reaches it.  Faults of a link and of recordings are `firmware_bridge.errors`.
"""


class RunError(Exception):
    """Base of all faults of the runtime that a user can mend."""

    exit_code = 2


class ModelError(RunError):
    """A model file that cannot be used."""


class SourceError(RunError):
    """A source that cannot be used."""


class SinkError(RunError):
    """A sink that cannot be used."""


class OptionError(RunError):
    """An option that makes no sense."""
