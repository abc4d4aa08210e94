"""From a path or URL to the objects in a checkpoint file, without running code from it.

Only tensors, numbers, strings, containers, numpy arrays and the few mmengine types that a training
checkpoint holds are accepted: PyTorch's ``weights_only`` unpickler with an allow-list.
"""

import pickle
import zipfile
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import HistoryBuffer

from cyclemlp_mm.errors import CheckpointError, MissingFileError

#: What torch.load raises on damaged bytes depends on where the damage is.
_DAMAGE = (RuntimeError, EOFError, OSError, ValueError, TypeError, AttributeError)
_DAMAGE += (LookupError, zipfile.BadZipFile)


def _allowed_types() -> list:
    """Types beyond PyTorch's own that mmengine's training checkpoints hold."""
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    allowed = [HistoryBuffer, ConfigDict, np.ndarray, np.dtype]
    # A HistoryBuffer refers to its own statistics methods through getattr.
    allowed.append((_history_statistic, 'builtins.getattr'))
    # numpy pickles name their modules by version: 1.x says numpy.core, 2.x numpy._core.
    allowed += [
        (function, f'{module}.multiarray.{function.__name__}')
        for module in ('numpy.core', 'numpy._core')
        for function in (multiarray._reconstruct, multiarray.scalar)
    ]
    numbers = (np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8)
    numbers += (np.uint64, np.uint32, np.uint16, np.uint8, np.bool_)
    return allowed + [type(np.dtype(number)) for number in numbers]


def _history_statistic(owner: object, name: str) -> object:
    """What stands in for ``getattr`` in a checkpoint: methods of HistoryBuffer, nothing else."""
    if owner is not HistoryBuffer or name not in ('mean', 'max', 'min', 'current'):
        raise pickle.UnpicklingError(f'GLOBAL builtins.getattr for {name!r} was not expected')
    return getattr(owner, name)


def read_checkpoint(source: str, map_location: str = 'cpu') -> object:
    """Read a checkpoint.

    Args:
        source (str): A local path or an http(s) URL. A URL is downloaded once into PyTorch's hub
            folder.
        map_location (str): Device for the tensors. Defaults to 'cpu'.

    Returns:
        object: What the file holds, normally a dict.

    Raises:
        MissingFileError: A local path that is not there.
        CheckpointError: The URL cannot be reached, or the file is empty, truncated, no PyTorch
            checkpoint, or holds objects of a type that is not allowed.
    """
    path = fetch(source)
    if not path.exists():
        raise MissingFileError(f'checkpoint {path} does not exist: check the path in init_cfg')
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path} is not a file')
    if path.stat().st_size == 0:
        raise CheckpointError(f'checkpoint {path} is empty (0 bytes): download or copy it again')
    try:
        with torch.serialization.safe_globals(_allowed_types()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        why = _why_refused(path, error)
        raise CheckpointError(f'checkpoint {path} is refused: {why}') from error
    except _DAMAGE as error:
        raise CheckpointError(
            f'checkpoint {path} cannot be read ({_first_line(error)}): it is truncated, damaged '
            f'or no PyTorch checkpoint{_looks_like(path)}. Download or copy it again'
        ) from error


def fetch(source: str) -> Path:
    """Local path of ``source``; an http(s) URL is downloaded unless it already was.

    Raises:
        CheckpointError: Unknown scheme, or the URL cannot be reached; the message says how to
            download the file by hand and where to put it.
    """
    scheme = urlparse(str(source)).scheme
    if scheme not in ('http', 'https'):
        if '://' in str(source):
            raise CheckpointError(
                f'checkpoint {source}: {scheme}:// is not supported; give a local path or an '
                'http(s) URL'
            )
        return Path(source).expanduser()
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / Path(urlparse(source).path).name
    try:
        if not path.exists() and get_local_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(source, str(path))
    except OSError as error:  # URLError and HTTPError are OSErrors
        raise CheckpointError(
            f'cannot download {source} ({_first_line(error)}). Download it on a machine with '
            f'access, e.g. `curl -LO {source}`, and put it at {path}; or name a local file with '
            '`--cfg-options model.backbone.init_cfg.checkpoint=FILE`. To train from scratch on '
            'purpose: `--cfg-options model.backbone.init_cfg=None`'
        ) from error
    finally:
        barrier()  # the other processes of this machine wait for the file
    return path


def _why_refused(path: Path, error: Exception) -> str:
    text = str(error)
    if 'Unsupported global' in text or 'GLOBAL' in text:
        named = text.split('GLOBAL ')[-1].split(' ')[0] if 'GLOBAL ' in text else 'an object'
        return (
            f'it holds {named}, which is not among the types that a checkpoint may hold (tensors, '
            'numbers, strings, containers, numpy arrays, mmengine logs). Nothing of it was run'
        )
    return (
        f'it is truncated, damaged or no PyTorch checkpoint{_looks_like(path)} '
        f'({_first_line(error)})'
    )


def _looks_like(path: Path) -> str:
    """A hint for the two files that people most often save by mistake."""
    with path.open('rb') as file:
        head = file.read(64).lstrip().lower()
    if head.startswith((b'<!doctype', b'<html')):
        return ' (it is an HTML page: the link led to a web page, not to the file)'
    if head.startswith(b'version https://git-lfs'):
        return ' (it is a Git LFS pointer: run `git lfs pull`)'
    return ''


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
