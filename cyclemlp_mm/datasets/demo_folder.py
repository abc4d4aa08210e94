"""The folder of a generated data set: its files, when it is reused and when it is refused."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cyclemlp_mm.errors import UserError

from .shape_scenes import checked_integer, checked_seed, checked_size

MANIFEST_NAME = 'shapes.json'
GENERATOR = 'cyclemlp_mm.datasets.shapes'
# To be raised with every change of what is drawn or written.
GENERATOR_VERSION = 1
# File names hold eight digits.
MAX_COUNT = 99_999_999


class FolderInUseError(UserError, FileExistsError):
    """A folder to write to holds something else."""


def checked_parameters(
    layout: str, num_train: int, num_val: int, size: 'Sequence[int]', seed: int
) -> dict:
    """Check what a data set is made from.

    Args:
        layout (str): Name of the layout.
        num_train (int): Number of training images, >= 1.
        num_val (int): Number of validation images, >= 1.
        size (Sequence[int]): (width, height), each >= 32.
        seed (int): Seed in [0, 2**32).

    Returns:
        dict: The parameters as they stand in the manifest.

    Raises:
        UserError: A ValueError; if one is outside its range.
    """
    return dict(
        generator=GENERATOR,
        version=GENERATOR_VERSION,
        layout=layout,
        num_train=checked_integer('num_train', num_train, 1, MAX_COUNT),
        num_val=checked_integer('num_val', num_val, 1, MAX_COUNT),
        size=list(checked_size(size)),
        seed=checked_seed(seed),
    )


def save_jpeg(image: np.ndarray, path: Path) -> None:
    """Save an image as JPEG of quality 95 with full resolution of colour.

    Args:
        image (numpy.ndarray): uint8 of shape (H, W, 3), RGB.
        path (pathlib.Path): Where to.
    """
    Image.fromarray(image).save(path, format='JPEG', quality=95, subsampling=0)


def write_manifest(folder: Path, parameters: dict, complete: bool) -> None:
    """Write a folder's manifest, in one step as seen by readers.

    Args:
        folder (pathlib.Path): The folder.
        parameters (dict): What the data set is made from.
        complete (bool): Whether all of its files are written.
    """
    text = json.dumps(dict(parameters, complete=complete), indent=2) + '\n'
    draft = folder / (MANIFEST_NAME + '.tmp')
    draft.write_text(text, encoding='utf-8')
    os.replace(draft, folder / MANIFEST_NAME)


def is_ready(folder: Path, parameters: dict, files: 'Iterable[str]') -> bool:
    """Whether a folder holds a data set already; if not, whether it may be written there.

    Args:
        folder (pathlib.Path): The folder; it need not exist.
        parameters (dict): What the data set is made from.
        files (Iterable[str]): Its files, relative to the folder.

    Returns:
        bool: True if the whole data set is there. False if there is nothing, or a data set of the
        same parameters that is incomplete.

    Raises:
        FolderInUseError: A FileExistsError; if there is something else.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise FolderInUseError(f'{folder} is a file, expected a folder; choose another folder')
    if not any(folder.iterdir()):
        return False
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding='utf-8'))
        complete = manifest.pop('complete')
    except (FileNotFoundError, ValueError, TypeError, AttributeError, KeyError):
        raise FolderInUseError(
            f'{folder} is not empty and holds no data set of this generator; '
            'choose an empty or a new folder'
        ) from None
    different = [
        f'{key} {manifest.get(key)!r} instead of {value!r}'
        for key, value in parameters.items()
        if manifest.get(key) != value
    ]
    if different:
        raise FolderInUseError(
            f'{folder} holds a data set with {", ".join(different)}; '
            'remove that folder or choose another one'
        )
    return complete and all((folder / file).exists() for file in files)


def fill_folder(
    folder: 'str | Path', parameters: dict, files: 'Sequence[str]', write: 'Callable[[Path], None]'
) -> Path:
    """Write a data set unless it is there already.

    The manifest says that the data set is incomplete until its last file is written; an
    interrupted run is thus started again by the next one. Not for several processes at once.

    Args:
        folder (str | pathlib.Path): The folder; made with its parents if missing.
        parameters (dict): What the data set is made from.
        files (Sequence[str]): The files of the data set, relative to the folder.
        write (Callable[[pathlib.Path], None]): Writes all of them; their folders are there.

    Returns:
        pathlib.Path: The folder.

    Raises:
        FolderInUseError: A FileExistsError; if the folder holds something else.
    """
    folder = Path(folder)
    if is_ready(folder, parameters, files):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, parameters, complete=False)
    for subfolder in sorted({os.path.dirname(file) for file in files}):
        (folder / subfolder).mkdir(parents=True, exist_ok=True)
    write(folder)
    write_manifest(folder, parameters, complete=True)
    return folder
