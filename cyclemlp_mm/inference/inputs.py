"""What a user names on the command line: files, folders, globs; images and videos."""

import glob
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import mmcv
import numpy as np
from PIL import Image

from cyclemlp_mm.datasets import load_image
from cyclemlp_mm.engine.own_data import IMAGE_SUFFIXES
from cyclemlp_mm.errors import MissingFileError, UserError

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v')


@dataclass(frozen=True)
class Input:
    """A file to be predicted.

    Attributes:
        path (Path): The file.
        name (str): Name of what is written for it, without suffix, unlike any other's; may hold
            folders.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether it holds frames."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_inputs(items: 'Sequence[str]') -> 'list[Input]':
    """All files that are meant.

    Args:
        items (Sequence[str]): Files, folders (their images and videos, not those of folders in
            them) and globs (``**`` goes through folders).

    Returns:
        list[Input]: In the order of ``items``, sorted within each; each file once.

    Raises:
        MissingFileError: An item is not there, or holds nothing to predict.
        UserError: A file is neither an image nor a video by its suffix.
    """
    paths = {}  # path: its name
    for item in items:
        for path, name in _expand(item):
            paths.setdefault(path.resolve(), (path, name))
    taken, found = set(), []
    for path, name in paths.values():
        stem = str(Path(name).with_suffix(''))
        unlike, number = stem, 2
        while unlike in taken:
            unlike, number = f'{stem}-{number}', number + 1
        taken.add(unlike)
        found.append(Input(path, unlike))
    return found


def read_image(path: 'str | Path') -> np.ndarray:
    """Decode an image as OpenMMLab's pipelines do.

    Args:
        path (str | Path): The file.

    Returns:
        np.ndarray: BGR uint8, (H, W, 3); turned as its EXIF orientation says.

    Raises:
        UserError: It is no image, ends too early, or cannot be decoded; says why.
    """
    _check_whole(Path(path))
    try:
        image = mmcv.imread(str(path), flag='color')
    except cv2.error:
        image = None
    if image is None:  # as in training: Pillow knows some kinds that OpenCV does not
        image, _ = load_image.read_image(str(path), {})
    return image


def _expand(item: str) -> 'Iterable[tuple[Path, str]]':
    path = Path(item).expanduser()
    if path.is_file():
        if not _is_known(path):
            raise UserError(
                f'{item} is neither an image ({" ".join(IMAGE_SUFFIXES)}) nor a video '
                f'({" ".join(VIDEO_SUFFIXES)}) by its suffix'
            )
        return [(path, path.name)]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and _is_known(p))
        if not files:
            raise MissingFileError(f'folder {item} holds no image and no video')
        return [(file, file.name) for file in files]
    if glob.has_magic(str(path)):
        root = Path(*_before_magic(path.parts))
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
        files = [p for p in matches if p.is_file() and _is_known(p)]
        if not files:
            raise MissingFileError(f'{item} matches no image and no video')
        return [(file, str(file.relative_to(root))) for file in files]
    raise MissingFileError(f'{item}: no such file or folder')


def _before_magic(parts: 'Sequence[str]') -> 'list[str]':
    kept = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        kept.append(part)
    return kept


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES


def _check_whole(path: Path) -> None:
    """OpenCV fills what a cut file lacks with grey and says nothing; Pillow tells."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
    except Image.DecompressionBombError:
        pass  # very large, which is fine here: the file is the user's own
    except FileNotFoundError as error:
        raise MissingFileError(f'{path}: no such file') from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken files
        raise UserError(f'{path} is no whole image: {error}') from error
