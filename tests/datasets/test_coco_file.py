"""Annotation files are read once, and let go of; masks are judged as pycocotools writes them."""

import gc
import json
import weakref

import numpy as np
import pytest

from cyclemlp_mm.apis.train import train
from cyclemlp_mm.datasets import coco_file
from cyclemlp_mm.datasets.coco_file import (
    annotations_kept,
    category_names,
    decode_runs,
    mask_trouble,
    read_coco,
)
from cyclemlp_mm.datasets.shapes import write_coco
from cyclemlp_mm.errors import UserError

CONTENT = dict(images=[], annotations=[], categories=[dict(id=3, name='cat')])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(CONTENT))
    return path


@pytest.fixture
def parsed(monkeypatch):
    """Names of the files that are parsed while a test runs."""
    names, parse = [], coco_file._parse
    monkeypatch.setattr(coco_file, '_parse', lambda path: names.append(path.name) or parse(path))
    return names


def test_read_once_inside_and_every_time_outside(file, parsed):
    with annotations_kept():
        assert read_coco(file) is read_coco(file)
        with annotations_kept():  # the outer one lets go
            assert category_names(file, needs_masks=False) == {3: 'cat'}
        assert read_coco(file) == CONTENT
    assert len(parsed) == 1
    assert read_coco(file) == read_coco(file) == CONTENT
    assert len(parsed) == 3


def test_a_file_that_was_written_again_is_read_again(file):
    with annotations_kept():
        read_coco(file)
        file.write_text(json.dumps(dict(CONTENT, categories=[dict(id=1, name='zebra')])))
        assert category_names(file, needs_masks=False) == {1: 'zebra'}


def test_nothing_is_kept_and_the_collector_goes_on(file):
    class Held(dict):
        """Unlike a dict, can be watched."""

    with annotations_kept():
        assert not gc.isenabled()
        coco_file._kept['held'] = held = Held()
        watched = weakref.ref(held)
        del held
        assert watched() is not None
    assert gc.isenabled() and watched() is None
    with pytest.raises(UserError, match=rf'{file.name} .*JSON'), annotations_kept():
        file.write_text('[' * 100_000)
        read_coco(file)
    assert gc.isenabled()
    gc.disable()
    try:
        with annotations_kept():
            pass
        assert not gc.isenabled()  # as it was
    finally:
        gc.enable()


def test_a_training_reads_each_file_once_for_data_and_check(tmp_path, parsed, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / 'shapes', 4, 2, (64, 48))

    def stop(*arguments):
        assert coco_file._kept is None  # let go of before anything is built
        raise UserError('far enough')

    monkeypatch.setattr('cyclemlp_mm.apis.train.build_runner', stop)
    with pytest.raises(UserError, match='far enough'):
        train(['retinanet_cyclemlp_demo', '--data', 'shapes', '--work-dir', 'wd'])
    assert sorted(parsed) == ['instances_train2017.json', 'instances_val2017.json']


@pytest.mark.parametrize('share', [0.0, 0.02, 0.5, 1.0])
def test_compressed_counts_are_read_as_pycocotools_writes_them(share):
    mask_tools = pytest.importorskip('pycocotools.mask')
    mask = np.random.RandomState(0).rand(300, 200) < share
    code = mask_tools.encode(np.asfortranarray(mask, np.uint8))
    text = code['counts'].decode()
    flat = np.concatenate([[False], mask.ravel(order='F'), [True]])
    flat[-1] = not flat[-2]
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    assert decode_runs(text) == np.diff([0, *ends]).tolist()
    assert mask_trouble(dict(size=[300, 200], counts=text), (200, 300), True) is None
    assert not decode_runs(text + 'P')  # 'P' says that more follows


def test_a_mask_in_several_parts():
    square = [1, 1, 9, 1, 9, 9, 1, 9]
    assert mask_trouble([square, [3.5, 4, 5, 6, 7, 8]], (20, 20), True) is None
    assert 'no polygon of at least' in mask_trouble([square, [1, 2]], (20, 20), True)
