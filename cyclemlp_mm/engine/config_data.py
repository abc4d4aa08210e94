"""The data sets and evaluators of a config, and what they read."""

from collections.abc import Iterator

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS


def data_sets(cfg: Config) -> 'Iterator[tuple[str, ConfigDict]]':
    """Every data set of a config with its split, wrappers (repeat, concat, …) opened."""
    for phase, dataset in _by_phase(cfg):
        yield 'train' if phase == 'train' else 'val', dataset


def _by_phase(cfg: Config) -> 'Iterator[tuple[str, ConfigDict]]':
    def open_wrappers(dataset: ConfigDict) -> 'Iterator[ConfigDict]':
        inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
        if not inner:
            yield dataset
        for one in inner:
            yield from open_wrappers(one)

    for phase in ('train', 'val', 'test'):
        loader = cfg.get(f'{phase}_dataloader')
        if loader is not None:
            for dataset in open_wrappers(loader.dataset):
                yield phase, dataset


def class_names(cfg: Config) -> 'dict | None':
    """Class names, and colours if there are, of what a config is tested on.

    Returns:
        dict | None: ``classes`` and, if known, ``palette``, of the data set's ``metainfo`` or else
        of its class (COCO's, ADE20K's, …); None where neither has any.
    """
    found = [dataset for phase, dataset in _by_phase(cfg) if phase in ('test', 'val')]
    for dataset in found[::-1]:  # test before val
        kind = dataset.type
        if isinstance(kind, str):
            kind = DATASETS.get(kind if '.' in kind else f'{cfg.get("default_scope")}.{kind}')
        for metainfo in (dataset.get('metainfo') or {}, getattr(kind, 'METAINFO', {})):
            if isinstance(metainfo.get('classes'), (list, tuple)):
                return {k: metainfo[k] for k in ('classes', 'palette') if metainfo.get(k)}
    return None


def heads_classes(node: object, key: str = 'model') -> 'Iterator[tuple[str, int]]':
    """Every ``num_classes`` of a model's heads, with the key of the head."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == 'num_classes' and isinstance(value, int):
                yield f'{key}.num_classes', value
            elif name not in ('backbone', 'teacher', 'rpn_head', 'data_preprocessor'):
                yield from heads_classes(value, f'{key}.{name}')
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from heads_classes(value, f'{key}[{i}]')


def evaluators(cfg: Config) -> 'Iterator[ConfigDict]':
    """Every evaluator of a config, of validation and test."""
    for phase in ('val', 'test'):
        evaluator = cfg.get(f'{phase}_evaluator')
        if evaluator is not None:
            yield from evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]


def needs_masks(cfg: Config, split: str) -> bool:
    """Whether masks of a split ('train' or 'val') are read: learned, loaded, or compared with."""
    if split == 'train' and 'mask_head' in str(cfg.get('model')):
        return True
    steps = [step for s, dataset in data_sets(cfg) if s == split for step in dataset.pipeline]
    metrics = [str(evaluator.get('metric')) for evaluator in evaluators(cfg)]
    return any(step.get('with_mask') for step in steps if isinstance(step, dict)) or (
        split == 'val' and any('segm' in metric for metric in metrics)
    )
