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
from pycocotools import mask as coco_mask

from cyclemlp_mm.apis.infer import infer
from cyclemlp_mm.inference import Predictor, tiling

TILE, OVERLAP, SCORE, LIMIT_GIB = 128, 0.4, 0.5, 3.0


def make_image(data, path, size):
    """Paste images; returns their boxes (x, y, w, h), labels, and places as (x, y, image)."""
    content = json.loads((data / 'annotations' / 'instances_val2017.json').read_text())
    rng = np.random.default_rng(0)
    whole = np.full((size, size, 3), 128, np.uint8)
    boxes, labels, places = [], [], []
    step = 200  # apart by more than an image, at places that fall anywhere on the tiles' borders
    for y in range(10, size - step, step):
        for x in range(10, size - step, step):
            entry = content['images'][rng.integers(len(content['images']))]
            image = np.asarray(Image.open(data / 'val2017' / entry['file_name']))
            left, top = x + rng.integers(60), y + rng.integers(60)
            whole[top : top + image.shape[0], left : left + image.shape[1]] = image
            places.append((left, top, image))
            here = [a for a in content['annotations'] if a['image_id'] == entry['id']]
            boxes += [np.add(a['bbox'], (left, top, 0, 0)) for a in here]
            labels += [a['category_id'] for a in here]
    Image.fromarray(whole).save(path, compress_level=1)
    return np.array(boxes, float), np.array(labels), places


def xywh(found):
    """Boxes (x, y, w, h) and labels (from 1) of instances that count."""
    found = found.above(SCORE)
    boxes = found.boxes.astype(float)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes, found.labels + 1


def hits(boxes, labels, found, found_labels):
    """How often each object is found at an IoU of 0.5."""
    if not len(found):
        return np.zeros(len(boxes), int)
    iou = coco_mask.iou(boxes, found, [0] * len(found))
    return ((iou >= 0.5) & (labels[:, None] == found_labels)).sum(axis=1)


def each_tile_alone(boxes, labels, found, tiles, size):
    """As :func:`hits`, in the tile that has the most room around the object."""
    number = np.zeros(len(boxes), int)
    for i, box in enumerate(boxes):
        low = np.where(tiles[:, :2] > 0, box[:2] - tiles[:, :2], np.inf)
        high = np.where(tiles[:, 2:] < size, tiles[:, 2:] - (box[:2] + box[2:]), np.inf)
        room = np.minimum(low, high).min(axis=1)
        if room.max() >= 0:  # else no tile sees it whole
            number[i] = hits(boxes[i : i + 1], labels[i : i + 1], *xywh(found[room.argmax()]))[0]
    return number


def main(arguments=None):
    """Make, predict, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dir', nargs='?', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--size', type=int, default=6000, help='side in pixels (default: 6000)')
    args = parser.parse_args(arguments)
    work_dir, size = args.work_dir, args.size
    out = work_dir / 'tiling'
    out.mkdir(exist_ok=True)
    *truth, places = make_image(work_dir / 'data', out / 'large.png', size)
    last = Path((work_dir / 'last_checkpoint').read_text().strip()).name
    model = [str(work_dir / 'retinanet_cyclemlp_demo.py'), str(work_dir / last)]
    options = f'--json --tile {TILE} --tile-overlap {OVERLAP} --batch-size 8 --score-thr {SCORE}'
    with mock.patch.object(tiling, 'join_tiles', wraps=tiling.join_tiles) as join:
        infer([*model, f'{out}/large.png', '--out', str(out), '--device', 'cpu', *options.split()])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    content = json.loads((out / 'predictions.json').read_text())
    found = [a for a in content['annotations'] if a['score'] >= SCORE]
    tiled = np.array([a['bbox'] for a in found]), np.array([a['category_id'] for a in found])
    predictor = Predictor(*model, 'cpu')
    single = [], []
    for x, y, image in places:
        boxes, labels = xywh(predictor.predict([np.ascontiguousarray(image[..., ::-1])])[0])
        single[0].extend(boxes + (x, y, 0, 0))
        single[1].extend(labels)
    rows = {
        'by tiles': hits(*truth, *tiled),
        'one by one': hits(*truth, *map(np.array, single)),
        'each tile alone': each_tile_alone(*truth, *join.call_args.args[:2], size),
    }
    print(f'{size} x {size} px, tiles of {TILE} px overlapping by {OVERLAP:.0%}')
    print(f'peak memory {peak:.2f} GiB (limit {LIMIT_GIB:g})')
    for name, number in rows.items():
        print(
            f'{name:<15} {(number > 0).sum()} of {len(number)} objects found, {(number > 1).sum()} '
            'of them more than once'
        )
    slack = max(2, 0.005 * len(truth[0]))
    ours, alone = rows['by tiles'], rows['each tile alone']
    lost = (alone > 0).sum() - (ours > 0).sum()
    twice = (ours > 1).sum() - (alone > 1).sum()
    return 0 if peak < LIMIT_GIB and lost <= slack and twice <= slack else 1


if __name__ == '__main__':
    sys.exit(main())
