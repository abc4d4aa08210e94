"""Demo data: coloured shapes that occlude one another, in the layouts of COCO, ADE20K, ImageNet.

The same arguments give the same images on the same machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cyclemlp_mm.errors import UserError

CLASSES = ('circle', 'square', 'triangle', 'star')
# One colour per class to draw results with: blue, orange, green and purple of Okabe and Ito, which
# stay distinguishable for colour-blind people. The shapes themselves have the colours of HUES.
PALETTE = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167)]
SEGMENTATION_CLASSES = ('background', *CLASSES)
# Lowest and highest red, green and blue by class: colour and shape both show the class, so that a
# demo needs minutes of training.
HUES = (
    ((150, 255), (0, 110), (0, 110)),
    ((0, 110), (130, 255), (0, 110)),
    ((0, 110), (0, 110), (150, 255)),
    ((170, 255), (150, 255), (0, 80)),
)
# Distances of the corners from the centre, in radii; all shapes have about the same area.
CORNERS = ([1.0] * 60, [1.2] * 4, [1.36] * 3, [1.46, 0.56] * 5)
SPLITS = ('train', 'val')
MIN_SIDE = 32
MIN_PIXELS = 16  # of a visible object, which also shows at least half of its whole
VERSION = 2  # raised with every change of the images
MANIFEST = 'shapes.json'


class FolderInUseError(UserError, FileExistsError):
    """A folder to write to holds something else."""


class Scene(NamedTuple):
    """An image with its objects.

    Attributes:
        image (numpy.ndarray): uint8 of shape (H, W, 3), RGB.
        masks (numpy.ndarray): bool of shape (N, H, W), the visible part of each object, from the
            lowest to the topmost; no two overlap. N >= 1.
        labels (numpy.ndarray): int64 of shape (N,), indices into ``CLASSES``.
    """

    image: np.ndarray
    masks: np.ndarray
    labels: np.ndarray


def make_scene(
    index: int,
    size: Sequence[int] = (128, 128),
    seed: int = 0,
    split: str = 'train',
    max_objects: int = 6,
) -> Scene:
    """Draw one scene; it depends on the arguments alone, not on other scenes.

    Args:
        index (int): Number of the scene in its split, >= 0.
        size (Sequence[int]): (width, height) of the image, each >= 32. Default: (128, 128).
        seed (int): Seed of the data set, >= 0. Default: 0.
        split (str): 'train' or 'val'; the splits share no scene. Default: 'train'.
        max_objects (int): Largest number of objects, >= 1. A single one (1) fills a third to
            three quarters of the short side. Default: 6.

    Returns:
        Scene: With 1 to ``max_objects`` objects.
    """
    width, height = size
    random = np.random.default_rng([seed, SPLITS.index(split), index])
    base = random.integers(50, 206, 3)
    image = np.zeros((height, width, 3)) + base
    for cell in (min(size) // 3, min(size) // 10, 2):  # noise of three scales
        noise = random.uniform(-1, 1, (height // cell + 2, width // cell + 2))
        noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
        image += noise[..., None] * random.uniform(-14, 14, 3)
    image += _stripes(random, width, height) * random.uniform(-22, 22, 3)
    image = image.clip(0, 255)
    masks, areas, labels, colours = [], [], [], []
    number = random.integers(1, max_objects + 1)
    for _ in range(8 * number):  # a place that hides too much is not taken
        if len(labels) == number:
            break
        label = int(random.integers(len(CLASSES)))
        share = _random_shape(random, label, width, height, alone=max_objects == 1)
        mask = share >= 0.5
        visible = [lower & ~mask for lower in masks] + [mask]
        if all(map(_is_shown, visible, [*areas, mask.sum()])):
            masks = visible
            areas.append(mask.sum())
            labels.append(label)
            colours.append(_colour(random, label, base, colours))
            striped = colours[-1] * (1 - _stripes(random, width, height) * 0.3)
            fill = striped if random.random() < 0.4 else colours[-1]
            image += (fill - image) * share[..., None]
    return Scene(np.rint(image).astype(np.uint8), np.stack(masks), np.array(labels))


def _stripes(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """0 and 1 in stripes of a random direction; float64 (height, width, 1)."""
    turn = random.uniform(0, math.pi)
    period = random.uniform(0.1, 0.3) * min(width, height)
    y, x = np.mgrid[:height, :width, :1][:2]
    return ((x * math.cos(turn) + y * math.sin(turn)) // period % 2).astype(float)


def _random_shape(
    random: np.random.Generator, label: int, width: int, height: int, alone: bool
) -> np.ndarray:
    """The share of each pixel that a shape of random size, turn and place covers, in [0, 1]."""
    short = min(width, height)
    radius = random.uniform(
        *((short / 6, short * 3 / 8) if alone else (max(short / 11, 4), short / 5))
    )
    centre = [random.uniform(0.75 * radius, side - 0.75 * radius) for side in (width, height)]
    distances = radius * np.array(CORNERS[label])
    number = len(distances)
    angles = random.uniform(0, 2 * math.pi) + 2 * math.pi * np.arange(number) / number
    corners = centre + distances[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    drawn = np.zeros((height, width), np.uint8)
    fixed_point = np.rint(16 * (corners - 0.5)).astype(np.int32)
    cv2.fillPoly(drawn, [fixed_point], 255, cv2.LINE_AA, shift=4)
    return drawn / 255


def _colour(
    random: np.random.Generator, label: int, base: np.ndarray, others: Sequence[np.ndarray]
) -> np.ndarray:
    """A colour that stands out from the background's (by 180) and from other shapes' (by 100)."""
    low, high = np.array(HUES[label]).T
    candidates = random.integers(low, high + 1, (32, 3))
    margins = [np.abs(candidates - base).sum(1) - 180]
    margins += [np.abs(candidates - other).sum(1) - 100 for other in others]
    return candidates[np.minimum(np.min(margins, axis=0), 0).argmax()]


def _is_shown(visible: np.ndarray, area: int) -> bool:
    """Whether enough of a shape is visible, and without a hole, which COCO's polygons lack."""
    if visible.sum() < MIN_PIXELS or 2 * visible.sum() < area:
        return False
    return bool((_contours(visible)[1][0, :, 3] < 0).all())


def _contours(mask: np.ndarray) -> tuple:
    """OpenCV's contours of a mask at three times its size, where they run inside of its edges."""
    large = cv2.resize(mask.astype(np.uint8), None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    return cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Polygons (x1, y1, x2, y2, …) from which pycocotools makes the same mask again.

    Args:
        mask (numpy.ndarray): bool of shape (H, W), without holes.
    """
    return [((line[:, 0] + 0.5) / 3).round(2).ravel().tolist() for line in _contours(mask)[0]]


def label_map(scene: Scene) -> np.ndarray:
    """The label of every pixel of a scene.

    Returns:
        numpy.ndarray: uint8 of shape (H, W): 0, to be ignored as ADE20K's 'other', in a band of
        one pixel just outside each shape; elsewhere 1 + the index into ``SEGMENTATION_CLASSES``.
    """
    labels = np.ones(scene.image.shape[:2], np.uint8)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    for mask, label in zip(scene.masks, scene.labels):
        labels[cv2.dilate(mask.astype(np.uint8), cross) > 0] = 0
        labels[mask] = 2 + label
    return labels


def write_coco(
    out_dir: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    size: Sequence[int] = (128, 128),
    seed: int = 0,
) -> Path:
    """Write a data set of shapes in the layout of COCO 2017.

    If the same data set is there already, nothing is written.

    Args:
        out_dir (str | pathlib.Path): Where to; a new or an empty folder, or one with the same
            data set, whole or interrupted.
        num_train (int): Number of training images, >= 1. Default: 400.
        num_val (int): Number of validation images, >= 1. Default: 100.
        size (Sequence[int]): (width, height) of the images, each >= 32. Default: (128, 128).
        seed (int): Seed, >= 0. Default: 0.

    Returns:
        pathlib.Path: ``out_dir``.

    Raises:
        UserError: A ValueError; if an argument is outside its range.
        FolderInUseError: A FileExistsError; if ``out_dir`` holds anything else.
    """
    return _write('coco', _coco_split, (), 6, out_dir, num_train, num_val, size, seed)


def write_ade20k(out_dir: str | Path, *args, **kwargs) -> Path:
    """Write the images of :func:`write_coco` in the layout of ADE20K, with ``classes.txt``.

    Label 0 is to be ignored (``reduce_zero_label=True``), label 1 is the background. Arguments,
    result and errors are those of :func:`write_coco`.
    """
    return _write('ade20k', _ade20k_split, SEGMENTATION_CLASSES, 6, out_dir, *args, **kwargs)


def write_image_folders(out_dir: str | Path, *args, **kwargs) -> Path:
    """Write images of one shape each into one folder per class: ``train/circle/*.jpg``, …

    Arguments, result and errors are those of :func:`write_coco`.
    """
    return _write('folders', _folders_split, (), 1, out_dir, *args, **kwargs)


def write_image_lists(out_dir: str | Path, *args, **kwargs) -> Path:
    """Write the images of :func:`write_image_folders` flat, with text files of ``NAME LABEL``.

    The files are ``train_list.txt``, ``val_list.txt`` and ``classes.txt``. Arguments, result and
    errors are those of :func:`write_coco`.
    """
    return _write('lists', _lists_split, CLASSES, 1, out_dir, *args, **kwargs)


def _write(
    layout: str,
    write_split: Callable[[Path, str, Iterable[Scene]], None],
    listed_classes: Sequence[str],
    max_objects: int,
    out_dir: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    size: Sequence[int] = (128, 128),
    seed: int = 0,
) -> Path:
    if min(size) < MIN_SIDE:
        raise UserError(f'size must be at least ({MIN_SIDE}, {MIN_SIDE}), got {tuple(size)}')
    made = dict(layout=layout, num_train=num_train, num_val=num_val, size=list(size), seed=seed)
    for name, least in (('num_train', 1), ('num_val', 1), ('seed', 0)):
        if not isinstance(made[name], int) or made[name] < least:
            raise UserError(f'{name} must be an integer >= {least}, got {made[name]!r}')
    made.update(generator='shapes', version=VERSION)
    folder = Path(out_dir)
    if _is_complete(folder, made):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(made))  # without 'files': incomplete
    for split, number in zip(SPLITS, (num_train, num_val)):
        scenes = (make_scene(index, size, seed, split, max_objects) for index in range(number))
        write_split(folder, split, scenes)
    if listed_classes:
        (folder / 'classes.txt').write_bytes('\n'.join((*listed_classes, '')).encode())
    manifest.write_text(json.dumps(dict(made, files=_count_files(folder)), indent=2))
    return folder


def _is_complete(folder: Path, made: dict) -> bool:
    """Whether a folder holds the data set; raises if it holds anything else."""
    if folder.is_file():
        raise FolderInUseError(f'{folder} is a file, expected a folder; choose another folder')
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    try:
        manifest = dict(json.loads((folder / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError):
        raise FolderInUseError(
            f'{folder} is not empty and holds no data set of this generator; choose an empty or a '
            'new folder'
        ) from None
    different = [
        f'{key} {manifest.get(key)!r} instead of {value!r}'
        for key, value in made.items()
        if manifest.get(key) != value
    ]
    if different:
        raise FolderInUseError(
            f'{folder} holds a data set with {", ".join(different)}; remove that folder or choose '
            'another one'
        )
    return manifest.get('files') == _count_files(folder)


def _count_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob('*'))


def _save(image: np.ndarray, path: Path) -> None:
    """Save an RGB image or a label map, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image):
        raise OSError(f'{path} could not be written')


def _coco_split(folder: Path, split: str, scenes: Iterable[Scene]) -> None:
    images, annotations = [], []
    for image_id, scene in enumerate(scenes, start=1):
        name = f'{image_id:012d}.jpg'
        _save(scene.image, folder / f'{split}2017' / name)
        height, width = scene.image.shape[:2]
        images.append(dict(id=image_id, file_name=name, width=width, height=height, license=1))
        for mask, label in zip(scene.masks, scene.labels):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=int(label) + 1,
                    bbox=[float(value) for value in cv2.boundingRect(mask.astype(np.uint8))],
                    area=float(mask.sum()),
                    iscrowd=0,
                    segmentation=mask_to_polygons(mask),
                )
            )
    content = dict(
        info=dict(description='Coloured shapes, drawn by cyclemlp_mm', version=str(VERSION)),
        licenses=[dict(id=1, name='CC0 1.0')],
        images=images,
        annotations=annotations,
        categories=[
            dict(id=number, name=name, supercategory='shape')
            for number, name in enumerate(CLASSES, start=1)
        ],
    )
    file = folder / 'annotations' / f'instances_{split}2017.json'
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def _ade20k_split(folder: Path, split: str, scenes: Iterable[Scene]) -> None:
    part = dict(train='training', val='validation')[split]
    for number, scene in enumerate(scenes, start=1):
        name = f'{part}/ADE_{split}_{number:08d}'
        _save(scene.image, folder / 'images' / f'{name}.jpg')
        _save(label_map(scene), folder / 'annotations' / f'{name}.png')


def _folders_split(folder: Path, split: str, scenes: Iterable[Scene]) -> None:
    for name in CLASSES:  # also where few images leave one empty
        (folder / split / name).mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes, start=1):
        name = f'{split}_{number:08d}.jpg'
        _save(scene.image, folder / split / CLASSES[scene.labels[0]] / name)


def _lists_split(folder: Path, split: str, scenes: Iterable[Scene]) -> None:
    lines = []
    for number, scene in enumerate(scenes, start=1):
        name = f'{split}_{number:08d}.jpg'
        _save(scene.image, folder / split / name)
        lines.append(f'{name} {scene.labels[0]}\n')
    (folder / f'{split}_list.txt').write_text(''.join(lines))
