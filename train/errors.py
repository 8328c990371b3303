"""Errors that a user of training can mend, as one family::

    TrainError
    ├── DataError        a data folder is not what it is said to be, or a table in it is damaged
    ├── ReadError        a recording cannot be read now, for no fault of its own
    ├── CheckpointError  a checkpoint is missing, damaged, or of another model
    ├── PresetError      an unknown preset, or values in it that make no sense
    ├── OutOfMemoryError a batch does not fit into the device's memory
    └── DivergedError    the loss became infinite or not a number          (exit code 1)

`exit_code` is what `m2jl` ends with when one of them reaches it.
"""


class TrainError(Exception):
    """Base of all faults of training that a user can mend."""

    exit_code = 2


class DataError(TrainError):
    """A data folder that cannot be used."""


class ReadError(TrainError):
    """A recording that cannot be read now, for no fault of its own: nothing may be concluded of it, or kept."""


class CheckpointError(TrainError):
    """A checkpoint that cannot be used."""


class PresetError(TrainError):
    """A preset that does not exist or makes no sense."""


class OutOfMemoryError(TrainError):
    """A batch that the device has too little memory for."""


class DivergedError(TrainError):
    """Training ran, and its loss left the numbers; the last whole epoch is kept."""

    exit_code = 1
