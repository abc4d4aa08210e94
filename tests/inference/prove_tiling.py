"""A large image by tiles: peak memory, and what joining the tiles' boxes loses or counts twice.

    python tests/inference/prove_tiling.py [WORK_DIR OF make demo] [--size 6000]

The image is made of the demo's own validation images, drawn 1:1 at random places, so what is in it
is known. "One by one" are the same images without tiles. "Each tile alone" judges every object in
the one tile that sees it best: what the model itself misses or counts twice in tiles, before
anything is joined. Prints the figures; exits with 1 if tiles take too much memory, or if joining
finds fewer objects, or counts more of them twice, by over 0.5% (or two, if that is more).
"""

import argparse
import json
import resource
import sys
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from cyclemlp_mm.apis.infer import infer
from cyclemlp_mm.inference import Predictor, tiling

TILE, OVERLAP, SCORE, LIMIT_GIB = 128, 0.4, 0.5, 3.0


def make_image(data, path, size):
    """Paste validation images; their ground truth as (box, label), and places, as (x, y, image)."""
    content = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())
    rng = np.random.default_rng(0)
    whole = np.full((size, size, 3), 128, np.uint8)
    truth, places = [], []
    step = 200  # apart by more than an image, at places that fall anywhere on the tiles' borders
    for y in range(10, size - step, step):
        for x in range(10, size - step, step):
            entry = content['images'][rng.integers(len(content['images']))]
            image = np.asarray(Image.open(data / 'val2017' / entry['file_name']))
            left, top = x + rng.integers(60), y + rng.integers(60)
            whole[top : top + image.shape[0], left : left + image.shape[1]] = image
            places.append((left, top, image))
            for one in content['annotations']:
                if one['image_id'] == entry['id']:
                    bx, by, bw, bh = one['bbox']
                    truth.append(
                        ((left + bx, top + by, left + bx + bw, top + by + bh), one['category_id'])
                    )
    Image.fromarray(whole).save(path, compress_level=1)
    return truth, places


def iou(box, boxes):
    """Of one box with many, (N, 4)."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return shared / (np.prod(box[2:] - box[:2]) + areas - shared)


def count(truth, boxes, labels):
    """Objects found at an IoU of 0.5, those found more than once, and boxes."""
    found = twice = 0
    for box, label in truth:
        over = (iou(np.array(box), boxes) >= 0.5) & (labels == label)
        found += over.any()
        twice += over.sum() > 1
    return found, twice, len(boxes)


def one_by_one(config, checkpoint, places):
    """Boxes and labels (from 1) of each pasted image by itself, in pixels of the whole."""
    predictor = Predictor(config, checkpoint, 'cpu')
    boxes, labels = [], []
    for x, y, image in places:
        [found] = predictor.predict([np.ascontiguousarray(image[..., ::-1])])
        found = found.above(SCORE)
        boxes.append(found.boxes + np.array([x, y, x, y], np.float32))
        labels.append(found.labels + 1)
    return np.concatenate(boxes), np.concatenate(labels)


def each_tile_alone(truth, found, tiles, size):
    """Objects found, and found more than once, in the tile that has the most room around them."""
    hits = np.zeros(len(truth), int)
    for i, (box, label) in enumerate(truth):
        low = np.where(tiles[:, :2] > 0, np.array(box[:2]) - tiles[:, :2], np.inf)
        high = np.where(tiles[:, 2:] < size, tiles[:, 2:] - np.array(box[2:]), np.inf)
        room = np.minimum(low, high).min(axis=1)
        if room.max() >= 0:  # else no tile sees it whole
            seen = found[room.argmax()].above(SCORE)
            hits[i] = ((iou(np.array(box), seen.boxes) >= 0.5) & (seen.labels + 1 == label)).sum()
    return (hits > 0).sum(), (hits > 1).sum()


def main(arguments=None):
    """Make, predict, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dir', nargs='?', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--size', type=int, default=6000, help='side in pixels (default: 6000)')
    args = parser.parse_args(arguments)
    work_dir, size = args.work_dir, args.size
    out = work_dir / 'tiling'
    out.mkdir(exist_ok=True)
    truth, places = make_image(work_dir / 'data', out / 'large.png', size)
    config = str(work_dir / 'retinanet_cyclemlp_demo.py')
    last = Path((work_dir / 'last_checkpoint').read_text().strip()).name
    checkpoint = str(work_dir / last)
    with mock.patch.object(tiling, 'join_tiles', wraps=tiling.join_tiles) as join:
        infer(
            [
                config,
                checkpoint,
                str(out / 'large.png'),
                '--out',
                str(out),
                '--json',
                '--tile',
                str(TILE),
                '--tile-overlap',
                str(OVERLAP),
                '--batch-size',
                '8',
                '--score-thr',
                str(SCORE),
                '--device',
                'cpu',
            ]
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    content = json.loads((out / 'predictions.json').read_text())
    found = [a for a in content['annotations'] if a['score'] >= SCORE]
    boxes = np.array([a['bbox'] for a in found])
    boxes[:, 2:] += boxes[:, :2]
    tiled = count(truth, boxes, np.array([a['category_id'] for a in found]))
    single = count(truth, *one_by_one(config, checkpoint, places))
    print(f'{size} x {size} px, tiles of {TILE} px overlapping by {OVERLAP:.0%}')
    print(f'peak memory {peak:.2f} GiB (limit {LIMIT_GIB:g})')
    alone = each_tile_alone(truth, *join.call_args.args[:2], size)
    rows = {'by tiles': tiled, 'one by one': single, 'each tile alone': (*alone, 'not counted')}
    for name, (hits, twice, number) in rows.items():
        print(
            f'{name:<15} {hits} of {len(truth)} objects found, {twice} of them more than once, '
            f'boxes: {number}'
        )
    slack = max(2, 0.005 * len(truth))
    joined_well = tiled[0] >= alone[0] - slack and tiled[1] <= alone[1] + slack
    return 0 if peak < LIMIT_GIB and joined_well else 1


if __name__ == '__main__':
    sys.exit(main())
