"""Images of one shape each as a classification data set, in both of ImageNet's layouts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .demo_folder import checked_parameters, fill_folder, save_jpeg
from .shape_scenes import CLASSES, SPLITS, make_scene


def one_shape(
    index: int, size: 'Sequence[int]', seed: int, split: str
) -> 'tuple[np.ndarray, int]':
    """An image of one shape and its class.

    It is cut around the shape from a scene twice as wide and high, so that the shape fills a good
    part of it: from a third to three quarters of the short side.

    Args:
        index (int): Number of the image in its split.
        size (Sequence[int]): (width, height), each >= 32.
        seed (int): Seed of the data set.
        split (str): 'train' or 'val'.

    Returns:
        tuple[numpy.ndarray, int]: uint8 of shape (H, W, 3), RGB, and an index into ``CLASSES``.
    """
    width, height = size
    scene = make_scene(index, (2 * width, 2 * height), seed, split, max_objects=1)
    window = []
    for axis, side in ((1, height), (0, width)):
        (cells,) = np.nonzero(scene.masks[0].any(axis=axis))
        first = (int(cells[0] + cells[-1]) + 1 - side) // 2
        first = min(max(first, 0), side)  # the scene is two sides long
        window.append(slice(first, first + side))
    return scene.image[tuple(window)], int(scene.labels[0])


def _write(
    layout: str,
    out_dir: 'str | Path',
    num_train: int,
    num_val: int,
    size: 'Sequence[int]',
    seed: int,
) -> Path:
    parameters = checked_parameters(layout, num_train, num_val, size, seed)
    counts = dict(train=parameters['num_train'], val=parameters['num_val'])

    def name(split: str, index: int, label: int) -> str:
        stem = f'{split}_{index + 1:08d}.jpg'
        return f'{CLASSES[label]}/{stem}' if layout == 'folders' else stem

    def write(folder: Path) -> None:
        for split, count in counts.items():
            lines = []
            for index in range(count):
                image, label = one_shape(index, parameters['size'], parameters['seed'], split)
                file = name(split, index, label)
                save_jpeg(image, folder / split / file)
                lines.append(f'{file} {label}\n')
            if layout == 'lists':
                (folder / f'{split}_list.txt').write_bytes(''.join(lines).encode())
        if layout == 'lists':
            (folder / 'classes.txt').write_bytes('\n'.join((*CLASSES, '')).encode())

    # Which folder an image belongs to is known only once it is drawn; a data set that is complete
    # is told by its manifest, its folders and its lists.
    if layout == 'folders':
        files = [f'{split}/{label}/' for split in SPLITS for label in CLASSES]
    else:
        files = ['classes.txt', *(f'{split}_list.txt' for split in SPLITS)]
        files += [f'{s}/{name(s, i, 0)}' for s, count in counts.items() for i in range(count)]
    return fill_folder(out_dir, parameters, files, write)


def write_image_folders(
    out_dir: 'str | Path',
    num_train: int = 400,
    num_val: int = 100,
    size: 'Sequence[int]' = (128, 128),
    seed: int = 0,
) -> Path:
    """Write images of one shape each into one folder per class: ``train/circle/*.jpg``, …

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
    return _write('folders', out_dir, num_train, num_val, size, seed)


def write_image_lists(
    out_dir: 'str | Path',
    num_train: int = 400,
    num_val: int = 100,
    size: 'Sequence[int]' = (128, 128),
    seed: int = 0,
) -> Path:
    """Write the images of :func:`write_image_folders` flat, with text files of ``NAME LABEL``.

    The folder gets ``train/*.jpg``, ``val/*.jpg``, ``train_list.txt``, ``val_list.txt`` and
    ``classes.txt``. Arguments, result and errors are those of :func:`write_image_folders`.
    """
    return _write('lists', out_dir, num_train, num_val, size, seed)
