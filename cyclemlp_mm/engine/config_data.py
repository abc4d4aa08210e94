"""Data sets, evaluators and classes of a config, and class names of checkpoints."""

import os
from collections.abc import Iterator, Sequence

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from cyclemlp_mm.datasets.load_labels import IGNORE_INDEX
from cyclemlp_mm.errors import UserError

_OTHER_CLASSES = ('backbone', 'teacher', 'rpn_head', 'semantic_head')
#: 20 colours: Okabe and Ito's without black (jfly.uni-koeln.de/color), then those that stay
#: farthest apart, blended with grey and seen with normal, deuteranopic and protanopic vision.
_HEX = (
    'e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 0000ff 2d0fa5 874b0f '
    'c3ff87 78003c 5a78ff 78ffff d2ff00 00c35a 692dff 781e1e c30087 e1f0c3'
)
COLOURS = [tuple(bytes.fromhex(colour)) for colour in _HEX.split()]


def data_sets(
    cfg: Config, phases: Sequence[str] = ('train', 'val', 'test')
) -> Iterator[tuple[str, ConfigDict]]:
    """Data sets of a config with their split, wrappers (repeat, concat, …) opened."""
    for phase in phases:
        loader = cfg.get(f'{phase}_dataloader')
        left = [loader.dataset] if loader is not None else []
        while left:
            dataset = left.pop(0)
            inner = dataset.get('datasets') or [dataset.get('dataset')]
            if inner == [None]:
                yield 'train' if phase == 'train' else 'val', dataset
            else:
                left = [*inner, *left]


def class_names(cfg: Config) -> dict | None:
    """``classes`` and, if any, ``palette`` of the test data: of its metainfo, else of its class."""
    for _, dataset in data_sets(cfg, ['test', 'val']):
        kind = dataset.type
        if isinstance(kind, str):
            kind = DATASETS.get(kind if '.' in kind else f'{cfg.get("default_scope")}.{kind}')
        for metainfo in (dataset.get('metainfo') or {}, getattr(kind, 'METAINFO', {})):
            if isinstance(metainfo.get('classes'), (list, tuple)):
                return {k: metainfo[k] for k in ('classes', 'palette') if metainfo.get(k)}
    return None


def heads(node: object, key: str = 'model') -> Iterator[tuple[str, dict]]:
    """Settings of a model whose classes are the data's, however deep, each with its key.

    Left out are a backbone, which may name the classes that it was trained for, a teacher, which
    keeps its own, and the heads of proposals and of stuff.
    """
    if isinstance(node, dict):
        yield key, node
        for name, value in node.items():
            if name not in _OTHER_CLASSES:
                yield from heads(value, f'{key}.{name}')
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from heads(value, f'{key}[{i}]')


def heads_classes(model: dict) -> Iterator[tuple[str, int]]:
    """Every ``num_classes`` of a model's heads, with its key."""
    for key, settings in heads(model):
        if isinstance(settings.get('num_classes'), int):
            yield f'{key}.num_classes', settings['num_classes']


def evaluators(cfg: Config, phases: Sequence[str] = ('val', 'test')) -> Iterator[ConfigDict]:
    """Evaluators of a config, of validation and test."""
    for phase in phases:
        evaluator = cfg.get(f'{phase}_evaluator')
        if evaluator is not None:
            yield from evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]


def ignore_index(cfg: Config, *phases: str) -> int:
    """Label that the heads, or in 'val' and 'test' the metrics, of a segmentor leave out.

    mmseg's own, 255, where they say nothing or different things.
    """
    parts = evaluators(cfg, phases)
    if 'train' in phases:
        parts = (settings for _, settings in heads(cfg.get('model') or {}))
    found = {part['ignore_index'] for part in parts if isinstance(part.get('ignore_index'), int)}
    return found.pop() if len(found) == 1 else IGNORE_INDEX


def use_checked_coco(cfg: Config) -> None:
    """Replace mmdet's ``CocoDataset`` and ``CocoMetric`` in a config by the checked ones.

    Both or neither in a phase: mmdet's metric expects labels in the order of the file.
    """
    if cfg.get('default_scope') != 'mmdet':
        return

    def replace(settings: ConfigDict, name: str) -> None:
        kind = settings.get('type')
        if kind in (name, f'mmdet.{name}') or getattr(kind, '__name__', '') == name:
            settings['type'] = f'Checked{name}'

    for phase in ('train', 'val', 'test'):
        read = [dataset for _, dataset in data_sets(cfg, [phase])]
        for dataset in read:
            replace(dataset, 'CocoDataset')
        if all(dataset.get('type') == 'CheckedCocoDataset' for dataset in read):
            for evaluator in evaluators(cfg, [phase]):
                replace(evaluator, 'CocoMetric')


def other_evaluated_files(
    cfg: Config, phases: Sequence[str] = ('val', 'test')
) -> Iterator[tuple[str, str, str]]:
    """Key, mistake and remedy of evaluators that read another annotation file than their loader."""
    for phase in phases:
        read = [
            os.path.realpath(os.path.join(dataset.get('data_root') or '', dataset['ann_file']))
            for _, dataset in data_sets(cfg, [phase])
            if isinstance(dataset.get('ann_file'), str)
        ]
        key = f'{phase}_evaluator.ann_file'
        for evaluator in evaluators(cfg, [phase]):
            file = evaluator.get('ann_file')
            if read and isinstance(file, str) and os.path.realpath(file) not in read:
                wrong = f'is {file}, but {phase}_dataloader reads {read[0]}, with other objects'
                yield key, wrong, f'Set both, e.g. --cfg-options {key}={read[0]}'


def needs_masks(cfg: Config, split: str) -> bool:
    """Whether masks of a split ('train' or 'val') are read: learned, loaded, or compared with."""
    if split == 'train' and 'mask_head' in str(cfg.get('model')):
        return True
    steps = [step for s, dataset in data_sets(cfg) if s == split for step in dataset.pipeline]
    metrics = [str(evaluator.get('metric')) for evaluator in evaluators(cfg)]
    return any(step.get('with_mask') for step in steps if isinstance(step, dict)) or (
        split == 'val' and any('segm' in metric for metric in metrics)
    )


def class_palette(num_classes: int) -> list[tuple[int, int, int]]:
    """RGB colours in 0..255, one per class: :data:`COLOURS`, then darker rounds."""
    rounds = [(0.75 ** (i // len(COLOURS)), i % len(COLOURS)) for i in range(num_classes)]
    return [tuple(int(c * shade) for c in COLOURS[colour]) for shade, colour in rounds]


def palette_of(metainfo: dict, num_classes: int) -> list[tuple[int, int, int]]:
    """The palette of a data set, or :func:`class_palette` where it has none for all classes."""
    palette = metainfo.get('palette')
    if not isinstance(palette, (list, tuple)) or len(palette) < num_classes:
        palette = class_palette(num_classes)
    return [tuple(int(c) for c in colour) for colour in palette[:num_classes]]


def meta_of(checkpoint: object) -> dict:
    """The ``meta`` of a checkpoint; {} where it has none."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    return meta if isinstance(meta, dict) else {}


def trained_metainfo(checkpoint: object) -> dict:
    """``classes`` and ``palette`` of what a checkpoint was trained on; {} without names."""
    meta = meta_of(checkpoint)
    older = dict(classes=meta.get('CLASSES'), palette=meta.get('PALETTE'))  # mmdet 2, mmseg 0
    return next((found for found in (meta.get('dataset_meta'), older) if names_of(found)), {})


def trained_classes(checkpoint: object) -> list[str]:
    """Class names that a checkpoint holds, in the order of its labels; [] where it has none."""
    return names_of(trained_metainfo(checkpoint))


def names_of(metainfo: object) -> list[str]:
    """Class names of a data set's ``metainfo``; [] where it has none."""
    names = metainfo.get('classes') if isinstance(metainfo, dict) else None
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


def take_class_order(cfg: Config, trained: Sequence[str], source: str) -> list[str]:
    """Let data sets that go by name list their classes in the order of a checkpoint, ``source``.

    Returns:
        list[str]: What the user should know; empty where nothing was changed.
    """
    changed = False
    for _, dataset in data_sets(cfg):
        metainfo = dict(dataset.get('metainfo') or {})
        names = names_of(metainfo)
        by_name = dataset.get('type') == 'CheckedCocoDataset' and sorted(names) == sorted(trained)
        if not by_name or names == list(trained):
            continue
        palette = metainfo.get('palette')
        if isinstance(palette, (list, tuple)) and len(palette) == len(names):
            metainfo['palette'] = [palette[names.index(name)] for name in trained]
        dataset.metainfo = dict(metainfo, classes=tuple(trained))
        changed = True
    return [f'classes are in the order of {source}: {", ".join(trained)}'] * changed


def require_same_classes(trained: Sequence[str], names: Sequence[str], source: str) -> None:
    """Raise UserError where labels of the data mean other classes than a checkpoint's, ``source``.

    Labels are numbers: the order counts, too. Without names, on either side, all is accepted.
    """
    if not trained or not names or list(trained) == list(names):
        return
    kind = 'in another order' if sorted(trained) == sorted(names) else 'others'
    trained, names = ([name[:60] for name in listed] for listed in (trained, names))
    raise UserError(
        f'{source} was trained with the classes {trained}, but the data has {kind}: {names}. Take '
        'the names and the order of the training data (in the annotation file, classes.txt or '
        'metainfo.classes)'
    )
