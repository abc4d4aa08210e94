"""A 6000 x 6000 image by tiles: peak memory, and whether boxes on tile borders are told twice.

    python tests/inference/prove_tiling.py [WORK_DIR OF make demo]

The image is made of the demo's own validation images, drawn 1:1 at random places, so what is in it
is known. Prints the figures, and exits with 1 where memory or doubles are beyond what is promised.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cyclemlp_mm.apis.infer import infer

SIZE, TILE, OVERLAP, LIMIT_GIB = 6000, 128, 0.4, 3.0


def make_image(data, path):
    """Paste validation images until about a quarter is covered; ground truth as (box, label)."""
    content = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())
    rng = np.random.default_rng(0)
    whole = np.full((SIZE, SIZE, 3), 128, np.uint8)
    truth = []
    step = 200  # apart by more than an image, at places that fall anywhere on the tiles' borders
    for y in range(10, SIZE - step, step):
        for x in range(10, SIZE - step, step):
            entry = content['images'][rng.integers(len(content['images']))]
            image = np.asarray(Image.open(data / 'val2017' / entry['file_name']))
            left, top = x + rng.integers(60), y + rng.integers(60)
            whole[top : top + image.shape[0], left : left + image.shape[1]] = image
            for one in content['annotations']:
                if one['image_id'] == entry['id']:
                    bx, by, bw, bh = one['bbox']
                    truth.append(((left + bx, top + by, left + bx + bw, top + by + bh),
                                  one['category_id']))  # fmt: skip
    Image.fromarray(whole).save(path, compress_level=1)
    return truth


def iou(box, boxes):
    """Of one box with many, (N, 4)."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return shared / (np.prod(box[2:] - box[:2]) + areas - shared)


def main(work_dir='work_dirs/demo'):
    """Make, predict, count."""
    work_dir = Path(work_dir)
    out = work_dir / 'tiling'
    out.mkdir(exist_ok=True)
    truth = make_image(work_dir / 'data', out / 'large.png')
    checkpoint = Path((work_dir / 'last_checkpoint').read_text().strip()).name
    infer([
        str(work_dir / 'retinanet_cyclemlp_demo.py'), str(work_dir / checkpoint),
        str(out / 'large.png'), '--out', str(out), '--json', '--tile', str(TILE),
        '--tile-overlap', str(OVERLAP), '--batch-size', '8', '--score-thr', '0.5',
        '--device', 'cpu',
    ])  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    content = json.loads((out / 'predictions.json').read_text())
    found = [a for a in content['annotations'] if a['score'] >= 0.5]
    boxes = np.array([a['bbox'] for a in found])
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([a['category_id'] for a in found])
    hit = twice = 0
    for box, label in truth:
        over = (iou(np.array(box), boxes) >= 0.5) & (labels == label)
        hit += over.any()
        twice += over.sum() > 1
    print(f'{SIZE} x {SIZE} px, tiles of {TILE} px overlapping by {OVERLAP:.0%}')
    print(f'peak memory {peak:.2f} GiB (limit {LIMIT_GIB:g})')
    print(f'{len(truth)} objects, {hit} found (IoU 0.5), {twice} of them more than once')
    return 0 if peak < LIMIT_GIB and twice <= 0.01 * len(truth) else 1


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
