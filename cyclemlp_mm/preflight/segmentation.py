"""Segmentation: data sets, crops, and batches that only training or evaluation would fail on."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, TRANSFORMS
from torch import nn

from cyclemlp_mm.datasets.file_names import check_list_encoding
from cyclemlp_mm.datasets.image_files import BadImageError, image_facts, read_file, split_images
from cyclemlp_mm.datasets.load_image import LoadCheckedImage, check_steps, is_decoded_here
from cyclemlp_mm.engine.config_data import ignore_index
from cyclemlp_mm.errors import UserError

from .files import in_parallel, report_missing, report_passed_over, sample
from .findings import Report, some
from .labels import check_labels

#: So many sizes of images are taken through a pipeline to see which sizes come out of it.
_MOST_SIZES = 20


def check_segmentation(
    report: Report, cfg: Config, split: str, dataset: ConfigDict, classes: Sequence[str], full: bool
) -> list[tuple[str, dict]]:
    """Look at a data set of mmseg's as its class lists it and its pipeline reads it."""
    infos = _infos(report, dataset)
    if not infos:
        return []
    images = [str(info['img_path']) for info in infos]
    folder = Path(os.path.commonpath([os.path.dirname(path) for path in images]))
    allowed = max(1, cfg.get('max_bad_fraction', 0.05) * len(images))
    _report_missing(report, folder, images, dataset, allowed, 'are missing')
    if not dataset.get('ann_file') and folder.is_dir():
        keys = ('img_path', 'seg_map_path')
        listed = {os.path.abspath(info[key]) for info in infos for key in keys if info.get(key)}
        here, _ = split_images(folder.rglob('*'))
        others = [path for path in here if os.path.abspath(path) not in listed]
        report_passed_over(report, folder, others, 'img_suffix')
    infos = [info for info in infos if _is_there(info['img_path'], dataset)]
    reads_labels = split == 'train' or 'LoadAnnotations' in str(dataset.get('pipeline'))
    if reads_labels and infos and infos[0].get('seg_map_path'):
        labels = [str(info['seg_map_path']) for info in infos]
        where = Path(os.path.commonpath([os.path.dirname(path) for path in labels]))
        _report_missing(report, where, labels, dataset, 0, 'have no label image, expected')
        infos = [info for info in infos if _is_there(info['seg_map_path'], dataset)]
        if infos and classes:
            phases = ('train',) if split == 'train' else ('val', 'test')
            ignored = ignore_index(cfg, *phases)
            check_labels(report, dataset, infos, classes, full, split == 'train', ignored)
    if split == 'val':
        _check_sizes(report, cfg, dataset, infos)
    return [(str(info['img_path']), info) for info in infos]


def check_crop(report: Report, cfg: Config) -> None:
    """Compare the crops of the training with the canvas that batches are padded to."""
    canvas = (cfg.model.get('data_preprocessor') or {}).get('size')
    dataset = cfg.train_dataloader.get('dataset') or {}
    while 'dataset' in dataset and not dataset.get('pipeline'):
        dataset = dataset['dataset']
    crop = _last_size(dataset.get('pipeline') or ())
    if not canvas or crop is None:
        return
    canvas = (canvas, canvas) if isinstance(canvas, int) else tuple(canvas)
    where = 'model.data_preprocessor.size'
    if any(c > k for c, k in zip(canvas, crop)):
        padding = 1 - min(1, crop[0] / canvas[0]) * min(1, crop[1] / canvas[1])
        report.warning(
            where,
            f'is {_by(canvas)}, but the pipeline gives {_by(crop)}: {padding:.0%} of each '
            "training image will be padding, which counts in the branches' weights of every "
            'CycleMLP block',
            f'Set it to {crop}, or the size in the pipeline to {canvas}',
        )
    elif canvas != crop:
        report.warning(
            where,
            f'is {_by(canvas)}, smaller than the {_by(crop)} of the pipeline: images '
            'smaller than a crop are not padded to its size, and a batch of several sizes fails',
            f'Set it to {crop}',
        )


def _last_size(steps: Sequence[dict]) -> tuple[int, int] | None:
    """Height and width that a pipeline gives to images, where a step of mmseg's decides it."""
    size = None
    for step in steps:
        kind, scale = str(step.get('type')).rpartition('.')[2], step.get('scale')
        if kind == 'RandomCrop':
            size = step.get('crop_size')
        elif kind == 'Resize' and scale and not step.get('keep_ratio'):
            size = scale if isinstance(scale, int) else scale[::-1]
        elif re.search('Resize|Pad|Crop|Mosaic|Choice|Albu', kind):
            size = None
    return (size, size) if isinstance(size, int) else size and tuple(size)


def check_batch_of_one(
    report: Report, cfg: Config, model: nn.Module, number: int | None = None
) -> None:
    """Find batch norms that see one value for each channel, by a training step's forward pass."""
    size, last = cfg.train_dataloader.get('batch_size'), _last_batch(cfg.train_dataloader, number)
    if 1 not in (size, last) or not hasattr(model, 'decode_head'):
        return
    if int(os.environ.get('WORLD_SIZE', 1)) > 1 and any(
        isinstance(module, nn.SyncBatchNorm) for module in model.modules()
    ):
        return
    model = copy.deepcopy(model).train()
    channels = cfg.model.get('backbone', {}).get('in_channels', 3)
    heads = model.auxiliary_head if getattr(model, 'with_auxiliary_head', False) else []
    heads = [model.decode_head, *(heads if isinstance(heads, nn.ModuleList) else [heads])]
    try:
        with torch.no_grad():
            levels = model.extract_feat(torch.zeros(1, channels, 64, 64))
            for head in heads:
                if isinstance(head, nn.Module):
                    head(levels)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        # Other errors come from heads that take other arguments; training decides there.
        if 'more than 1 value per channel' in str(error):
            report.error(
                'train_dataloader.batch_size',
                (
                    'is 1 for each process'
                    if size == 1
                    else f'is {size}, and the last batch of {number} images is one image'
                )
                + ', but the model normalises a '
                'map of one pixel over the batch (BN behind a global pooling, as in UPerHead, '
                'PSPHead and ASPPHead), which needs two values or more',
                ('Set it to 2 or more' if size == 1 else 'Set train_dataloader.drop_last=True')
                + ', or take GN: model.decode_head.norm_cfg='
                'dict(type="GN", num_groups=8)',
            )


def _last_batch(loader: ConfigDict, number: int | None) -> int | None:
    """Images in the last batch of an epoch of each process; None where all are of one size."""
    sampler = str((loader.get('sampler') or {}).get('type'))
    if not number or 'DefaultSampler' not in sampler or loader.get('drop_last'):
        return None
    each = -(-number // int(os.environ.get('WORLD_SIZE', 1)))
    return each % loader.get('batch_size', 1) or None


def _infos(report: Report, dataset: ConfigDict) -> list[dict]:
    """What mmseg's data set lists, one dict per image; an empty list where something is wrong."""
    root = Path(dataset.get('data_root') or '.')
    prefix = dataset.get('data_prefix') or {}
    folders = [root / prefix[key] for key in ('img_path', 'seg_map_path') if prefix.get(key)]
    absent = [folder for folder in folders if '://' not in str(folder) and not folder.is_dir()]
    for folder in absent:
        report.error(folder, 'there is no such folder (data_prefix of a data set)')
    ann_file = root / (dataset.get('ann_file') or '')
    if dataset.get('ann_file') and not ann_file.is_dir():
        try:
            check_list_encoding(ann_file)
        except UserError as error:
            report.error(ann_file, str(error).removeprefix(f'{ann_file} '))
            return []
    if absent:
        return []
    settings = {**dataset, 'pipeline': []}
    try:
        data = DATASETS.build(settings)
        infos = [data.get_data_info(i) for i in range(len(data))]
    except (OSError, ValueError, AssertionError, KeyError, TypeError) as error:
        first = (str(error).strip().splitlines() or [''])[0]
        report.error(
            'dataset', f'{dataset.get("type")} cannot be built ({type(error).__name__}: {first})'
        )
        return []
    if not infos:
        suffix = getattr(data, 'img_suffix', '')
        where = folders[0] if folders else root
        report.error(where, f'there is no image ending in {suffix} (img_suffix)')
    return [info for info in infos if isinstance(info.get('img_path'), str)]


def _is_there(path: str, dataset: ConfigDict) -> bool:
    return bool(dataset.get('backend_args')) or '://' in str(path) or os.path.exists(path)


def _report_missing(
    report: Report, folder: Path, paths: list[str], dataset: ConfigDict, allowed: float, lack: str
) -> None:
    missing = [os.path.relpath(p, folder) for p in paths if not _is_there(p, dataset)]
    report_missing(report, folder, folder, missing, len(paths), allowed, lack)


def _check_sizes(report: Report, cfg: Config, dataset: ConfigDict, infos: list[dict]) -> None:
    """Whether images of one batch have one size after the pipeline, as mmseg needs it."""
    batches = {
        f'{phase}_dataloader.batch_size': cfg[f'{phase}_dataloader'].get('batch_size', 1)
        for phase in ('val', 'test')
        if cfg.get(f'{phase}_dataloader')
    }
    larger = {key: size for key, size in batches.items() if size > 1}
    if not larger or not infos:
        return
    steps = [TRANSFORMS.build(step) for step in dataset.get('pipeline') or ()]
    check_steps(steps, True)
    loader = next((step for step in steps if isinstance(step, LoadCheckedImage)), None)
    if loader is not None and is_decoded_here(loader.transform):
        sizes = in_parallel(_size, infos, 'sizes of images')
        chosen = list(dict(zip(sizes, infos)).values())
    else:
        chosen = sample(infos, False)
    found = {size for size in map(partial(_size_after, steps), chosen[:_MOST_SIZES]) if size}
    if len(found) > 1:
        sizes = some([_by(size) for size in sorted(found)], 3)
        for key, size in larger.items():
            report.error(
                key,
                f'is {size}, but the pipeline makes images of several sizes ({sizes}), and '
                'mmseg evaluates batches of one size only',
                'Set it to 1',
            )


def _size(info: dict) -> tuple | None:
    try:
        facts = image_facts(read_file(info['img_path']), info['img_path'])
    except BadImageError:
        return None
    return facts.height, facts.width, facts.is_transposed


def _size_after(steps: list, info: dict) -> tuple[int, int] | None:
    results = copy.deepcopy(info)
    try:
        for step in steps:
            results = step(results)
    except (UserError, OSError, ValueError, AssertionError):  # other checks report it
        return None
    inputs = results.get('inputs')
    return tuple(inputs.shape[-2:]) if isinstance(inputs, torch.Tensor) else None


def _by(size: Sequence[int]) -> str:
    return '×'.join(map(str, size))
