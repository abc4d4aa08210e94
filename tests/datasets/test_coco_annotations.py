"""Masks of annotation files: run-length codes, as pycocotools writes them."""

import numpy as np
import pytest

from cyclemlp_mm.datasets.coco_annotations import decode_runs, mask_trouble

mask_tools = pytest.importorskip('pycocotools.mask')


@pytest.mark.parametrize('share', [0.0, 0.02, 0.5, 1.0])
def test_compressed_counts_are_read_as_pycocotools_writes_them(share):
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
