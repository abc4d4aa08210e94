"""What a user names on the command line: files, folders, globs; images and videos."""

import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config

from cyclemlp_mm.datasets import image_files
from cyclemlp_mm.datasets.load_image import LoadCheckedImage, check_steps, is_decoded_here
from cyclemlp_mm.engine.bad_images import check_max_value
from cyclemlp_mm.engine.config_data import data_sets
from cyclemlp_mm.errors import MissingFileError, UserError
from cyclemlp_mm.user_path import user_path

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')
VIDEO_SUFFIXES += ('.wmv', '.flv', '.3gp', '.ogv', '.ts', '.mts')


@dataclass(frozen=True)
class Input:
    """A file to be predicted.

    Attributes:
        path (Path): The file.
        name (str): Of what is written for it: without suffix, unlike any other's, may hold folders.
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
    """Find the files of a command line, sorted within each of ``items``; each file once.

    Args:
        items (Sequence[str]): Files, folders (their images and videos, not those of sub-folders)
            and globs (``**`` goes through folders).
        passed_over (list[Path], optional): Gets the files of folders and globs that are neither
            images nor videos, and images and videos in sub-folders; no hidden files.
        suffixes (tuple[str]): Further suffixes of images. Defaults to ().

    Raises:
        UserError: An item is not there, holds nothing to predict, is not a regular file, or neither
            an image nor a video by its suffix.
    """
    passed_over = [] if passed_over is None else passed_over
    kinds = image_files.IMAGE_SUFFIXES + suffixes + VIDEO_SUFFIXES
    names, found = {}, {}
    for item in items:
        for path, name in _expand(item, passed_over, kinds):
            names.setdefault(path.resolve(), (path, str(Path(name).with_suffix(''))))
    for path, stem in names.values():
        unlike = (stem if i == 1 else f'{stem}-{i}' for i in count(1))
        name = next(name for name in unlike if name not in found)
        found[name] = Input(path, name)
    return list(found.values())


def _expand(
    item: str, passed_over: list[Path], suffixes: tuple[str, ...]
) -> Iterator[tuple[Path, str]]:
    path = user_path(item)
    image_files.check_regular(path)
    if path.is_file():
        if path.suffix.lower() not in suffixes:
            known = ' '.join(suffixes)
            raise UserError(f'{item} is neither an image nor a video by its suffix ({known})')
        yield path, path.name
        return
    if path.is_dir():
        root, found, problem = path, path.iterdir(), f'folder {item} has no images or videos'
        deeper, _ = image_files.split_images(path.glob('*/**/*'), suffixes)
        passed_over += deeper
        if deeper:
            problem += f"; for the {len(deeper)} in its sub-folders, give '{item}/**/*'"
    elif glob.has_magic(str(path)):
        root = next(folder for folder in path.parents if not glob.has_magic(str(folder)))
        found = map(Path, glob.glob(str(path), recursive=True))
        problem = f'{item} matches no images or videos'
    else:
        raise MissingFileError(f'{item}: no such file or folder')
    files, others = image_files.split_images(found, suffixes)
    passed_over += others
    if not files:
        raise MissingFileError(problem)
    yield from ((file, str(file.relative_to(root))) for file in files)


def image_reader(
    cfg: Config, as_stored: bool = False
) -> Callable[[str], tuple[np.ndarray, list[str]]]:
    """Make a function that reads images as the test pipeline of a config does.

    Args:
        cfg (Config): Of a model; its toolbox's scope must be the default.
        as_stored (bool): Whether EXIF rotation is ignored. Defaults to False.

    Returns:
        Callable: From a path to the image, BGR uint8 (H, W, 3) or as the config's loading step
        makes it, and what had to be converted.
    """
    from mmengine.registry import TRANSFORMS  # as the toolboxes build them, by the default scope

    steps = [TRANSFORMS.build(step) for step in loading_steps(cfg)]
    check_steps(steps, True, check_max_value(cfg))
    loader = next((step for step in steps if isinstance(step, LoadCheckedImage)), None)
    loader = loader or LoadCheckedImage()
    loader.limit_pixels = False

    def read(path: str | Path) -> tuple[np.ndarray, list[str]]:
        path, known = str(path), {}
        if as_stored and is_decoded_here(loader.transform):
            facts = image_files.read_facts(path, limit_pixels=False)
            known = dict(zip(('height', 'width'), facts.stored))
        return loader.read(dict(known, img_path=path))

    return read


def own_suffixes(cfg: Config) -> tuple[str, ...]:
    """Suffix of the images of a config's test data, as '.npy', if the data set has one."""
    suffix = str(test_data(cfg).get('img_suffix') or '')
    return (Path(f'x{suffix}').suffix.lower(),) if '.' in suffix else ()


def loading_steps(cfg: Config) -> list:
    """The first loading step of the test pipeline, or an empty list where there is none."""
    steps = test_data(cfg).get('pipeline') or cfg.get('test_pipeline') or []
    return [step for step in steps if str(step.get('type')).startswith('Load')][:1]


def test_data(cfg: Config) -> dict:
    """The data set that a config is tested on; an empty dict without one."""
    return next((dataset for _, dataset in data_sets(cfg, ['test', 'val'])), {})


def read_video(path: str | Path) -> Iterator[tuple[np.ndarray, float]]:
    """Frames of a video, BGR uint8 (H, W, 3), each with the frames per second (25 if unknown).

    Raises a UserError where it cannot be decoded, and at the end if there were too few frames.
    """
    capture, number = cv2.VideoCapture(str(path)), 0
    if not capture.isOpened():
        raise UserError(f'{path} cannot be decoded as a video')
    fps = capture.get(cv2.CAP_PROP_FPS)
    while (read := capture.read())[0]:
        number += 1
        yield read[1], fps if 0 < fps < 1000 else 25.0
    announced = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    if number < max(1, 0.98 * announced):  # some containers estimate it
        what = f'{path} ends after {number} of {announced} frames'
        raise UserError(f'{what}: it is truncated or damaged. The decoded frames are predicted')
