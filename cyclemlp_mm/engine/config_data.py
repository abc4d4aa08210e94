"""The data sets and evaluators of a config, and what they read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from cyclemlp_mm.datasets.check_labels import IGNORE_INDEX


def data_sets(
    cfg: Config, phases: Sequence[str] = ('train', 'val', 'test')
) -> Iterator[tuple[str, ConfigDict]]:
    """Data sets of a config with their split, wrappers (repeat, concat, …) opened."""

    def open_wrappers(dataset: ConfigDict) -> Iterator[ConfigDict]:
        inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
        if not inner:
            yield dataset
        for one in inner:
            yield from open_wrappers(one)

    for phase in phases:
        split = 'train' if phase == 'train' else 'val'
        loader = cfg.get(f'{phase}_dataloader')
        if loader is not None:
            for dataset in open_wrappers(loader.dataset):
                yield split, dataset


def class_names(cfg: Config) -> dict | None:
    """Class names, and colours if there are, of what a config is tested on.

    Returns:
        dict | None: ``classes`` and, if known, ``palette``, of the data set's ``metainfo`` or else
        of its class (COCO's, ADE20K's, …); None where neither has any.
    """
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


_OTHER_CLASSES = ('backbone', 'teacher', 'rpn_head', 'semantic_head')


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
    parts = (
        [settings for _, settings in heads(cfg.get('model') or {})]
        if 'train' in phases
        else evaluators(cfg, phases)
    )
    found = {part['ignore_index'] for part in parts if isinstance(part.get('ignore_index'), int)}
    return found.pop() if len(found) == 1 else IGNORE_INDEX


def use_checked_coco(cfg: Config) -> None:
    """Replace mmdet's ``CocoDataset`` and ``CocoMetric`` in a config by the checked ones.

    Both or neither in a phase: labels of other data sets are in the order of the file, which
    mmdet's metric expects.
    """
    if cfg.get('default_scope') != 'mmdet':
        return
    for phase in ('train', 'val', 'test'):
        read = [dataset for _, dataset in data_sets(cfg, [phase])]
        for dataset in read:
            _replace_type(dataset, 'CocoDataset')
        if all(dataset.get('type') == 'CheckedCocoDataset' for dataset in read):
            for evaluator in evaluators(cfg, [phase]):
                _replace_type(evaluator, 'CocoMetric')


def _replace_type(settings: ConfigDict, name: str) -> None:
    kind = settings.get('type')
    if kind in (name, f'mmdet.{name}') or getattr(kind, '__name__', '') == name:
        settings['type'] = f'Checked{name}'


def other_evaluated_files(
    cfg: Config, phases: Sequence[str] = ('val', 'test')
) -> Iterator[tuple[str, str, str]]:
    """Evaluators that read another annotation file than the loader of their phase.

    Yields:
        tuple[str, str, str]: The evaluator's key, what is wrong and how to fix it.
    """
    for phase in phases:
        read = [
            _absolute(dataset['ann_file'], dataset.get('data_root'))
            for _, dataset in data_sets(cfg, [phase])
            if isinstance(dataset.get('ann_file'), str)
        ]
        key = f'{phase}_evaluator.ann_file'
        for evaluator in evaluators(cfg, [phase]):
            file = evaluator.get('ann_file')
            if read and isinstance(file, str) and _absolute(file) not in read:
                yield (
                    key,
                    f'is {file}, but {phase}_dataloader reads {read[0]}: predictions would be '
                    'compared with the objects of other images',
                    f'Set both, e.g. --cfg-options {key}={read[0]}',
                )


def _absolute(file: str, root: str | None = None) -> str:
    return os.path.realpath(os.path.join(root or '', file))


def needs_masks(cfg: Config, split: str) -> bool:
    """Whether masks of a split ('train' or 'val') are read: learned, loaded, or compared with."""
    if split == 'train' and 'mask_head' in str(cfg.get('model')):
        return True
    steps = [step for s, dataset in data_sets(cfg) if s == split for step in dataset.pipeline]
    metrics = [str(evaluator.get('metric')) for evaluator in evaluators(cfg)]
    return any(step.get('with_mask') for step in steps if isinstance(step, dict)) or (
        split == 'val' and any('segm' in metric for metric in metrics)
    )
