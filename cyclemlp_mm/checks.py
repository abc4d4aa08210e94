"""Checks of arguments before work is done for them: devices, files to write."""

import inspect
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.registry import Registry

from cyclemlp_mm.errors import CodeError, UserError


def is_number(value: object) -> bool:
    """Whether a value is a finite number that NumPy can hold, not True or False."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def check_device(device: str | None) -> str:
    """The device's name, or a UserError if this machine has none such; None takes a GPU if any."""
    has_gpu = torch.cuda.is_available()
    if device is None:
        return 'cuda' if has_gpu else 'cpu'
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise UserError(f'invalid device {device!r}: give cpu or cuda') from error
    if wanted.type == 'cuda' and (wanted.index or 0) >= torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise UserError(f'device {device}: PyTorch sees {gpus} GPUs here; give cpu')
    return device


def check_writable(path: str | Path, option: str, is_folder: bool = False) -> None:
    """Raise a UserError with the name of an option if its file or folder cannot be written.

    A temporary file of 1 MB next to it is tried. Whether there is room for more is not known.
    """
    path = Path(path)
    try:
        if not is_folder and path.is_dir():
            raise UserError(f'{option} {path} is a folder: name a file in it')
        if not is_folder and path.exists():
            with path.open('ab'):  # as it is; the folder alone may be writable
                pass
        folder = path if is_folder else path.parent
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))  # one byte fits on a full disk
            file.flush()
    except OSError as error:
        what = f'{option} {path} cannot be written ({error.strerror or error})'
        raise UserError(f'{what}: use another place, or fix this one') from error


@contextmanager
def model_errors(config: str | Path) -> Iterator[None]:
    """Turn errors of building a config's model into a message about the config.

    Raises:
        UserError: A class does not exist or rejects its settings; a ``CodeError``, which keeps the
            traceback, where the code of a class fails otherwise.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [''])[0][:200]
        what = f'config {config}: the model cannot be built ({type(error).__name__}: {first})'
        last = traceback.extract_tb(error.__traceback__)[-1]
        of_registry = Path(last.filename).parent == Path(inspect.getfile(Registry)).parent
        no_argument = isinstance(error, TypeError) and 'unexpected keyword argument' in first
        is_settings = of_registry or no_argument or isinstance(error, ValueError)
        kind = UserError if is_settings else CodeError
        raise kind(f'{what}: check its settings, those of --cfg-options too') from error
