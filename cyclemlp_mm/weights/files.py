"""From a path or URL to the objects in a checkpoint file, without running code from it."""

import gc
import hashlib
import io
import pickle
import re
import shutil
import struct
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import print_log

from cyclemlp_mm.errors import CheckpointError, DownloadError, MissingFileError, shorten
from cyclemlp_mm.user_path import user_path

from .allowed_types import DamagedFile, RefusedContent
from .formats import (
    LEGACY_MAGIC,
    has_arrays,
    is_safetensors,
    read_legacy,
    read_safetensors,
    read_zip,
    to_tensors,
)
from .pickles import DAMAGE, PickleReader

_ZIP_HEAD = b'PK\x03\x04'
_LEGACY_HEAD = pickle.dumps(LEGACY_MAGIC, protocol=2)

_unsafe = False


def allow_unsafe_loading(allow: bool = True) -> None:
    """Let this process unpickle files that safe loading refuses: they may then run any code.

    Warns, here and for each such file. ``--unsafe-load`` of the tools and ``unsafe_load = True`` in
    a config call it. ``allow=False`` ends it.
    """
    global _unsafe
    if allow and not _unsafe:
        text = (
            'unsafe loading is on: files that safe loading refuses are unpickled, and run any code'
        )
        warnings.warn(text, stacklevel=2)
    _unsafe = allow


def is_unsafe_loading() -> bool:
    """Whether files that safe loading refuses are unpickled."""
    return _unsafe


@contextmanager
def unsafe_loading() -> Iterator[None]:
    """:func:`allow_unsafe_loading` for the length of a ``with`` block."""
    before = _unsafe
    allow_unsafe_loading()
    try:
        yield
    finally:
        allow_unsafe_loading(before)


def read_checkpoint(source: str | Path, map_location: Any = 'cpu', tensors: bool = True) -> Any:
    """Read a checkpoint: ``.pth`` (zip or legacy), ``.pdparams`` or ``.safetensors``.

    The format is detected from the content, not from the name. Tensors of other classes and tensors
    with attributes become plain tensors.

    Args:
        source (str | Path): A local path or an http(s) URL, see :func:`fetch`.
        map_location (str | torch.device | None | Callable): Device for the tensors; None is the
            CPU. Defaults to 'cpu'.
        tensors (bool): False leaves the numbers of tensors in a zip file unread: they are 0.
            Defaults to True.

    Returns:
        Any: What the file holds, normally a dict; of a Paddle file, a
        :class:`~cyclemlp_mm.weights.formats.PaddleStateDict`.

    Raises:
        MissingFileError: A local path that is not there.
        DownloadError: The URL cannot be reached.
        CheckpointError: The file is empty, truncated, damaged, of another format, or holds objects
            of a type that is not allowed.
    """
    path = fetch(str(source))
    if not path.exists():
        raise MissingFileError(f'checkpoint {path} does not exist: check the path')
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path} is not a file')
    if path.stat().st_size == 0:
        raise CheckpointError(f'checkpoint {path} is empty (0 bytes): download or copy it again')
    collects = gc.isenabled()
    gc.disable()  # what a file holds is kept: looking through it again and again is half the time
    try:
        content = _read_or_unpickle(path, tensors)
    except RefusedContent as error:
        raise CheckpointError(
            f'checkpoint {path} is refused: {error}. If you trust its origin to run code, give the '
            'tools --unsafe-load (in Python: cyclemlp_mm.weights.unsafe_loading())'
        ) from error
    except PermissionError as error:
        raise CheckpointError(f'checkpoint {path} cannot be read: {error.strerror}') from error
    except (*DAMAGE, OSError, zipfile.BadZipFile, struct.error) as error:
        # The text of other errors may spell out a container that never ends.
        has_text = isinstance(error, (DamagedFile, OSError, zipfile.BadZipFile))
        why = _first_line(error) if has_text else f'invalid content: {type(error).__name__}'
        raise CheckpointError(
            f'checkpoint {path} cannot be read ({why}): it is truncated, damaged or no '
            f'checkpoint{_looks_like(path)}. Download or copy it again'
        ) from error
    finally:
        if collects:
            gc.enable()
    return move_tensors(content, map_location)


def fetch(source: str) -> Path:
    """Local path of ``source``; the file of an http(s) URL is downloaded once.

    It is kept in the folder ``checkpoints`` of PyTorch's hub (``$TORCH_HOME/hub``), under the last
    part of the URL and a hash of the whole: two runs both have an ``epoch_12.pth``.
    """
    scheme, has_scheme, _ = source.partition('://')
    if not has_scheme:
        return user_path(source)
    if scheme not in ('http', 'https'):
        raise CheckpointError(
            f'checkpoint {source}: {scheme}:// is not supported; give a path or an http(s) URL'
        )
    name, digest = Path(re.split('[?#]', source)[0]), hashlib.sha256(source.encode()).hexdigest()
    # OpenMMLab's and PyTorch's names end with the first digits of a SHA-256, or with a date.
    found = re.search(r'-(?!\d{8})([0-9a-f]{8})\.[a-z]+$', name.name)
    digits = found[1] if found else ''
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / f'{name.stem[:150]}-url{digest[:16]}{name.suffix[:20]}'
    other = folder / name.name  # of another tool
    if digits and not path.exists() and other.is_file() and sha256_of(other).startswith(digits):
        path = other
    try:
        if path.exists():
            print_log(f'{source}: using {path}, downloaded before', 'current')
        elif get_local_rank() == 0:
            print_log(f'downloading {source} to {path}', 'current')
            _download(source, path, digits)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: it is not a URL
        raise DownloadError(
            f'cannot download {source} ({_first_line(error)}). Download it on a machine with '
            f'access, e.g. `curl -L {source} -o {path.name}`, and put it at {path}; or name a '
            'local file in its place'
        ) from error
    finally:
        barrier()  # the other processes of this machine wait for the file
    return path


def _download(url: str, path: Path, digits: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        urlopen(Request(url, headers={'User-Agent': 'cyclemlp_mm'}), timeout=60) as answer,
        tempfile.TemporaryDirectory(dir=path.parent, prefix='.partial-') as folder,
    ):
        part = Path(folder) / path.name
        with part.open('wb') as file:
            shutil.copyfileobj(answer, file, 1 << 20)
        size, length = part.stat().st_size, answer.headers.get('Content-Length')
        if length is not None and size != int(length):
            raise OSError(f'it broke off after {size} of {length} bytes')
        if not sha256_of(part).startswith(digits):
            raise OSError('its SHA-256 does not begin with the digits at the end of its name')
        part.replace(path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_or_unpickle(path: Path, tensors: bool) -> Any:
    try:
        return _read(path, tensors)
    except RefusedContent as refusal:
        if not _unsafe:
            raise
        text = f'checkpoint {path} is unpickled although safe loading refuses it: {refusal}'
        warnings.warn(f'{text}. It can run any code', stacklevel=3)
    with path.open('rb') as file:
        head = file.read(len(_LEGACY_HEAD))
        if head.startswith(_ZIP_HEAD) or head == _LEGACY_HEAD:
            return torch.load(path, map_location='cpu', weights_only=False)
        file.seek(0)
        return to_tensors(pickle.load(file))


def _read(path: Path, tensors: bool) -> Any:
    """Detect the format from the first bytes, and read it."""
    size = path.stat().st_size
    with path.open('rb') as opened:
        head = opened.read(9)
        opened.seek(0)
        if head.startswith(_ZIP_HEAD):
            return read_zip(opened, size, tensors)
        data = opened.read()
    if is_safetensors(head, size):
        return read_safetensors(data)
    file = io.BytesIO(data)
    content = PickleReader(file).build()
    if type(content) is int and content == LEGACY_MAGIC:
        return read_legacy(file)
    if not has_arrays(content):
        raise DamagedFile(f'it is a pickle of {shorten(content)}, with no arrays')
    if file.tell() != size:
        raise DamagedFile(f'{size - file.tell()} bytes follow its end')
    return to_tensors(content)


def move_tensors(content: Any, map_location: Any) -> Any:
    """Tensors of containers, on the CPU, to a device; one that is there twice stays one tensor."""
    if str(map_location or 'cpu') == 'cpu':
        return content
    moved: dict[int, torch.Tensor] = {}

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if id(value) not in moved:
                moved[id(value)] = _to(value, map_location)
            return moved[id(value)]
        if isinstance(value, dict):
            for key in dict.keys(value):
                dict.__setitem__(value, key, move(dict.__getitem__(value, key)))
        elif isinstance(value, list):
            value[:] = map(move, value)
        return tuple(map(move, value)) if type(value) is tuple else value

    return move(content)


def _to(tensor: torch.Tensor, map_location: Any) -> torch.Tensor:
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
    """A hint for the files that people most often save by mistake."""
    if tarfile.is_tarfile(path):
        return ' (it is a tar archive: unpack it; files of PyTorch 0.1 are not supported)'
    with path.open('rb') as file:
        head = file.read(64).lstrip().lower()
    if head.startswith((b'<!doctype', b'<html')):
        return ' (it is an HTML page: the link led to a web page, not to the file)'
    if head.startswith(b'version https://git-lfs'):
        return ' (it is a Git LFS pointer: run `git lfs pull`)'
    return ''


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return shorten(lines[0], 300) if lines else type(error).__name__
