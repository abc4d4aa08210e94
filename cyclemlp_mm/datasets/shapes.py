"""Demo data: coloured shapes that occlude one another, in the layouts of COCO, ADE20K, ImageNet.

The same arguments give the same images on the same machine.
"""

import json
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cyclemlp_mm.errors import UserError

CLASSES = ('circle', 'square', 'triangle', 'star')
# To draw results with: colours of Okabe and Ito, which colour-blind people can tell apart.
PALETTE = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167)]
SEGMENTATION_CLASSES = ('background', *CLASSES)
# Lowest and highest red, green and blue by class: with colours, a demo trains in minutes.
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


class Scene(NamedTuple):
    """An image with its objects, from the lowest to the topmost."""

    image: np.ndarray  # uint8 (H, W, 3), RGB
    masks: np.ndarray  # bool (N, H, W), the visible part of each object; no two overlap, N >= 1
    labels: np.ndarray  # int64 (N,), indices into CLASSES


def make_scene(
    index: int,
    size: Sequence[int] = (128, 128),
    seed: int = 0,
    split: str = 'train',
    max_objects: int = 6,
) -> Scene:
    """Draw one scene of 1 to ``max_objects`` objects; it depends on the arguments alone.

    ``size`` is (width, height). With ``max_objects=1``, the one object fills a third to three
    quarters of the short side.
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
    sizes = (short / 6, short * 3 / 8) if alone else (max(short / 11, 4), short / 5)
    radius = random.uniform(*sizes)
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
    """Polygons (x1, y1, x2, y2, …) from which pycocotools makes the same mask again; no holes."""
    return [((line[:, 0] + 0.5) / 3).round(2).ravel().tolist() for line in _contours(mask)[0]]


def label_map(scene: Scene) -> np.ndarray:
    """Labels, uint8 (H, W): 1 + the index into ``SEGMENTATION_CLASSES``; 0, to be ignored, in a
    band of one pixel just outside each shape.
    """
    labels = np.ones(scene.image.shape[:2], np.uint8)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    for mask, label in zip(scene.masks, scene.labels):
        labels[cv2.dilate(mask.astype(np.uint8), cross) > 0] = 0
        labels[mask] = 2 + label
    return labels


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
        images.append(dict(id=image_id, file_name=name, width=width, height=height))
        for mask, label in zip(scene.masks, scene.labels):
            annotation = dict(id=len(annotations) + 1, image_id=image_id, iscrowd=0)
            annotation['category_id'] = int(label) + 1
            annotation['bbox'] = [float(v) for v in cv2.boundingRect(mask.astype(np.uint8))]
            annotation['area'] = float(mask.sum())
            annotation['segmentation'] = mask_to_polygons(mask)
            annotations.append(annotation)
    categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    content = dict(
        info={}, licenses=[], images=images, annotations=annotations, categories=categories
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
        _save(scene.image, folder / split / CLASSES[scene.labels[0]] / f'{split}_{number:08d}.jpg')


def _lists_split(folder: Path, split: str, scenes: Iterable[Scene]) -> None:
    lines = []
    for number, scene in enumerate(scenes, start=1):
        lines.append(f'{split}_{number:08d}.jpg {scene.labels[0]}\n')
        _save(scene.image, folder / split / f'{split}_{number:08d}.jpg')
    (folder / f'{split}_list.txt').write_text(''.join(lines))


#: Of each layout: what writes a split, the names in classes.txt, and the most shapes of an image.
LAYOUTS = {
    'coco': (_coco_split, (), 6),
    'ade20k': (_ade20k_split, SEGMENTATION_CLASSES, 6),
    'folders': (_folders_split, (), 1),
    'lists': (_lists_split, CLASSES, 1),
}


def write_shapes(
    layout: str,
    out_dir: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    size: Sequence[int] = (128, 128),
    seed: int = 0,
) -> Path:
    """Write a data set of shapes; if the same one is there already, nothing is written.

    Args:
        layout (str): 'coco'; 'ade20k' (label 0 is to be ignored, 1 is the background); 'folders'
            (``train/circle/*.jpg``, …) or 'lists' (``train_list.txt``) of images with one shape.
        out_dir (str | pathlib.Path): A new or an empty folder, or one with the same data set, whole
            or interrupted.
        num_train (int): Number of training images, >= 1. Default: 400.
        num_val (int): Number of validation images, >= 1. Default: 100.
        size (Sequence[int]): (width, height) of the images, each >= 32. Default: (128, 128).
        seed (int): Seed, >= 0. Default: 0.

    Raises:
        UserError: An argument is outside its range, or ``out_dir`` holds anything else.
    """
    if min(size) < MIN_SIDE:
        raise UserError(f'size must be at least ({MIN_SIDE}, {MIN_SIDE}), got {tuple(size)}')
    if min(num_train, num_val, seed + 1) < 1:
        raise UserError('num_train and num_val must be 1 or more, seed 0 or more')
    made = dict(layout=layout, num_train=num_train, num_val=num_val, size=list(size), seed=seed)
    made['version'] = VERSION
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST
    try:
        found = json.loads(manifest.read_text()) if manifest.is_file() else {}
    except ValueError:  # half written, or of another program
        found = None
    if found == dict(made, complete=True):
        return folder
    if any(folder.iterdir()) and found != made:
        what = f'{folder} holds something else than the shapes {made}'
        raise UserError(f'{what}: remove it, or choose a new folder')
    manifest.write_text(json.dumps(made))
    write_split, classes, most = LAYOUTS[layout]
    for split, number in zip(SPLITS, (num_train, num_val)):
        scenes = (make_scene(index, size, seed, split, most) for index in range(number))
        write_split(folder, split, scenes)
    if classes:
        (folder / 'classes.txt').write_bytes('\n'.join((*classes, '')).encode())
    manifest.write_text(json.dumps(dict(made, complete=True)))
    return folder


write_coco = partial(write_shapes, 'coco')
write_ade20k = partial(write_shapes, 'ade20k')
write_image_folders = partial(write_shapes, 'folders')
write_image_lists = partial(write_shapes, 'lists')
