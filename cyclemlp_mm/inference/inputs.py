"""What a user names on the command line: files, folders, globs; images and videos."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
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

VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')
VIDEO_SUFFIXES += ('.wmv', '.flv', '.3gp', '.ogv', '.ts', '.mts')
#: A file that has less than this part of the frames that it announces is reported as truncated; the
#: announced number of some containers is an estimate.
_MOST_LOST = 0.98


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
    """Find the files of a command line.

    Args:
        items (Sequence[str]): Files, folders (their images and videos, not those of sub-folders)
            and globs (``**`` goes through folders).
        passed_over (list[Path], optional): Gets the files of folders and globs that are neither
            images nor videos by their suffix, and the images and videos in sub-folders of folders;
            hidden files are not among them.
        suffixes (tuple[str]): Further suffixes of images. Defaults to ().

    Returns:
        list[Input]: In the order of ``items``, sorted within each; each file once.

    Raises:
        MissingFileError: An item is not there, or holds nothing to predict.
        UserError: A file is neither an image nor a video by its suffix, or not a regular file.
    """
    names = {}
    for item in items:
        for path, name in _expand(
            item, [] if passed_over is None else passed_over, IMAGE_SUFFIXES + suffixes
        ):
            names.setdefault(path.resolve(), (path, name))
    found = {}
    for path, name in names.values():
        stem = unlike = str(Path(name).with_suffix(''))
        number = 2
        while unlike in found:
            unlike, number = f'{stem}-{number}', number + 1
        found[unlike] = Input(path, unlike)
    return list(found.values())


def _expand(
    item: str, passed_over: list[Path], suffixes: tuple[str, ...]
) -> Iterator[tuple[Path, str]]:
    def usable(paths: Iterable[Path]) -> list[Path]:
        files, others = split_images(paths, suffixes + VIDEO_SUFFIXES)
        passed_over.extend(others)
        return files

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
        files = usable(path.iterdir())
        deeper, _ = split_images(path.glob('*/**/*'), suffixes + VIDEO_SUFFIXES)
        passed_over += deeper
        if not files:
            raise MissingFileError(
                f'folder {item} has no images or videos'
                + f"; for the {len(deeper)} in its sub-folders, give '{item}/**/*'" * bool(deeper)
            )
        yield from ((file, file.name) for file in files)
    elif glob.has_magic(str(path)):
        root = path.parent
        while glob.has_magic(str(root)):
            root = root.parent
        files = usable(map(Path, glob.glob(str(path), recursive=True)))
        if not files:
            raise MissingFileError(f'{item} matches no images or videos')
        yield from ((file, str(file.relative_to(root))) for file in files)
    else:
        raise MissingFileError(f'{item}: no such file or folder')


def image_reader(
    cfg: Config, as_stored: bool = False
) -> Callable[[str, dict], tuple[np.ndarray, list[str]]]:
    """Make a function that reads images as the test pipeline of a config does.

    Args:
        cfg (Config): Of a model; its toolbox's scope must be the default.
        as_stored (bool): Whether EXIF rotation is ignored. Defaults to False.

    Returns:
        Callable: Takes a path and, optionally, what annotations contain about the image (``height``
        and ``width``, or ``seg_map_path``); returns the image, BGR uint8 (H, W, 3) unless the
        config's loading step makes another, and what had to be converted. Raises a UserError where
        the image cannot be used.
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
        _check_complete(path)
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
        np.ndarray: BGR uint8, (H, W, 3), with its EXIF orientation applied.

    Raises:
        UserError: It is not an image, is truncated, or cannot be decoded; with the reason.
    """
    check_regular(path)
    _check_complete(path)
    return load_image.read_image(str(path), {}, limit_pixels=False)[0]


def _check_complete(path: str | Path) -> None:
    """OpenCV fills what a truncated file lacks with grey, without an error; Pillow raises one."""
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
        raise BadImageError(f'{path} is truncated or damaged: {error}') from error


def own_suffixes(cfg: Config) -> tuple[str, ...]:
    """Suffix of the images of a config's test data, as '.npy', if the data set has one."""
    suffix = str(_test_data(cfg).get('img_suffix') or '')
    return (Path(f'x{suffix}').suffix.lower(),) if '.' in suffix else ()


def loading_steps(cfg: Config) -> list:
    """The first loading step of the test pipeline, or an empty list where there is none."""
    steps = _test_data(cfg).get('pipeline') or cfg.get('test_pipeline') or []
    return [step for step in steps if str(step.get('type')).startswith('Load')][:1]


def _test_data(cfg: Config) -> dict:
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    dataset = loader.get('dataset') or {}
    while 'pipeline' not in dataset and ('dataset' in dataset or 'datasets' in dataset):
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    return dataset


class Video:
    """A video file, read frame by frame; memory does not grow with its length.

    Args:
        path (str | Path): The file.

    Attributes:
        fps (float): Frames per second; 25 where the file has no such number.
        num_frames (int): As announced by the file, which may be wrong; 0 where it has no such
            number.

    Raises:
        UserError: It cannot be decoded.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        capture = self._open()
        fps = capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else 25.0
        self.num_frames = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        capture.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames: BGR uint8, (H, W, 3).

        Raises:
            UserError: After the last frame, where there are none, or fewer than the file announces.
        """
        capture = self._open()
        frames = 0
        try:
            while (read := capture.read())[0]:
                frames += 1
                yield read[1]
        finally:
            capture.release()
        if not frames:
            raise UserError(f'{self.path}: no frame of this video can be decoded')
        if frames < _MOST_LOST * self.num_frames:
            raise UserError(
                f'{self.path} ends after {frames} of {self.num_frames} frames: it is truncated '
                'or damaged. The decoded frames are predicted'
            )

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise UserError(f'{self.path} cannot be decoded as a video')
        return capture
