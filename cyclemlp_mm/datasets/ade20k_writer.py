"""Scenes of shapes as a data set in the layout of ADE20K (the challenge's 2016 release)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .demo_folder import checked_parameters, fill_folder, save_jpeg
from .shape_scenes import CLASSES, PALETTE, Scene, make_scene

SEGMENTATION_CLASSES = ('background', *CLASSES)
SEGMENTATION_PALETTE = [(128, 128, 128), *PALETTE]
IGNORED = 0
FOLDERS = dict(train='training', val='validation')


def label_map(scene: Scene) -> np.ndarray:
    """The label of every pixel of a scene.

    Args:
        scene (Scene): The scene.

    Returns:
        numpy.ndarray: uint8 of shape (H, W): 0 in a band of one pixel just outside each shape's
        edge, to be ignored as ADE20K's 'other'; elsewhere 1 + the index into
        ``SEGMENTATION_CLASSES``.
    """
    labels = np.full(
        scene.image.shape[:2], 1 + SEGMENTATION_CLASSES.index('background'), dtype=np.uint8
    )
    # From the lowest to the topmost: the band lies on what is below, what is above hides it.
    for mask, label in zip(scene.masks, scene.labels):
        padded = np.pad(mask, 1)
        near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        labels[near] = IGNORED
        labels[mask] = 1 + SEGMENTATION_CLASSES.index(CLASSES[label])
    return labels


def file_names(split: str, number: int) -> 'tuple[str, str]':
    """Where an image and its labels lie.

    Args:
        split (str): 'train' or 'val'.
        number (int): The image's number, >= 1.

    Returns:
        tuple[str, str]: Paths of image and label map in the data set's folder.
    """
    name = f'{FOLDERS[split]}/ADE_{split}_{number:08d}'
    return f'images/{name}.jpg', f'annotations/{name}.png'


def write_ade20k(
    out_dir: 'str | Path',
    num_train: int = 400,
    num_val: int = 100,
    size: 'Sequence[int]' = (128, 128),
    seed: int = 0,
) -> Path:
    """Write a data set of shapes in the layout of ADE20K.

    The folder gets ``images/{training,validation}/`` with ADE_train_00000001.jpg,
    ADE_val_00000001.jpg and so on, ``annotations/{training,validation}/`` with label maps of the
    same names as 8-bit grey PNG, ``classes.txt`` with one name per line, and the manifest
    ``shapes.json``. Label 0 is to be ignored (``reduce_zero_label=True``), label 1 is the
    background, labels 2, 3, ... are the shapes in the order of ``CLASSES``. Images are the same
    as those of ``write_coco``.

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
    parameters = checked_parameters('ade20k', num_train, num_val, size, seed)
    counts = dict(train=parameters['num_train'], val=parameters['num_val'])
    files = ['classes.txt']
    files += [
        file
        for split, count in counts.items()
        for number in range(1, count + 1)
        for file in file_names(split, number)
    ]

    def write(folder: Path) -> None:
        (folder / 'classes.txt').write_bytes('\n'.join((*SEGMENTATION_CLASSES, '')).encode())
        for split, count in counts.items():
            for index in range(count):
                scene = make_scene(index, parameters['size'], parameters['seed'], split)
                image_file, label_file = file_names(split, index + 1)
                save_jpeg(scene.image, folder / image_file)
                Image.fromarray(label_map(scene)).save(folder / label_file)

    return fill_folder(out_dir, parameters, files, write)
