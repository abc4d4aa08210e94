"""Errors that a user can fix; their messages name what failed, where, and how to fix it.

The tools print these without a traceback. Anything else is a defect and keeps its traceback.
"""


class UserError(ValueError):
    """An argument, config or data file cannot be used."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder does not exist."""


class MissingToolboxError(UserError, ImportError):
    """A toolbox that a config needs cannot be imported."""


class CheckpointError(UserError):
    """A checkpoint cannot be read or does not fit the model."""


class CodeError(UserError):
    """Code of a config's module or of a model failed; the tools print its cause's traceback."""


class DownloadError(CheckpointError):
    """The file of a URL cannot be downloaded."""
