"""Trainings on images of one pixel, thin ones and one too long for the pipeline."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from toy_runs import NO_WORKERS, TINY_BACKBONE, TINY_DETECTOR, TINY_SEGMENTOR, train_toy

from cyclemlp_mm.datasets.shapes import write_ade20k, write_coco, write_image_folders

pytestmark = pytest.mark.timeout(600)
#: (width, height); of the last one, the small scales of these tests leave nothing.
SIZES = [(1, 1), (40, 1), (3, 300), (20000, 4)]


def odd_images(folder, suffix='.png'):
    """Writes them; returns their paths."""
    random = np.random.default_rng(0)
    paths = [folder / f'zz_{width}x{height}{suffix}' for width, height in SIZES]
    for path, (width, height) in zip(paths, SIZES):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, 'PNG')
    return paths


def test_detector(tmp_path):
    pytest.importorskip('mmdet')
    data = write_coco(tmp_path / 'shapes', 8, 4, (64, 64))
    for split in ('train2017', 'val2017'):
        file = data / 'annotations' / f'instances_{split}.json'
        content = json.loads(file.read_text())
        category = content['categories'][0]['id']
        for i, (path, (w, h)) in enumerate(zip(odd_images(data / split), SIZES), 9000):
            content['images'].append(dict(id=i, file_name=path.name, width=w, height=h))
            box = dict(bbox=[0, 0, w, h], area=w * h, segmentation=[[0, 0, w, 0, w, h, 0, h]])
            box.update(id=i, image_id=i, category_id=category, iscrowd=0)
            content['annotations'].append(box)
        file.write_text(json.dumps(content))
    options = [*TINY_DETECTOR, *TINY_BACKBONE, 'train_cfg.val_interval=1']
    printed = train_toy('retinanet_cyclemlp_demo', data, options=options, cwd=tmp_path)
    # Four of them are left out of training: filter_cfg of the config has min_size=32.
    assert re.search(r'Epoch\(train\)\s+\[1\]\[4/4\]', printed)
    assert re.search(r'Epoch\(val\) \[1\]\[1/1\]', printed)
    assert re.search(r'image skipped: .*val2017/zz_20000x4\.png: is too long', printed)


@pytest.mark.slow
def test_segmentor(tmp_path):
    pytest.importorskip('mmseg')
    data = write_ade20k(tmp_path / 'shapes', 4, 2, (64, 64))
    for split in ('training', 'validation'):
        for path, (width, height) in zip(odd_images(data / 'images' / split, '.jpg'), SIZES):
            labels = Image.fromarray(np.ones((height, width), np.uint8))
            labels.save(data / 'annotations' / split / f'{path.stem}.png')
    length = ['train_cfg.max_iters=6', 'train_cfg.val_interval=6', 'max_bad_fraction=0.5']
    name, options = 'fpn_cyclemlp_b1_256x256_600i_small', [*TINY_SEGMENTOR, *length]
    printed = train_toy(name, data, options=options, cwd=tmp_path)
    assert re.search(r'Iter\(train\) \[6/6\]', printed)
    assert re.search(r'Iter\(val\) \[6/6\].*mIoU', printed)
    assert re.search(r'image skipped: .*training/zz_20000x4\.jpg: is too long', printed)


def test_classifier(tmp_path):
    pytest.importorskip('mmpretrain')
    data = write_image_folders(tmp_path / 'folders', 8, 4, (64, 64))
    for split in ('train', 'val'):
        odd_images(data / split / 'circle')
    options = [*NO_WORKERS, *(f'train_cfg.{key}=1' for key in ('max_epochs', 'val_interval'))]
    options += ['train_dataloader.batch_size=6', 'default_hooks.logger.interval=1']
    printed = train_toy('cyclemlp_demo', data, options=options, cwd=tmp_path)
    assert re.search(r'Epoch\(train\)\s+\[1\]\[2/2\]', printed)
    assert re.search(r'Epoch\(val\) \[1\].*accuracy/top1: \d', printed)
