"""Time and memory of the check before a training, on annotations of the size of COCO's.

    python tests/prove_scale.py

118 287 images (links to a few files) and 860 001 boxes with polygons of 12 to 60 points, as many as
COCO 2017's train split has, are written into a temporary folder: about 0.6 GB, and as many
directory entries. Each check runs in a process of its own.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

IMAGES, BOXES, CLASSES, SIZE = 118_287, 860_001, 80, (640, 480)
LINKS = 60_000  # a file system may allow 65 000 to one file
CONFIGS = ('retinanet_cyclemlp_b1_fpn_1x_coco', 'mask_rcnn_cyclemlp_b1_fpn_1x_coco')
CHECK = """
import resource, sys, time
from cyclemlp_mm.apis.arguments import parse
from cyclemlp_mm.apis.prepare import prepare_config
from cyclemlp_mm.datasets.coco_file import annotations_kept
from cyclemlp_mm.preflight import run_preflight
begun = time.monotonic()
with annotations_kept():
    report = run_preflight(prepare_config(parse('check', sys.argv[1:])), weights=False)
    errors = len(report.of('error'))
took, peak = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
lines = open('/proc/self/status').read().splitlines()
resident = [int(x.split()[1]) // 1024 for x in lines if x.startswith('VmRSS')][0]
print(f'{sys.argv[1]}: {took:.1f} s, at most {peak} MiB, {resident} MiB when it is over; '
      f'{errors} errors')
"""


def box_in(image):
    """An annotation without its id."""
    x, y = random.randint(0, 300), random.randint(0, 200)
    width, height = random.randint(8, 300), random.randint(8, 250)
    points = random.choice((12, 20, 25, 30, 60))
    sides = ((x, width), (y, height)) * points
    polygon = [round(start + side * random.random(), 2) for start, side in sides]
    known = dict(image_id=image, category_id=random.randint(1, CLASSES), iscrowd=0)
    return dict(known, bbox=[x, y, width, height], area=width * height, segmentation=[polygon])


def write_split(root, split, images, boxes):
    """One split in COCO 2017's layout."""
    (root / f'{split}2017').mkdir()
    listed = []
    for i in range(images):
        if i % LINKS == 0:
            source = root / f'.{split}{i}.jpg'
            Image.effect_noise(SIZE, 40).convert('RGB').save(source)
        name = f'{i:012d}.jpg'
        os.link(source, root / f'{split}2017' / name)
        listed.append(dict(id=i, file_name=name, width=SIZE[0], height=SIZE[1]))
    content = dict(
        images=listed,
        annotations=[dict(box_in(random.randrange(images)), id=i + 1) for i in range(boxes)],
        categories=[dict(id=i + 1, name=f'class{i}') for i in range(CLASSES)],
    )
    file = root / 'annotations' / f'instances_{split}2017.json'
    file.write_text(json.dumps(content))
    print(f'{split}: {file.stat().st_size >> 20} MiB of annotations', flush=True)


if __name__ == '__main__':
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / 'annotations').mkdir()
        write_split(root, 'train', IMAGES, BOXES)
        write_split(root, 'val', IMAGES // 24, BOXES // 24)
        for config in CONFIGS:
            command = [sys.executable, '-W', 'ignore', '-c', CHECK, config, '--data', folder]
            subprocess.run(command, check=True)
