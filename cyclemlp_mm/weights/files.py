"""From a path or URL to the objects in a checkpoint file, without running code from it.

Only tensors, numbers, strings, containers, numpy arrays and the few mmengine types that a training
checkpoint holds are accepted, from any format; see :mod:`.pickle_reader` for how.
"""

import pickle
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_local_rank

from cyclemlp_mm.errors import CheckpointError, MissingFileError

from .limits import Budget, DamagedFile, RefusedContent, shorten
from .paddle_files import is_paddle, to_tensors
from .pickle_reader import PickleReader
from .pickle_tree import check_tree
from .pickle_types import PLAIN_TYPES
from .safetensors_files import is_safetensors, read_safetensors
from .torch_files import LEGACY_MAGIC, read_legacy, read_zip

#: What is left to go wrong when bytes make no sense; DamagedFile is a ValueError.
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError)
_DAMAGE += (OSError, EOFError, MemoryError, struct.error)

_ZIP_HEAD = b'PK\x03\x04'
_LEGACY_HEAD = pickle.dumps(LEGACY_MAGIC, protocol=2)

_unsafe = False


def allow_unsafe_loading(allow: bool = True) -> None:
    """Let this process unpickle files that safe loading refuses: they may then run any code.

    For files whose origin you trust as you trust a program. Says so as a warning, here and for each
    file. ``--unsafe-load`` of the tools and ``unsafe_load = True`` in a config come here.

    Args:
        allow (bool): False ends it. Defaults to True.
    """
    global _unsafe
    if allow and not _unsafe:
        warnings.warn(
            'unsafe loading is on: a checkpoint that safe loading refuses is unpickled, and can '
            'run any code',
            stacklevel=2,
        )
    _unsafe = allow


@contextmanager
def unsafe_loading() -> 'Iterator[None]':
    """:func:`allow_unsafe_loading` for the length of a ``with`` block."""
    before = _unsafe
    allow_unsafe_loading()
    try:
        yield
    finally:
        allow_unsafe_loading(before)


def read_checkpoint(source: 'str | Path', map_location: object = 'cpu') -> object:
    """Read a checkpoint: ``.pth`` (zip or legacy), ``.pdparams`` or ``.safetensors``.

    The format is told from the content, not from the name. Reading takes at most about twice the
    file's size of memory, whatever the file declares.

    Args:
        source (str | Path): A local path or an http(s) URL. A URL is downloaded once into PyTorch's
            hub folder.
        map_location (str | torch.device | None | Callable): Device for the tensors; None is the
            CPU. Defaults to 'cpu'.

    Returns:
        object: What the file holds, normally a dict; of a Paddle file, a
        :class:`~cyclemlp_mm.weights.paddle_files.PaddleStateDict`.

    Raises:
        MissingFileError: A local path that is not there.
        CheckpointError: The URL cannot be reached, or the file is empty, truncated, damaged, of
            another format, or holds objects of a type that is not allowed.
    """
    path = fetch(str(source))
    if not path.exists():
        raise MissingFileError(f'checkpoint {path} does not exist: check the path')
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path} is not a file')
    if path.stat().st_size == 0:
        raise CheckpointError(f'checkpoint {path} is empty (0 bytes): download or copy it again')
    try:
        try:
            with path.open('rb') as file:
                content = _read(file, path.stat().st_size)
        except RefusedContent as error:
            if not _unsafe:
                raise
            content = _read_unsafely(path, error)
    except RefusedContent as error:
        raise CheckpointError(
            f'checkpoint {path} is refused: {error}. If you trust its origin as you trust a '
            'program, --unsafe-load lets the tools read it'
        ) from error
    except _DAMAGE as error:
        why = str(error) if isinstance(error, DamagedFile) else _first_line(error)
        raise CheckpointError(
            f'checkpoint {path} cannot be read ({why}): it is truncated, damaged or no '
            f'checkpoint{_looks_like(path)}. Download or copy it again'
        ) from error
    return content if str(map_location or 'cpu') == 'cpu' else _move(content, map_location)


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


def _read(file: BinaryIO, size: int) -> object:
    """Tell the format from the first bytes, and read it."""
    budget = Budget(size)
    head = file.read(9)
    file.seek(0)
    if head.startswith(_ZIP_HEAD):
        return read_zip(file, size, budget)
    if is_safetensors(head, size):
        return read_safetensors(file, size, budget)
    reader = PickleReader(file, size, PLAIN_TYPES, budget)
    content = reader.load()
    if content == LEGACY_MAGIC:
        return read_legacy(reader, file, size, budget)
    check_tree(content, size - reader.left, budget)
    if not is_paddle(content):
        raise DamagedFile(f'it is a pickle of a {shorten(type(content).__name__)}, with no arrays')
    if reader.left:
        raise DamagedFile(f'{reader.left} bytes follow its end')
    return to_tensors(content)


def _read_unsafely(path: Path, refusal: RefusedContent) -> object:
    warnings.warn(
        f'checkpoint {path} is unpickled although safe loading refuses it: {refusal}. It can run '
        'any code', stacklevel=3,
    )  # fmt: skip
    with path.open('rb') as file:
        head = file.read(len(_LEGACY_HEAD))
        if head.startswith(_ZIP_HEAD) or head == _LEGACY_HEAD:
            return torch.load(path, map_location='cpu', weights_only=False)
        file.seek(0)
        content = pickle.load(file)
    return to_tensors(content) if is_paddle(content) else content


def _move(content: object, map_location: object) -> object:
    """Tensors of containers to a device; a tensor that is there twice stays one tensor."""
    moved: dict[int, torch.Tensor] = {}

    def to_device(value: object) -> object:
        if isinstance(value, torch.Tensor):
            if id(value) not in moved:
                moved[id(value)] = _to(value, map_location)
            return moved[id(value)]
        if isinstance(value, dict):
            for key in list(value):
                dict.__setitem__(value, key, to_device(dict.__getitem__(value, key)))
        elif isinstance(value, list):
            value[:] = [to_device(item) for item in value]
        elif type(value) is tuple:
            return tuple(to_device(item) for item in value)
        return value

    return to_device(content)


def _to(tensor: torch.Tensor, map_location: object) -> torch.Tensor:
    if callable(map_location):  # torch.load's third form: from a storage to where it belongs
        placed = map_location(tensor.untyped_storage(), 'cpu')
        map_location = 'cpu' if placed is None else placed.device
    elif isinstance(map_location, dict):
        map_location = map_location.get('cpu', 'cpu')
    data = tensor.detach().to(map_location)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(data, tensor.requires_grad)
    return data.requires_grad_(tensor.requires_grad)


def _looks_like(path: Path) -> str:
    """A hint for the two files that people most often save by mistake."""
    with path.open('rb') as file:
        head = file.read(64).lstrip().lower()
    if head.startswith((b'<!doctype', b'<html')):
        return ' (it is an HTML page: the link led to a web page, not to the file)'
    if head.startswith(b'version https://git-lfs'):
        return ' (it is a Git LFS pointer: run `git lfs pull`)'
    return ''


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return shorten(lines[0], 200) if lines else type(error).__name__
