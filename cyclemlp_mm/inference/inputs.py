"""What a user names on the command line: files, folders, globs; images and videos."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image, UnidentifiedImageError

from cyclemlp_mm.datasets import load_image
from cyclemlp_mm.datasets.image_files import (
    IMAGE_SUFFIXES,
    BadImageError,
    check_regular,
    image_facts,
    read_file,
    split_images,
)
from cyclemlp_mm.datasets.load_image import LoadCheckedImage, check_steps, is_decoded_here
from cyclemlp_mm.engine.bad_images import check_max_value
from cyclemlp_mm.errors import MissingFileError, UserError
from cyclemlp_mm.user_path import user_path

VIDEO_SUFFIXES = (
    '.mp4',
    '.avi',
    '.mov',
    '.mkv',
    '.webm',
    '.m4v',
    '.mpg',
    '.mpeg',
    '.wmv',
    '.flv',
    '.3gp',
    '.ogv',
    '.ts',
    '.mts',
)


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


def find_inputs(
    items: Sequence[str], passed_over: list[Path] | None = None, suffixes: tuple[str, ...] = ()
) -> list[Input]:
    """All files that are meant.

    Args:
        items (Sequence[str]): Files, folders (their images and videos, not those of folders in
            them) and globs (``**`` goes through folders).
        passed_over (list[Path], optional): Gets the files of folders and globs that are neither
            images nor videos by their suffix, and the images and videos in sub-folders of folders;
            hidden files are not among them.
        suffixes (tuple[str]): That images end in, too. Defaults to ().

    Returns:
        list[Input]: In the order of ``items``, sorted within each; each file once.

    Raises:
        MissingFileError: An item is not there, or holds nothing to predict.
        UserError: A file is neither an image nor a video by its suffix, or not a regular file.
    """
    paths = {}  # path: its name
    for item in items:
        left_out = [] if passed_over is None else passed_over
        for path, name in _expand(item, left_out, IMAGE_SUFFIXES + suffixes):
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


def image_reader(
    cfg: Config, as_stored: bool = False
) -> Callable[[str, dict], tuple[np.ndarray, list[str]]]:
    """What reads images as the test pipeline of a config does.

    Args:
        cfg (Config): Of a model; its toolbox's scope must be the default.
        as_stored (bool): Whether EXIF rotation is left out. Defaults to False.

    Returns:
        Callable: Takes a path and, optionally, what annotations say about the image (``height``
        and ``width``, or ``seg_map_path``); returns the image, BGR uint8 (H, W, 3) unless the
        config's loading step says otherwise, and what had to be converted. Raises a UserError
        where the image cannot be used.
    """
    from mmengine.registry import TRANSFORMS  # as the toolboxes build them, by the default scope

    steps = [TRANSFORMS.build(step) for step in loading_steps(cfg)]
    check_steps(steps, True, check_max_value(cfg))
    loader = next((step for step in steps if isinstance(step, LoadCheckedImage)), None)

    if loader is not None:
        loader.limit_pixels = False

    def read(path: str | Path, known: dict | None = None) -> tuple[np.ndarray, list[str]]:
        path, known = str(path), dict(known or {})
        check_regular(path)
        if loader is not None and not is_decoded_here(loader.transform):
            return loader.read(dict(known, img_path=path))
        _check_whole(Path(path))
        if not known and as_stored:
            facts = image_facts(read_file(path), path, limit_pixels=False)
            known = dict(height=facts.height, width=facts.width)
        if loader is None:
            return load_image.read_image(path, known, limit_pixels=False)
        return loader.read(dict(known, img_path=path))

    return read


def read_image(path: str | Path) -> np.ndarray:
    """Decode an image as a pipeline with mmcv's ``LoadImageFromFile`` does.

    Args:
        path (str | Path): The file.

    Returns:
        np.ndarray: BGR uint8, (H, W, 3); turned as its EXIF orientation says.

    Raises:
        UserError: It is no image, ends too early, or cannot be decoded; says why.
    """
    check_regular(path)
    _check_whole(Path(path))
    return load_image.read_image(str(path), {}, limit_pixels=False)[0]


def _expand(
    item: str, passed_over: list[Path], suffixes: tuple[str, ...]
) -> Iterator[tuple[Path, str]]:
    path = user_path(item)
    check_regular(path)
    if path.is_file():
        if path.suffix.lower() not in suffixes + VIDEO_SUFFIXES:
            raise UserError(
                f'{item} is neither an image ({" ".join(suffixes)}) nor a video '
                f'({" ".join(VIDEO_SUFFIXES)}) by its suffix'
            )
        yield path, path.name
    elif path.is_dir():
        files = _images_and_videos(path.iterdir(), passed_over, suffixes)
        deeper = _images_and_videos(path.glob('*/**/*'), [], suffixes)
        passed_over += deeper
        if not files:
            raise MissingFileError(
                f'folder {item} holds no image and no video'
                + f"; for the {len(deeper)} in its sub-folders, give '{item}/**/*'" * bool(deeper)
            )
        yield from ((file, file.name) for file in files)
    elif glob.has_magic(str(path)):
        root = Path(*_before_magic(path.parts))
        matches = map(Path, glob.glob(str(path), recursive=True))
        files = _images_and_videos(matches, passed_over, suffixes)
        if not files:
            raise MissingFileError(f'{item} matches no image and no video')
        yield from ((file, str(file.relative_to(root))) for file in files)
    else:
        raise MissingFileError(f'{item}: no such file or folder')


def _images_and_videos(
    paths: Iterator[Path], passed_over: list[Path], suffixes: tuple[str, ...]
) -> list[Path]:
    files, others = split_images(paths, suffixes + VIDEO_SUFFIXES)
    passed_over += others
    return files


def _before_magic(parts: Sequence[str]) -> list[str]:
    kept = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        kept.append(part)
    return kept


def _check_whole(path: Path) -> None:
    """OpenCV fills what a cut file lacks with grey and says nothing; Pillow tells."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
    except (Image.DecompressionBombError, UnidentifiedImageError):
        pass  # very large, which is fine here: the file is the user's own; or OpenCV may read it
    except FileNotFoundError as error:
        raise MissingFileError(f'{path}: no such file') from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken files
        raise BadImageError(f'{path} is no whole image: {error}') from error


def own_suffixes(cfg: Config) -> tuple[str, ...]:
    """What the images of a config's test data end in, where the data set says so, as '.npy'."""
    suffix = str(_test_data(cfg).get('img_suffix') or '')
    return (Path(f'x{suffix}').suffix.lower(),) if '.' in suffix else ()


def _test_data(cfg: Config) -> dict:
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    dataset = loader.get('dataset') or {}
    while 'pipeline' not in dataset and ('dataset' in dataset or 'datasets' in dataset):
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    return dataset


def loading_steps(cfg: Config) -> list:
    """The first step of the test pipeline, or an empty list where there is none."""
    dataset = _test_data(cfg)
    steps = dataset.get('pipeline') or cfg.get('test_pipeline') or []
    return [step for step in steps if str(step.get('type')).startswith('Load')][:1]
