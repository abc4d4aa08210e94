"""Generated images of one shape each, in two layouts."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from cyclemlp_mm.datasets import image_folder_writer
from cyclemlp_mm.datasets.image_folder_writer import one_shape
from cyclemlp_mm.datasets.shapes import CLASSES, write_image_folders, write_image_lists

SMALL = (6, 3, (48, 40), 5)
# If the data is meant to change, raise GENERATOR_VERSION and put the new value here.
FROZEN = '4f234339f75c06d437e343b4aea04c83743d2338f2708f9041f85be70252c655'


def test_an_image_is_frozen():
    """The generator promises the same data on every machine."""
    image, label = one_shape(3, (48, 40), 5, 'train')
    assert image.shape == (40, 48, 3) and image.dtype == np.uint8
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    assert (digest, CLASSES[label]) == (FROZEN, 'square')


def test_the_shape_fills_a_good_part():
    shares = []
    for index in range(40):
        image, _ = one_shape(index, (64, 64), 0, 'val')
        # The shape is in the middle: its colour differs from the corners'.
        shares.append(np.abs(image[32, 32].astype(int) - image[0, 0]).sum() > 60)
    assert np.mean(shares) > 0.8


def test_folders_and_lists_hold_the_same(tmp_path):
    folders = write_image_folders(tmp_path / 'folders', *SMALL)
    lists = write_image_lists(tmp_path / 'lists', *SMALL)
    assert (lists / 'classes.txt').read_text().split() == list(CLASSES)
    for split, count in (('train', 6), ('val', 3)):
        assert sorted(p.name for p in (folders / split).iterdir()) == sorted(CLASSES)
        lines = (lists / f'{split}_list.txt').read_text().splitlines()
        assert len(lines) == count
        for index, line in enumerate(lines):
            name, label = line.split()
            flat = lists / split / name
            assert flat.read_bytes() == (folders / split / CLASSES[int(label)] / name).read_bytes()
            drawn, expected = one_shape(index, SMALL[2], SMALL[3], split)
            assert int(label) == expected
            with Image.open(flat) as image:
                assert np.abs(np.asarray(image).astype(int) - drawn).mean() < 4


@pytest.mark.parametrize('write', [write_image_folders, write_image_lists])
def test_second_call_writes_nothing(write, tmp_path, monkeypatch):
    folder = write(tmp_path, *SMALL)

    def refuse(*arguments):
        raise AssertionError('an image was drawn')

    monkeypatch.setattr(image_folder_writer, 'one_shape', refuse)
    assert write(folder, *SMALL) == folder


def test_layouts_do_not_overwrite_each_other(tmp_path):
    write_image_folders(tmp_path, *SMALL)
    with pytest.raises(FileExistsError, match="layout 'folders' instead of 'lists'"):
        write_image_lists(tmp_path, *SMALL)
