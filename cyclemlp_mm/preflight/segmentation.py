"""Segmentation: label images, sizes of images, and batches that training or evaluation fail on."""

import copy
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from PIL import Image
from torch import nn

from cyclemlp_mm.datasets.image_files import BadImageError, read_facts
from cyclemlp_mm.datasets.load_image import check_steps
from cyclemlp_mm.datasets.load_labels import IGNORE_INDEX as IGNORED
from cyclemlp_mm.datasets.load_labels import LoadCheckedLabels, label_step, stored_labels
from cyclemlp_mm.engine.config_data import ignore_index
from cyclemlp_mm.engine.config_files import walk
from cyclemlp_mm.errors import UserError, count, some

from .files import in_parallel, sample
from .findings import Report

#: So many images are taken through a pipeline to see which sizes come out of it.
_MOST_SIZES = 20
#: A larger part of ignored pixels than this is a warning.
MOST_IGNORED = 0.1
_BINARY = {0, IGNORED}
_BACKGROUND = ('background', '_background_', 'bg', 'hintergrund', 'unlabeled', 'unlabelled')


def check_labels(
    report: Report,
    cfg: Config,
    split: str,
    dataset: ConfigDict,
    infos: Sequence[dict],
    classes: Sequence[str],
    full: bool,
) -> None:
    """Look at label images as the pipeline of a data set reads them."""
    where = Path(infos[0]['seg_map_path']).parent
    step, table, reduces, label_map = label_step(dataset), np.arange(256), False, {}
    if isinstance(step, LoadCheckedLabels):  # others do all by themselves
        reduces = bool(infos[0].get('reduce_zero_label'))
        label_map = infos[0].get('label_map') or {}
        try:
            table = step.table(infos[0])
        except UserError as error:
            report.error('pipeline', str(error))
            return
    checks = [s for s in dataset.get('pipeline') or () if s.get('type') == 'CheckLabels']
    if len({(s.get('num_classes'), s.get('ignore_label')) for s in checks}) > 1:
        labels = ', then '.join(f'ignore_label={s.get("ignore_label")}' for s in checks)
        what = f'CheckLabels stands in it {len(checks)} times, with different settings ({labels})'
        report.error('pipeline', what, 'Leave all but one out of the config')
    ignored = {ignore_index(cfg, *(['train'] if split == 'train' else ['val', 'test']))}
    ignored.update(s['ignore_label'] for s in checks[:1] if s.get('ignore_label') is not None)
    for looked_at in (sample(infos, full), infos):
        look = partial(_look_at_labels, step=step)
        looks = in_parallel(look, looked_at, f'labels in {where.name}')
        pixels = sum((counts for counts, _, _ in looks), Counter())
        if set(pixels) != _BINARY or len(looked_at) == len(infos):
            break  # masks of 0 and 255 are too serious to judge by a sample
    names = [Path(info['seg_map_path']).name for info in looked_at]
    looked = f'the {count(len(names), "label image")} looked at'
    broken = [f'{name} {trouble}' for name, (_, _, trouble) in zip(names, looks) if trouble]
    if broken:
        report.error(where, f'{len(broken)} of {looked} cannot be used: {some(broken, 3)}')
    if not pixels:
        return

    rule = _rule(len(classes), reduces, ignored, label_map)
    lost = sum(n for v, n in pixels.items() if table[v] in ignored and v - reduces not in label_map)
    share = lost / pixels.total()  # a class that is taken for 'ignore' shows in nothing else
    level = 'warning' if share > MOST_IGNORED else 'note'
    fix = 'If 0 is a class here, give --ignore-label' if reduces and pixels[0] else ''
    report.add(level, where, f'{rule}; ignored: {share:.1%} of the pixels looked at', fix)

    stray = sorted(v for v in pixels if table[v] >= len(classes) and table[v] not in ignored)
    used = {table[stored] for stored in pixels} - ignored
    unseen = [name for i, name in enumerate(classes) if i not in used]
    if stray:
        first = next(n for n, (counts, _, _) in zip(names, looks) if stray[0] in counts)
        what = f'labels {some(stray, 10)} name no class; with {len(classes)} classes, {rule}'
        fix = 'Is a class name missing, or is one of these to be ignored (--ignore-label)?'
        if stray == [len(classes)] and 0 not in pixels:
            fix = 'Labels seem to count from 1: leave --ignore-label out (reduce_zero_label=True)'
        report.error(where, f'{what}; e.g. {stray[0]} in {first}', fix)
    elif set(pixels) == _BINARY and unseen:
        those = 'both are' if table[0] in ignored else '255 is'
        what = f'{looked} hold 0 and 255 only, and {those} ignored: {some(unseen)}'
        level = 'error' if split == 'train' or len(unseen) == len(classes) else 'warning'
        fix = 'Write class indices: 1 for 255 (and give --ignore-label 255 with --data)'
        report.add(level, where, f'{what} would never be learned or evaluated', fix)
    elif len(unseen) == len(classes) and not broken:
        found = some(sorted(pixels), 10)
        report.error(where, f'no pixel of any class: {rule}; labels found: {found}')
    elif reduces and classes[-1] in unseen and pixels[0]:
        what = f'0 is ignored, and the last class ({classes[-1]!r}) has no pixel: do labels count '
        what += 'from 0?'
        if classes[0].lower() in _BACKGROUND:
            what += f' The first class is named {classes[0]!r}'
        fix = 'If so, give --ignore-label 255 with --data, or set reduce_zero_label=False'
        report.warning(where, what, fix)
    if unseen and len(unseen) < len(classes):
        report.warning(where, f'no pixel of {some(unseen)} in {looked}')
    for value in sorted(pixels):  # may be another class in each file
        of_value = {
            palette[value]: n for n, (_, palette, _) in zip(names, looks) if value in palette
        }
        if len(of_value) > 1:
            colours = some([f'{colour} in {name}' for colour, name in of_value.items()], 2)
            what = f'the palettes of label images differ: {value} is {colours}'
            report.warning(where, what, 'Convert all to one palette: training reads indices')
            break


def _rule(num_classes: int, reduces: bool, ignored: set[int], label_map: dict) -> str:
    """In words, what the pixels of a label image mean."""
    if label_map:
        kept = sum(new != IGNORED for new in label_map.values())
        return f"{kept} of the data set's {len(label_map)} classes are in use (label_map)"
    first, ignored = int(reduces), {0, IGNORED} if reduces else ignored
    classes = f'labels {first} to {num_classes - 1 + first} are the classes'
    values = ' and '.join(map(str, sorted(ignored))) + (' are' if len(ignored) > 1 else ' is')
    return f'{classes}, {values} ignored (reduce_zero_label={reduces})'


def _look_at_labels(info: dict, step: object) -> tuple[Counter[int], dict[int, tuple], str]:
    """Pixels and palette colours of each value of a label image, and what is wrong with it."""
    path = info['seg_map_path']
    try:
        values = np.asarray(stored_labels(step, info))
    except BadImageError as error:
        return Counter(), {}, str(error).removeprefix(f'{path} ')
    if values.ndim != 2:
        what = f'is {values.shape}: save label indices in one channel, not colours'
        return Counter(), {}, what
    found, numbers = np.unique(values, return_counts=True)
    if (found != found.astype(np.uint8)).any():
        return Counter(), {}, f'has labels up to {found.max():g}; mmseg reads 8 bits, up to 255'
    counts = Counter(dict(zip(found.astype(int).tolist(), numbers.tolist())))
    colours, what = {}, ''
    with suppress(OSError, ValueError, SyntaxError), Image.open(path) as image:
        is_stored = image.mode == 'P' and isinstance(step, LoadCheckedLabels)
        palette = (image.getpalette() or []) if is_stored else []
        colours = {v: tuple(palette[3 * v : 3 * v + 3]) for v in counts if 3 * v < len(palette)}
    with suppress(BadImageError):  # another kind of file, or the images' own check reports it
        facts = read_facts(info['img_path'])
        if values.shape not in (facts.stored, facts.turned):
            what = f'is {_by(values.shape[::-1])}, but its image is {_by(facts.turned[::-1])}'
    return counts, colours, what


def check_crop(report: Report, cfg: Config) -> None:
    """Compare the crops of the training with the canvas that batches are padded to."""
    test = cfg.model.get('test_cfg') or {}
    if test.get('mode') == 'slide' and not (test.get('crop_size') and test.get('stride')):
        what = "is 'slide', which needs crop_size and stride next to it"
        report.error('model.test_cfg.mode', what, 'Set both, e.g. (512, 512) and (341, 341)')
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
    result = f'{padding:.0%} of each training image will be padding'
    if padding == 0:
        result = 'smaller images are not padded to that, and a batch of several sizes fails'
    if canvas != crop:
        what = f'is {_by(canvas)}, but the pipeline gives {_by(crop)}: {result}'
        fix = f'Set it to {crop}, or fit the pipeline'
        report.warning('model.data_preprocessor.size', what, fix)


def check_sizes(report: Report, cfg: Config, dataset: ConfigDict, infos: Sequence[dict]) -> None:
    """Whether images of an evaluated batch have one size after the pipeline, as mmseg needs it."""
    keys = [f'{phase}_dataloader.batch_size' for phase in ('val', 'test')]
    values = dict(walk(cfg.to_dict()))
    batches = {key: values[key] for key in keys if values.get(key, 0) > 1}
    if not batches:
        return
    pipeline, found = Compose(dataset.get('pipeline')), set()
    check_steps(pipeline.transforms, False)
    headers = dict(zip(in_parallel(_size, infos, 'sizes of images'), infos))
    # Files without a header that is known have one key.
    chosen = list(headers.values()) if len(headers) > 1 else sample(infos, False)
    for info in chosen[:_MOST_SIZES]:
        with suppress(Exception):  # other checks report what does not come out of it
            found.add(tuple(pipeline(copy.deepcopy(info))['inputs'].shape[-2:]))
    for key, size in batches.items() if len(found) > 1 else ():
        made = some([_by(one) for one in sorted(found)], 3)
        what = f'is {size}, but the pipeline makes images of several sizes ({made})'
        report.error(key, what, 'Set it to 1')


def _size(info: dict) -> tuple | None:
    with suppress(BadImageError):
        return read_facts(info['img_path'])[:2]


def _by(size: Sequence[int]) -> str:
    return '×'.join(map(str, size))


def check_batch_of_one(report: Report, cfg: Config, model: nn.Module, number: int = 0) -> None:
    """Find batch norms that see one value for each channel, by a training step's forward pass.

    ``number`` is that of the training images; 0 where it is not known.
    """
    loader, processes = cfg.train_dataloader, int(os.environ.get('WORLD_SIZE', 1))
    size, last = loader.get('batch_size', 1), 0
    if 'DefaultSampler' in str(loader.get('sampler')) and not loader.get('drop_last'):
        last = -(-number // processes) % size  # images in the last batch of an epoch; 0 is all
    if 1 not in (size, last):
        return
    if processes > 1 and any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        return
    model = copy.deepcopy(model).train()
    try:
        with torch.no_grad():
            image = torch.zeros(1, cfg.model.backbone.get('in_channels', 3), 64, 64)
            maps = model.extract_feat(image)
            for head in heads_of(model):
                head(maps)
    except Exception as error:
        if 'more than 1 value per channel' not in str(error):
            return  # of models that take other arguments; training decides there
        what = f'is {size}, and the last batch of {number} images is one image'
        fix = 'Set train_dataloader.drop_last=True'
        if size == 1:
            what, fix = 'is 1 for each process', 'Set it to 2 or more'
        what += ', but a BN of the model needs two values or more for each channel'
        fix += ', or take GN: model.decode_head.norm_cfg=dict(type="GN", num_groups=8)'
        report.error('train_dataloader.batch_size', what, fix)


def heads_of(model: nn.Module) -> list[nn.Module]:
    """Heads of a segmentor, the auxiliary ones included."""
    return [module for module in model.modules() if hasattr(module, 'in_index')]
