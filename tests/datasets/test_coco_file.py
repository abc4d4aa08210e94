"""Annotation files are read once, and let go of."""

import gc
import json
import sys
import weakref

import pytest

from cyclemlp_mm.apis.train import train
from cyclemlp_mm.datasets import coco_file
from cyclemlp_mm.datasets.coco_file import annotations_kept, category_names, read_coco
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


def test_nested_too_deeply(file):
    file.write_text('[' * 100_000)
    with pytest.raises(UserError, match='is no JSON'):
        read_coco(file)


def test_a_training_reads_each_file_once_for_data_and_check(tmp_path, parsed, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / 'shapes', 4, 2, (64, 48))

    def stop(*arguments):
        assert coco_file._kept is None  # let go of before anything is built
        raise UserError('far enough')

    # By its module: the package has the function of the same name.
    monkeypatch.setattr(sys.modules['cyclemlp_mm.apis.train'], '_build_runner', stop)
    with pytest.raises(UserError, match='far enough'):
        train(['retinanet_cyclemlp_demo', '--data', 'shapes', '--work-dir', 'wd'])
    assert sorted(parsed) == ['instances_train2017.json', 'instances_val2017.json']
