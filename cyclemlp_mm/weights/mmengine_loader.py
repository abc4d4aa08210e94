"""Safe loading for mmengine: its ``CheckpointLoader`` reads files and URLs by our reader.

``load_from``, ``--resume``, ``tools/test.py`` and the toolboxes' inference APIs all end in
mmengine's ``CheckpointLoader``, whose own loaders unpickle anything (0.10.7), or fall back to it
when the safe way rejects a file (0.10.12). Its registry of loaders by scheme is public.
"""

import inspect
from typing import Any

from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint
from torch import nn

from cyclemlp_mm.user_path import user_path

from .files import move_tensors, read_checkpoint
from .published import PublishedFormat
from .whole_model import for_mmengine

#: The file that was read last to be loaded, until it is.
_read: dict[tuple[object, ...], object] = {}


def install_safe_loading() -> None:
    """Let mmengine read local files and http(s) URLs by :func:`.read_checkpoint`, in this process.

    Published files of our families come under the names that mmengine expects, but for models
    without a backbone of ours. Names of other schemes (``torchvision://``, …) stay mmengine's. Our
    tools call it, and configs do by naming :mod:`cyclemlp_mm.safe_loading` in ``custom_imports``.
    """
    CheckpointLoader.register_scheme(('', 'http://', 'https://'), load_from_path, force=True)


def load_from_path(filename: str, map_location: Any = None) -> Any:
    """A local file or an http(s) URL; mmengine logs what follows 'load_from_' in the name."""
    content = move_tensors(_take(filename), map_location)
    return for_mmengine(content, filename, renamed=not _is_for_another_model())


def read_before_loading(filename: str) -> Any:
    """:func:`.read_checkpoint` of what mmengine loads later: it is not read again then."""
    content = _take(filename)
    keep_for_loading(filename, content)
    return content


def keep_for_loading(filename: str, content: object) -> None:
    """Let the next loading of a file have what was read of it, in place of another one's."""
    _read.clear()
    _read[_stamp(filename)] = content


def _take(filename: str) -> Any:
    stamp = _stamp(filename)
    return _read.pop(stamp) if stamp in _read else read_checkpoint(filename)


def _stamp(filename: str) -> tuple[object, ...]:
    """A file as it is now: another one may come to have its name."""
    path = user_path(filename)
    if '://' in filename or not path.is_file():
        return (filename,)
    state = path.stat()
    return str(path.resolve()), state.st_ino, state.st_size, state.st_mtime_ns


def _is_for_another_model() -> bool:
    """Whether ``load_checkpoint`` loads into a model without a backbone of ours.

    The loaders of ``CheckpointLoader`` do not get the model: it is read from their caller.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not load_checkpoint.__code__:
        frame = frame.f_back
    model = frame and frame.f_locals.get('model')
    return isinstance(model, nn.Module) and not any(
        isinstance(getattr(module, 'published_format', None), PublishedFormat)
        for module in model.modules()
    )
