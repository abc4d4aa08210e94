"""Segmentation: data sets, label images, crops, and batches that training or evaluation fail on."""

import copy
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image
from torch import nn

from cyclemlp_mm.datasets.file_names import check_list_encoding
from cyclemlp_mm.datasets.image_files import BadImageError, read_facts, split_images
from cyclemlp_mm.datasets.load_image import LoadCheckedImage, check_steps, is_decoded_here
from cyclemlp_mm.datasets.load_labels import IGNORE_INDEX as IGNORED
from cyclemlp_mm.datasets.load_labels import LoadCheckedLabels, label_step, stored_labels
from cyclemlp_mm.engine.config_data import ignore_index
from cyclemlp_mm.errors import UserError, count, some

from .files import in_parallel, report_missing, report_passed_over, sample
from .findings import Report

#: So many sizes of images are taken through a pipeline to see which sizes come out of it.
_MOST_SIZES = 20
#: A larger part of ignored pixels than this is a warning.
MOST_IGNORED = 0.1
_BINARY = {0, IGNORED}
_BACKGROUND = ('background', '_background_', 'bg', 'hintergrund', 'unlabeled', 'unlabelled')


def check_segmentation(
    report: Report, cfg: Config, split: str, dataset: ConfigDict, classes: Sequence[str], full: bool
) -> list[tuple[str, dict]]:
    """Look at a data set of mmseg's as its class lists it and its pipeline reads it."""
    infos = _infos(report, dataset)
    if not infos:
        return []
    folder = _common_folder(infos, 'img_path')
    if not dataset.get('ann_file') and folder.is_dir():
        keys = ('img_path', 'seg_map_path')
        listed = {os.path.abspath(info[key]) for info in infos for key in keys if info.get(key)}
        here, _ = split_images(folder.rglob('*'))
        others = [path for path in here if os.path.abspath(path) not in listed]
        report_passed_over(report, folder, others, 'img_suffix')
    allowed = max(1, cfg.get('max_bad_fraction', 0.05) * len(infos))
    infos = _those_there(report, infos, 'img_path', dataset, allowed, 'are missing')
    reads_labels = split == 'train' or 'LoadAnnotations' in str(dataset.get('pipeline'))
    if reads_labels and infos and infos[0].get('seg_map_path'):
        lack = 'have no label image, expected'
        infos = _those_there(report, infos, 'seg_map_path', dataset, 0, lack)
        if infos and classes:
            ignored = ignore_index(cfg, *(['train'] if split == 'train' else ['val', 'test']))
            check_labels(report, dataset, infos, classes, full, split == 'train', ignored)
    if split == 'val':
        _check_sizes(report, cfg, dataset, infos)
    return [(str(info['img_path']), info) for info in infos]


def check_labels(
    report: Report,
    dataset: dict,
    infos: Sequence[dict],
    classes: Sequence[str],
    full: bool,
    is_training: bool = True,
    ignore_index: int = IGNORED,
) -> None:
    """Look at label images as the pipeline of a data set reads them."""
    where = Path(infos[0]['seg_map_path']).parent
    step = label_step(dataset)
    ignored = {ignore_index, _ignore_label(report, dataset)}
    reduces, label_map = False, {}
    if isinstance(step, LoadCheckedLabels):  # others do all by themselves
        reduces = bool(infos[0].get('reduce_zero_label'))
        label_map = infos[0].get('label_map') or {}
        own = step.transform.reduce_zero_label
        if own not in (None, reduces):
            what = f'LoadAnnotations has reduce_zero_label={own}, but the data set {reduces}'
            report.error('pipeline', what, 'Leave it out of LoadAnnotations')
    rule = _rule(len(classes), reduces, ignored - {None}, label_map)
    for looked_at in (sample(infos, full), infos):
        look = partial(_look_at_labels, step=step)
        looks = in_parallel(look, looked_at, f'labels in {where.name}')
        pixels = sum((counts for counts, _, _ in looks), Counter())
        if set(pixels) != _BINARY or len(looked_at) == len(infos):
            break  # masks of 0 and 255 are too serious to judge by a sample
    looked = count(len(looked_at), 'label image')
    names = [Path(info['seg_map_path']).name for info in looked_at]
    broken = [f'{name} {trouble}' for name, (_, _, trouble) in zip(names, looks) if trouble]
    if broken:
        report.error(where, f'{len(broken)} of {looked} cannot be used: {some(broken, 3)}')
    if not pixels:
        report.note(where, rule)
        return

    # The class of each value; IGNORED, or None for one that names no class.
    used, share = {}, 0.0
    for stored, number in pixels.items():
        value = stored
        if reduces:
            value = IGNORED if stored in _BINARY else stored - 1
        share += number / pixels.total() * (value in ignored)  # not what label_map ignores
        value = label_map.get(value, value)
        used[stored] = value if 0 <= value < len(classes) else None
        if value in ignored:
            used[stored] = IGNORED
    # A class that is taken for 'ignore' shows in nothing else.
    fix = 'If 0 is a class here, give --ignore-label' if reduces and pixels[0] else ''
    level = 'warning' if share > MOST_IGNORED else 'note'
    report.add(level, where, f'{rule}; ignored: {share:.1%} of the pixels looked at', fix)
    stray = sorted(value for value, label in used.items() if label is None)
    unseen = [name for i, name in enumerate(classes) if i not in used.values()]
    if stray:
        first = next(n for n, (counts, _, _) in zip(names, looks) if stray[0] in counts)
        what = f'labels {some(stray, 10)} name no class; with {len(classes)} classes, {rule}'
        fix = 'Is a class name missing, or is one of these to be ignored (--ignore-label)?'
        if stray == [len(classes)] and 0 not in used:
            fix = 'Labels seem to count from 1: leave --ignore-label out (reduce_zero_label=True)'
        report.error(where, f'{what}; e.g. {stray[0]} in {first}', fix)
    elif set(pixels) == _BINARY and unseen:
        those = 'both are' if used[0] == IGNORED else '255 is'
        what = f'the {looked} looked at hold 0 and 255 only, and {those} ignored: {some(unseen)}'
        level = 'error' if is_training or len(unseen) == len(classes) else 'warning'
        fix = 'Write class indices: 1 for 255 (and give --ignore-label 255 with --data)'
        report.add(level, where, f'{what} would never be learned or evaluated', fix)
    elif len(unseen) == len(classes) and not broken:
        found = some(sorted(pixels), 10)
        report.error(where, f'no pixel of any class: {rule}; labels found: {found}')
    elif reduces and classes[-1] in unseen and pixels[0]:
        what = f'0 is in use and ignored, and {len(classes)}, the last class ({classes[-1]!r}), '
        what += f'has no pixel in {looked}: do labels count from 0?'
        if classes[0].lower() in _BACKGROUND:
            what += f' The first class is named {classes[0]!r}'
        fix = 'If so, give --ignore-label 255 with --data, or set reduce_zero_label=False'
        report.warning(where, what, fix)
    if unseen and len(unseen) < len(classes):
        missing = f'no pixel of {count(len(unseen), "class")} in the {looked} looked at'
        report.warning(where, f'{missing}: {some(unseen)}')
    _check_palettes(report, where, names, [colours for _, colours, _ in looks])


def _ignore_label(report: Report, dataset: dict) -> int | None:
    checks = [s for s in dataset.get('pipeline') or () if s.get('type') == 'CheckLabels']
    if len({(s.get('num_classes'), s.get('ignore_label')) for s in checks}) > 1:
        labels = ', then '.join(f'ignore_label={s.get("ignore_label")}' for s in checks)
        what = f'CheckLabels stands in it {len(checks)} times, with different settings ({labels})'
        report.error('pipeline', what, 'Leave all but one out of the config')
    return checks[0].get('ignore_label') if checks else None


def _rule(num_classes: int, reduces: bool, ignored: set[int], label_map: dict) -> str:
    """In words, what the pixels of a label image mean."""
    if label_map:
        kept = sum(new != IGNORED for new in label_map.values())
        return f"{kept} of the data set's {len(label_map)} classes are in use (label_map)"
    if reduces:
        return f'labels 1 to {num_classes} are the classes, 0 and 255 are ignored' + (
            ' (reduce_zero_label=True: 1 is taken off)'
        )
    values = ' and '.join(map(str, sorted(ignored))) + (' are' if len(ignored) > 1 else ' is')
    classes = f'labels 0 to {num_classes - 1} are the classes'
    return f'{classes}, {values} ignored (reduce_zero_label=False)'


def _check_palettes(
    report: Report, where: Path, names: list[str], palettes: list[dict[int, tuple]]
) -> None:
    """Files whose palettes differ: a value may be another class in each."""
    found: dict[int, dict[tuple, str]] = defaultdict(dict)
    for name, palette in zip(names, palettes):
        for value, colour in palette.items():
            found[value].setdefault(colour, name)
    differ = sorted((value, files) for value, files in found.items() if len(files) > 1)
    if differ:
        value, files = differ[0]
        (colour, name), (other, second) = list(files.items())[:2]
        what = f'the palettes of label images differ: {value} is {colour} in {name} and {other} in '
        what += f'{second} ({count(len(differ), "value")} in all); training reads indices'
        report.warning(where, what, 'Convert all of them to one palette')


def _look_at_labels(info: dict, step: object) -> tuple[Counter[int], dict[int, tuple], str | None]:
    """Pixels and palette colours of each value of a label image, and what is wrong with it."""
    path = info['seg_map_path']
    try:
        values = np.asarray(stored_labels(step, info))
    except BadImageError as error:
        reason = str(error).removeprefix(f'{path} ').removeprefix('cannot be read ')
        return Counter(), {}, f'cannot be read ({reason.strip("()")})'
    if values.ndim != 2:
        trouble = f'is {values.shape}: save label indices in one channel, not colours'
        return Counter(), {}, trouble
    found, numbers = np.unique(values, return_counts=True)
    if (found != found.astype(np.uint8)).any():
        return Counter(), {}, f'has labels up to {found.max():g}; mmseg reads 8 bits, up to 255'
    counts = Counter(dict(zip(found.astype(int).tolist(), numbers.tolist())))
    colours = _palette(path, counts) if isinstance(step, LoadCheckedLabels) else {}
    try:
        facts = read_facts(info['img_path'])
    except BadImageError:
        return counts, colours, None  # another kind of file, or the images' own check reports it
    if values.shape in (facts.stored, facts.turned):
        return counts, colours, None
    (height, width), (rows, columns) = values.shape, facts.turned
    return counts, colours, f'is {width}×{height}, but its image is {columns}×{rows}'


def _palette(path: str, values: Counter[int]) -> dict[int, tuple]:
    """Colours of the values, where the file has a palette."""
    try:
        with Image.open(path) as image:
            palette = image.getpalette() if image.mode == 'P' else None
    except (OSError, ValueError, SyntaxError):
        return {}
    palette = palette or []
    return {v: tuple(palette[3 * v : 3 * v + 3]) for v in values if 3 * v + 3 <= len(palette)}


def check_crop(report: Report, cfg: Config) -> None:
    """Compare the crops of the training with the canvas that batches are padded to."""
    canvas = (cfg.model.get('data_preprocessor') or {}).get('size')
    dataset = cfg.train_dataloader.get('dataset') or {}
    while 'dataset' in dataset and not dataset.get('pipeline'):
        dataset = dataset['dataset']
    crop = None  # height and width that the pipeline gives, where a step of mmseg's decides it
    for step in dataset.get('pipeline') or ():
        kind, scale = str(step.get('type')).rpartition('.')[2], step.get('scale')
        if kind == 'RandomCrop':
            crop = step.get('crop_size')
        elif kind == 'Resize' and scale and not step.get('keep_ratio'):
            crop = scale if isinstance(scale, int) else scale[::-1]
        elif re.search('Resize|Pad|Crop|Mosaic|Choice|Albu', kind):
            crop = None
    if not canvas or crop is None:
        return
    canvas, crop = ((s, s) if isinstance(s, int) else tuple(s) for s in (canvas, crop))
    padding = 1 - min(1, crop[0] / canvas[0]) * min(1, crop[1] / canvas[1])
    what = f'is {_by(canvas)}, but the pipeline gives {_by(crop)}'
    if padding > 0:
        what += f': {padding:.0%} of each training image will be padding'
    else:
        what += ': smaller images are not padded to that, and a batch of several sizes fails'
    if canvas != crop:
        fix = f'Set it to {crop}, or fit the pipeline'
        report.warning('model.data_preprocessor.size', what, fix)


def check_batch_of_one(
    report: Report, cfg: Config, model: nn.Module, number: int | None = None
) -> None:
    """Find batch norms that see one value for each channel, by a training step's forward pass."""
    loader, processes = cfg.train_dataloader, int(os.environ.get('WORLD_SIZE', 1))
    size, last = loader.get('batch_size', 1), None
    sampler = str((loader.get('sampler') or {}).get('type'))
    if number and 'DefaultSampler' in sampler and not loader.get('drop_last'):
        last = -(-number // processes) % size  # images in the last batch of an epoch; 0 is all
    if 1 not in (size, last) or not hasattr(model, 'decode_head'):
        return
    if processes > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
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
        if 'more than 1 value per channel' not in str(error):
            return  # of heads that take other arguments; training decides there
        what = f'is {size}, and the last batch of {number} images is one image'
        fix = 'Set train_dataloader.drop_last=True'
        if size == 1:
            what, fix = 'is 1 for each process', 'Set it to 2 or more'
        what += ', but a BN of the model needs two values or more for each channel'
        fix += ', or take GN: model.decode_head.norm_cfg=dict(type="GN", num_groups=8)'
        report.error('train_dataloader.batch_size', what, fix)


def _infos(report: Report, dataset: ConfigDict) -> list[dict]:
    """What mmseg's data set lists, one dict per image; an empty list where something is wrong."""
    root, prefix = Path(dataset.get('data_root') or '.'), dataset.get('data_prefix') or {}
    folders = [root / prefix[key] for key in ('img_path', 'seg_map_path') if prefix.get(key)]
    absent = [folder for folder in folders if '://' not in str(folder) and not folder.is_dir()]
    for folder in absent:
        report.error(folder, 'there is no such folder (data_prefix of a data set)')
    ann_file = root / (dataset.get('ann_file') or '')
    try:
        if dataset.get('ann_file') and not ann_file.is_dir():
            check_list_encoding(ann_file)
    except UserError as error:
        report.error(ann_file, str(error).removeprefix(f'{ann_file} '))
        return []
    if absent:
        return []
    try:
        data = DATASETS.build({**dataset, 'pipeline': []})
        infos = [data.get_data_info(i) for i in range(len(data))]
    except (OSError, ValueError, AssertionError, KeyError, TypeError) as error:
        first = f'{type(error).__name__}: {(str(error).strip().splitlines() or [""])[0]}'
        report.error('dataset', f'{dataset.get("type")} cannot be built ({first})')
        return []
    if not infos:
        where, suffix = [*folders, root][0], getattr(data, 'img_suffix', '')
        report.error(where, f'there is no image ending in {suffix} (img_suffix)')
    return [info for info in infos if isinstance(info.get('img_path'), str)]


def _common_folder(infos: list[dict], key: str) -> Path:
    return Path(os.path.commonpath([os.path.dirname(info[key]) for info in infos]))


def _those_there(
    report: Report, infos: list[dict], key: str, dataset: ConfigDict, allowed: float, lack: str
) -> list[dict]:
    """Infos whose file is there; reports the others."""
    folder, there, missing = _common_folder(infos, key), [], []
    for info in infos:
        path = info[key]
        if dataset.get('backend_args') or '://' in path or os.path.exists(path):
            there.append(info)
        else:
            missing.append(os.path.relpath(path, folder))
    report_missing(report, folder, folder, missing, len(infos), allowed, lack)
    return there


def _check_sizes(report: Report, cfg: Config, dataset: ConfigDict, infos: list[dict]) -> None:
    """Whether images of one batch have one size after the pipeline, as mmseg needs it."""
    loaders = {key: cfg.get(key) or {} for key in ('val_dataloader', 'test_dataloader')}
    batches = {f'{k}.batch_size': loader.get('batch_size', 1) for k, loader in loaders.items()}
    if max(batches.values()) == 1 or not infos:
        return
    steps = [TRANSFORMS.build(step) for step in dataset.get('pipeline') or ()]
    check_steps(steps, True)
    loader = next((step for step in steps if isinstance(step, LoadCheckedImage)), None)
    chosen = sample(infos, False)
    if loader is not None and is_decoded_here(loader.transform):
        sizes = in_parallel(_size, infos, 'sizes of images')
        chosen = list(dict(zip(sizes, infos)).values())
    found = {size for size in map(partial(_size_after, steps), chosen[:_MOST_SIZES]) if size}
    for key, size in batches.items() if len(found) > 1 else ():
        if size > 1:
            sizes = some([_by(size) for size in sorted(found)], 3)
            what = f'is {size}, but the pipeline makes images of several sizes ({sizes})'
            report.error(key, what, 'Set it to 1')


def _size(info: dict) -> tuple | None:
    try:
        facts = read_facts(info['img_path'])
    except BadImageError:
        return None
    return facts.stored, facts.turned


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
