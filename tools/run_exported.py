#!/usr/bin/env python
"""Run an ONNX file of tools/export.py: numpy, onnxruntime, and OpenCV or Pillow; see --help.

This file can be copied to any machine: it needs neither PyTorch, nor OpenMMLab, nor this project.
"""

import argparse
import functools
import importlib
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np

SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.bmp', '.tif', '.tiff', '.webp')
SUFFIXES += ('.gif', '.ppm', '.pgm', '.pbm', '.pnm', '.jp2', '.avif')
#: By start of a file: what ends it, and what its data begins with.
ENDS = {b'\xff\xd8': (b'\xff\xd9', b'\xff\xda'), b'\x89P': (b'IEND', b'IDAT')}
OPACITY = 0.55  # of the colour of a mask or segment


class UserError(ValueError):
    """Something that the user can fix; printed without a traceback."""


@functools.cache
def optional(name):
    """A module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def read_image(path):
    """Decode a file to BGR uint8, turned as its EXIF says; a UserError if it is damaged."""
    cv2, pillow, image, content = optional('cv2'), optional('PIL.Image'), None, path.read_bytes()
    end, data = ENDS.get(content[:2], (b'', b''))
    if content.rfind(end) < content.rfind(data):  # OpenCV would fill it up with grey
        raise UserError(f'{path} is truncated: its end is missing')
    try:
        if cv2 and content:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if image is None and pillow:  # which reads some kinds that OpenCV does not
            pillow.MAX_IMAGE_PIXELS = None
            image = importlib.import_module('PIL.ImageOps').exif_transpose(pillow.open(path))
            deep = image.mode.startswith(('I', 'F'))
            image = None if deep else np.asarray(image.convert('RGB'))[..., ::-1]
    except Exception as error:  # the errors of these libraries have no common class
        raise UserError(f'{path} cannot be read as an image ({error})') from error
    if image is None:
        raise UserError(f'{path} cannot be read as an image of 8 bits; OpenCV reads most kinds')
    return image


def resize(image, size, backend, interpolation, notes):
    """Resize to (width, height), as mmcv does with this backend."""
    if min(size) < 1:
        raise UserError('it is so narrow that a side is resized to 0 px: crop or pad it')
    cv2, pillow = optional('cv2'), optional('PIL.Image')
    if (pillow if backend == 'pillow' else cv2) is None:
        missing, backend = ('OpenCV', 'pillow') if backend == 'cv2' else ('Pillow', 'cv2')
        notes.add(f'{missing} is not installed: results differ slightly from those of PyTorch')
    if backend == 'pillow':
        how = dict(bilinear=pillow.BILINEAR, bicubic=pillow.BICUBIC)[interpolation]
        return np.asarray(pillow.fromarray(np.ascontiguousarray(image)).resize(size, how))
    how = dict(bilinear=cv2.INTER_LINEAR, bicubic=cv2.INTER_CUBIC)[interpolation]
    return cv2.resize(image, size, interpolation=how)


def prepare(image, facts, notes):
    """The test pipeline: from an image to (1, 3, H, W), and (height, width) before padding."""
    for step in facts['steps']:
        (height, width), kind = image.shape[:2], step['type']
        value = step.get('scale') or step.get('crop_size') or step.get('size_divisor')
        first, second = size = value if isinstance(value, list) else (value, value)
        if kind == 'CenterCrop':
            x, y = max(0, round((width - first) / 2)), max(0, round((height - second) / 2))
            image = image[y : y + second, x : x + first]
            continue
        if kind == 'ResizeToMultiple':
            size = -(-width // first) * first, -(-height // second) * second
        elif kind == 'ResizeEdge':
            size = int(first * width / height), first
            if width < height:
                size = first, int(first * height / width)
        elif step['keep_ratio']:
            long, short = max(size) / max(height, width), min(size) / min(height, width)
            size = tuple(int(side * min(long, short) + 0.5) for side in (width, height))
        how = step.get('backend', 'cv2'), step['interpolation'] or 'bilinear'
        image = resize(image, tuple(size), *how, notes)
    (height, width), pad = image.shape[:2], facts['pad']
    image = (image[..., ::-1] if facts['to_rgb'] else image).astype(np.float32)
    if facts['mean']:
        image = (image - np.float32(facts['mean'])) / np.float32(facts['std'])
    step, least = pad['divisor'], pad['size'] or (0, 0)
    below, right = (max(-(-n // step) * step, m) - n for n, m in zip((height, width), least))
    image = np.pad(image, ((0, below), (0, right), (0, 0)), constant_values=pad['value'])
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None]), (height, width)


def paste(mask, box, size):
    """mmdet's ``_do_paste_mask``: (28, 28) in a box, resampled to the pixels of (height, width)."""
    weights = []
    for start, stop, side, cells in zip(box[:2], box[2:], size[::-1], mask.shape[::-1]):
        with np.errstate(divide='ignore', invalid='ignore'):
            place = (np.arange(side, dtype=np.float32) + 0.5 - start) / (stop - start)
        place = np.where(np.isinf(place), 0.5, place) * cells - 0.5
        weights.append(np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))))
    return weights[1] @ mask @ weights[0].T


def run_length(mask):
    """A bool mask (H, W) as COCO's compressed run-length code."""
    changes = np.flatnonzero(np.diff(mask.T.ravel().astype(np.int8), prepend=0))
    counts, text = np.diff([0, *changes, mask.size]).tolist(), ''
    for i, left in enumerate(counts):
        left, more = left - (counts[i - 2] if i > 2 else 0), True
        while more:
            bits, left = left & 31, left >> 5
            more = left != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return dict(size=list(mask.shape), counts=text)


def segment(logits, size):
    """(K, H, W), resized as PyTorch does to (height, width): the class of the highest logit."""
    place = []
    for cells, side in zip(logits.shape[1:], size):
        at = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / side)
        at = np.maximum(at - np.float32(0.5), 0)
        low = at.astype(np.int64).clip(max=cells - 1)
        place.append((low, np.minimum(low + 1, cells - 1), at - low.astype(np.float32)))
    (top, bottom, down), (left, right, along) = place
    best, labels = np.full(size, -np.inf, np.float32), np.zeros(size, np.uint16)
    for label, one in enumerate(logits):
        one = one[:, left] * (1 - along) + one[:, right] * along
        one = one[top] * (1 - down[:, None]) + one[bottom] * down[:, None]
        labels[one > best] = label
        np.maximum(best, one, out=best)
    return labels.astype(np.uint8) if len(logits) <= 256 else labels


class Model:
    """An ONNX file, and what it says of itself (``facts``); a UserError if it cannot be used."""

    def __init__(self, path):
        runtime, self.notes = importlib.import_module('onnxruntime'), set()
        known = ('CUDAExecutionProvider', 'CPUExecutionProvider')
        providers = [name for name in known if name in runtime.get_available_providers()]
        try:
            self.session = runtime.InferenceSession(str(path), providers=providers)
        except Exception as error:  # onnxruntime's errors have no common class
            raise UserError(f'{path} cannot be loaded as an ONNX model ({error})') from error
        facts = self.session.get_modelmeta().custom_metadata_map.get('cyclemlp_mm')
        self.facts = json.loads(facts or '{}')
        if self.facts.get('format') != 1:
            fix = 'write it with tools/export.py of the same version'
            raise UserError(f'{path} does not say how its images are prepared: {fix}')
        if self.facts['reasons']:
            why = '; '.join(self.facts['reasons'])
            raise UserError(f'{path} cannot be run by this program: {why}')

    def predict(self, image):
        """Scores by class; a class per pixel; or boxes, scores, labels and a list of masks."""
        facts, size = self.facts, image.shape[:2]
        inputs, (height, width) = prepare(image, facts, self.notes)
        try:
            first, *others = self.session.run(None, {'image': inputs})
        except Exception as error:  # as above
            raise UserError(f'the model cannot take this image ({error})') from error
        if facts['task'] == 'classification':
            scores = np.exp(first[0] - first[0].max())
            return scores / scores.sum()
        if facts['task'] == 'segmentation':
            return segment(first[0, :, :height, :width], size)
        scores, labels, *masks = others
        boxes = first / np.float32([width / size[1], height / size[0]] * 2)
        pairs = zip(*masks, boxes) if masks else ()
        masks = [paste(*pair, size) >= facts['mask_thr'] for pair in pairs]
        return boxes, scores, labels, masks


def draw(image, found, facts, score_thr):
    """A prediction drawn into a copy of its image, BGR uint8."""
    picture, colours = image.copy(), np.array(facts['palette'], np.uint8)[:, ::-1]
    texts = []  # x, y, class, score
    if facts['task'] == 'segmentation':
        picture = (picture * (1 - OPACITY) + colours[found] * OPACITY).astype(np.uint8)
        texts = [(4, 4 + 14 * i, label, '') for i, label in enumerate(np.unique(found))]
    elif facts['task'] == 'classification':
        best = np.argsort(-found, kind='stable')[:3]
        texts = [(4, 4 + 14 * i, label, f' {found[label]:.2f}') for i, label in enumerate(best)]
    else:
        line = max(2, min(image.shape[:2]) // 250)
        for i in np.flatnonzero(found[1] >= score_thr)[::-1]:  # the best one on top
            box, score, label = (values[i] for values in found[:3])
            x1, y1, x2, y2 = box.round().astype(int)
            for mask in found[3][i : i + 1]:
                picture[mask] = picture[mask] * (1 - OPACITY) + colours[label] * OPACITY
            inner = picture[y1 + line : y2 - line, x1 + line : x2 - line].copy()
            picture[y1:y2, x1:x2] = colours[label]
            picture[y1 + line : y2 - line, x1 + line : x2 - line] = inner
            texts.append((x1, y1, label, f' {score:.2f}'))
    cv2, pillow = optional('cv2'), optional('PIL.Image')
    canvas = pillow and pillow.fromarray(picture)
    pen = pillow and importlib.import_module('PIL.ImageDraw').Draw(canvas)
    for x, y, label, score in texts:
        text = facts['classes'][label].encode('ascii', 'backslashreplace').decode() + score
        colour = tuple(map(int, colours[label]))
        ink = (0, 0, 0) if sum(colour) > 300 else (255, 255, 255)
        if pillow:
            pen.rectangle(pen.textbbox((x, y), text), fill=colour)
            pen.text((x, y), text, fill=ink)
        else:
            x, y = int(x), int(y)
            (width, _), _ = cv2.getTextSize(text, 0, 0.4, 1)
            cv2.rectangle(picture, (x, y), (x + width, y + 12), colour, -1)
            cv2.putText(picture, text, (x, y + 10), 0, 0.4, ink)
    return np.asarray(canvas) if pillow else picture


def write_image(path, image, palette=None):
    """Write BGR, or a class per pixel with the classes' colours (OpenCV leaves these out)."""
    pillow = optional('PIL.Image')
    path.parent.mkdir(parents=True, exist_ok=True)
    if pillow is None and not optional('cv2').imwrite(str(path), image):
        raise UserError(f'{path} cannot be written')
    if pillow is not None:
        image = image[..., ::-1] if image.ndim == 3 else image
        file = pillow.fromarray(np.ascontiguousarray(image))
        if palette and image.dtype == np.uint8:
            file.putpalette([value for colour in palette for value in colour])
        file.save(path, quality=92)


def add_to_json(content, entry, found, facts):
    """Add an image and what was found, in the format of tools/infer.py; ids start at 1."""
    entry['id'] = len(content['images']) + 1
    content['images'].append(entry)
    if facts['task'] == 'classification':
        entry['scores'] = found.tolist()
    elif facts['task'] == 'segmentation':
        pairs = zip(*(values.tolist() for values in np.unique(found, return_counts=True)))
        entry['segments_info'] = [dict(category_id=i + 1, area=area) for i, area in pairs]
    else:
        boxes, scores, labels, masks = found
        for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            one = dict(id=len(content['annotations']) + 1, image_id=entry['id'], iscrowd=0)
            one |= dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1))
            one |= dict(category_id=int(labels[i]) + 1, score=float(scores[i]))
            one |= dict(segmentation=run_length(masks[i])) if masks else {}
            content['annotations'].append(one)


def find_images(items):
    """Files by a name that no other has; of folders, those with the suffix of an image."""
    found = {}
    for path in map(Path, items):
        if not path.exists():
            raise UserError(f'{path}: no such file or folder')
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        if path.is_dir():
            files = [f for f in files if f.suffix.lower() in SUFFIXES and f.name[0] != '.']
        for file in files:
            names = (f'{file.stem}-{i}' if i > 1 else file.stem for i in itertools.count(1))
            if file not in found.values():
                found[next(name for name in names if name not in found)] = file
    if not found:
        raise UserError(f'{", ".join(items)}: no images')
    return found


def run(args):
    """Predict all images; those that fail are named in a UserError at the end."""
    images, model, out = find_images(args.images), Model(args.model), Path(args.out)
    facts, failed, start = model.facts, [], time.perf_counter()
    score_thr = facts['score_thr'] if args.score_thr is None else args.score_thr
    if args.score_thr is not None and facts['task'] != 'detection':
        raise UserError(f'--score-thr is for boxes, which no model of {facts["task"]} predicts')
    if not 0 <= score_thr <= 1:
        raise UserError(f'--score-thr must be 0 to 1, but got {score_thr:g}')
    categories = [dict(id=i, name=name) for i, name in enumerate(facts['classes'], 1)]
    content = dict(images=[], annotations=[], categories=categories)
    for name, path in images.items():
        try:
            image = read_image(path)
            found = model.predict(image)
        except (UserError, OSError) as error:
            failed.append(str(error) if str(path) in str(error) else f'{path}: {error}')
            continue
        entry = dict(file_name=str(path), height=image.shape[0], width=image.shape[1])
        if facts['task'] == 'segmentation':
            entry['mask_file'] = f'masks/{name}.png'
            write_image(out / entry['mask_file'], found, facts['palette'])
        add_to_json(content, entry, found, facts)
        suffix = path.suffix.lower().replace('.jpeg', '.jpg')
        suffix = suffix if suffix in ('.jpg', '.webp') else '.png'
        picture = out / f'vis/{name}{suffix}'
        if picture.resolve() == path.resolve():
            raise UserError(f'--out {out} would overwrite {path}: use another one')
        write_image(picture, draw(image, found, facts, score_thr))
    out.mkdir(parents=True, exist_ok=True)
    (out / 'predictions.json').write_text(json.dumps(content))
    number, seconds = len(content['images']), time.perf_counter() - start
    each = f'{1000 * seconds / max(1, number):.0f} ms each'
    print(f'{number} images in {seconds:.1f} s ({each}), results in {out}', *model.notes, sep='\n')
    if failed:
        what = f'{len(failed)} of {len(images)} files could not be read or predicted'
        raise UserError('\n'.join([f'{what}, the others are done:', *failed]))


def main(argv=None):
    """Parse the command line and run; exits with 2 after an error that the user can fix."""
    parser = argparse.ArgumentParser(
        description=__doc__.replace('; see --help', ''),
        epilog='examples:\n  tools/run_exported.py model.onnx photo.jpg folder/ --out results',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('model', help='ONNX file, written with --part model')
    parser.add_argument('images', metavar='IMAGES', nargs='+', help='images and folders')
    out = dict(metavar='DIR', default='work_dirs/exported')
    parser.add_argument('--out', help='folder for the results (default: %(default)s)', **out)
    thr = "minimum score of drawn objects (default: the file's, which is 0.3)"
    parser.add_argument('--score-thr', metavar='S', type=float, help=thr)
    args = parser.parse_args(argv)
    try:
        run(args)
    except (UserError, OSError) as error:  # an OSError names its file
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
