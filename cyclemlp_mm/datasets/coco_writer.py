"""Scenes of shapes as a data set in the layout of COCO 2017."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .demo_folder import GENERATOR_VERSION, checked_parameters, fill_folder, save_jpeg
from .mask_polygons import mask_to_polygons
from .shape_scenes import CLASSES, make_scene


def image_name(number: int) -> str:
    """Name of an image's file.

    Args:
        number (int): The image's id, >= 1.

    Returns:
        str: As in '000000000001.jpg'.
    """
    return f'{number:012d}.jpg'


def mask_to_box(mask: np.ndarray) -> 'list[float]':
    """The smallest box around a mask.

    Args:
        mask (numpy.ndarray): bool of shape (H, W), not empty.

    Returns:
        list[float]: [x, y, width, height] on the grid of pixel edges, COCO's convention.
    """
    (rows,) = np.nonzero(mask.any(axis=1))
    (columns,) = np.nonzero(mask.any(axis=0))
    x, y = columns[0], rows[0]
    return [float(x), float(y), float(columns[-1] + 1 - x), float(rows[-1] + 1 - y)]


def write_split(folder: Path, split: str, count: int, size: 'tuple[int, int]', seed: int) -> None:
    """Write the images and the annotation file of one split.

    Args:
        folder (pathlib.Path): The data set's folder, with its subfolders.
        split (str): 'train' or 'val'.
        count (int): Number of images.
        size (tuple[int, int]): (width, height).
        seed (int): Seed of the data set.
    """
    images, annotations = [], []
    for index in range(count):
        scene = make_scene(index, size, seed, split)
        image_id = index + 1
        name = image_name(image_id)
        save_jpeg(scene.image, folder / f'{split}2017' / name)
        images.append(dict(id=image_id, file_name=name, width=size[0], height=size[1], license=1))
        for mask, label in zip(scene.masks, scene.labels):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=int(label) + 1,
                    bbox=mask_to_box(mask),
                    area=float(np.count_nonzero(mask)),
                    iscrowd=0,
                    segmentation=mask_to_polygons(mask),
                )
            )
    content = dict(
        info=dict(
            description='Coloured shapes, drawn by cyclemlp_mm',
            url='',
            version=str(GENERATOR_VERSION),
        ),
        licenses=[
            dict(id=1, name='CC0 1.0', url='https://creativecommons.org/publicdomain/zero/1.0/')
        ],
        images=images,
        annotations=annotations,
        categories=[
            dict(id=number, name=name, supercategory='shape')
            for number, name in enumerate(CLASSES, start=1)
        ],
    )
    # As bytes, for the same file on systems with other line ends.
    (folder / 'annotations' / f'instances_{split}2017.json').write_bytes(
        json.dumps(content, separators=(',', ':')).encode() + b'\n'
    )


def write_coco(
    out_dir: 'str | Path',
    num_train: int = 400,
    num_val: int = 100,
    size: 'Sequence[int]' = (128, 128),
    seed: int = 0,
) -> Path:
    """Write a data set of shapes in the layout of COCO 2017.

    The folder gets ``annotations/instances_{train,val}2017.json``, ``train2017/`` and
    ``val2017/`` with images 000000000001.jpg and so on, and the manifest ``shapes.json``.
    Categories have the ids 1, 2, ... in the order of ``CLASSES``. Boxes, areas and polygons are
    those of the visible part of each shape; the polygons run along pixel edges, so that
    pycocotools regains the mask exactly. Images are the same as those of ``write_ade20k``.

    If the same data set is there already, nothing is written.

    Args:
        out_dir (str | pathlib.Path): Where to; a new or an empty folder, or one with the same
            data set, whole or interrupted.
        num_train (int): Number of training images, >= 1. Default: 400.
        num_val (int): Number of validation images, >= 1. Default: 100.
        size (Sequence[int]): (width, height) of the images, each >= 32. Default: (128, 128).
        seed (int): Seed in [0, 2**32). Default: 0.

    Returns:
        pathlib.Path: ``out_dir``.

    Raises:
        UserError: A ValueError; if an argument is outside its range.
        FolderInUseError: A FileExistsError; if ``out_dir`` holds anything else.
    """
    parameters = checked_parameters('coco', num_train, num_val, size, seed)
    counts = dict(train=parameters['num_train'], val=parameters['num_val'])
    files = [f'annotations/instances_{split}2017.json' for split in counts]
    files += [
        f'{split}2017/{image_name(number)}'
        for split, count in counts.items()
        for number in range(1, count + 1)
    ]

    def write(folder: Path) -> None:
        for split, count in counts.items():
            write_split(folder, split, count, tuple(parameters['size']), parameters['seed'])

    return fill_folder(out_dir, parameters, files, write)
