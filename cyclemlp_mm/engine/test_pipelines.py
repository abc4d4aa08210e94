"""Changes of a config's test data: another image size, corrupted images, a folder of them."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import is_model_wrapper

from cyclemlp_mm.datasets.image_files import IMAGE_SUFFIXES
from cyclemlp_mm.errors import MissingFileError, UserError, some

from .config_data import data_sets

#: Steps that resize, and the setting that says to which size.
_SIZE_KEYS = dict(CenterCrop='crop_size', Resize='scale', ResizeEdge='scale')
_RESIZING = re.compile('Resize|Crop|Pad|Scale')
_WORDNET = re.compile(r'n\d{8}')


def input_size(cfg: Config) -> int:
    """Side of the square images that a classifier is tested on."""
    return _sizing_step(next(dataset for _, dataset in data_sets(cfg, ['test'])).pipeline)[2]


def scale_pipeline(pipeline: list[dict], size: int) -> None:
    """Let a test pipeline of a classifier make images of another size, in place."""
    last, key, own = _sizing_step(pipeline)
    for step in pipeline:
        if step is last:
            step[key] = size if isinstance(step[key], int) else (size, size)
        elif _RESIZING.search(str(step['type'])):
            name = _SIZE_KEYS[step['type']]
            is_one = isinstance(step[name], int)
            sides = [step[name]] if is_one else step[name]
            scaled = tuple(round(side * size / own) for side in sides)
            step[name] = scaled[0] if is_one else scaled


def _sizing_step(pipeline: list[dict]) -> tuple[dict, str, int]:
    """The step that makes the size of a classifier's images, its key, and the side in pixels."""
    steps = [step for step in pipeline if _RESIZING.search(str(step['type']))]
    known = all(_SIZE_KEYS.get(step['type']) in step for step in steps)
    if not steps or not known or steps[-1]['type'] == 'ResizeEdge' or steps[-1].get('keep_ratio'):
        names = ', '.join(str(step['type']) for step in steps) or 'no step that resizes'
        raise UserError(
            f'test_dataloader.dataset.pipeline has {names}; the size of images can be changed for '
            'Resize(scale=…), and for Resize or ResizeEdge with CenterCrop(crop_size=…) after it'
        )
    key = _SIZE_KEYS[steps[-1]['type']]
    value = steps[-1][key]
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) > 1:
        what = f'{key} {tuple(value)} of {steps[-1]["type"]} in test_dataloader.dataset.pipeline'
        raise UserError(f'{what} makes no square images: a series of tests needs them')
    return steps[-1], key, sides.pop()


def check_size(model: torch.nn.Module, size: int) -> None:
    """Raise a UserError if a classifier's backbone does not take square images of this side."""
    backbone = getattr(model.module if is_model_wrapper(model) else model, 'backbone', None)
    if backbone is None:  # a classifier of timm's or others, of which nothing is known
        return
    what = f'--sizes {size}: {type(backbone).__name__}'
    # A RepMLP's partitions are as large as in training; ours fills up smaller images with zeros.
    if hasattr(backbone, 'patch_hs') and any(size % s for s in backbone.img_size):
        sides = '×'.join(map(str, backbone.img_size))
        fix = 'give multiples of it, or take weights of another img_size'
        raise UserError(f'{what} has weights for partitions of {sides} px: {fix}')
    channels = getattr(backbone, 'in_channels', 3)
    image = next(backbone.parameters()).new_zeros(1, channels, size, size)
    try:
        with torch.no_grad():
            backbone.eval()(image)
    except (ValueError, RuntimeError, AssertionError, IndexError) as error:
        raise UserError(f'{what} does not take this size ({error}): leave it out') from error


def corrupt_data(dataset: ConfigDict, corruption: str, severity: int) -> None:
    """Let a data set corrupt its images: a classifier's at the end, others' right after loading."""
    types = [str(step['type']) for step in dataset.pipeline]
    loads = [i + 1 for i, kind in enumerate(types) if re.match(r'Load.*Image', kind)]
    places = [i for i, kind in enumerate(types) if kind == 'PackInputs'] or loads
    if not places:
        what = 'has neither PackInputs nor a step that loads images'
        raise UserError(f'test_dataloader.dataset.pipeline {what}: nothing can be corrupted there')
    step = dict(type='CorruptImage', corruption=corruption, severity=severity)
    dataset.pipeline = [*dataset.pipeline[: places[0]], step, *dataset.pipeline[places[0] :]]


def use_corrupted_folder(dataset: ConfigDict, root: Path, part: str) -> None:
    """Let a classifier's data set read the class folders in ``root/part``, without cropping.

    Such images are cropped already: all resizing becomes one step, to the same input size.
    """
    folder = root / part
    if not folder.is_dir():
        raise MissingFileError(f'--corrupted-data {root} lacks the folder {part}')
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    classes = list((dataset.get('metainfo') or {}).get('classes') or ())
    if classes or dataset.type != 'ImageNet':
        is_known, expected = names == classes, f"needs {some(classes)}, in the alphabet's order"
    else:
        is_known = len(names) == 1000 and all(map(_WORDNET.fullmatch, names))
        expected = "needs ImageNet's 1000: n01440764, …"
    if not is_known:
        what = f'has the class folders {some(names) or "(none)"}, but the data of the config'
        raise UserError(f'--corrupted-data {folder} {what} {expected}')
    scale = (_sizing_step(dataset.pipeline)[2],) * 2
    resize = dict(type='Resize', scale=scale, backend='pillow', interpolation='bicubic')
    kept = [step for step in dataset.pipeline if not _RESIZING.search(str(step['type']))]
    for unused in ('split', 'classes'):  # of mmpretrain's ImageNet
        dataset.pop(unused, None)
    dataset.update(type='CustomDataset', data_root=str(folder), data_prefix='', ann_file='')
    dataset.update(with_label=True, extensions=IMAGE_SUFFIXES)
    dataset.pipeline = [kept[0], resize, *kept[1:]]
