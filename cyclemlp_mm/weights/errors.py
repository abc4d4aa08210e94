"""The one exception for a checkpoint that cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit the model; the message says which and why."""
