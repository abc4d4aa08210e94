"""The data sets and evaluators of a config, and what they read."""

from collections.abc import Iterator

from mmengine.config import Config, ConfigDict


def data_sets(cfg: Config) -> 'Iterator[tuple[str, ConfigDict]]':
    """Every data set of a config with its split, wrappers (repeat, concat, …) opened."""

    def open_wrappers(dataset: ConfigDict) -> 'Iterator[ConfigDict]':
        inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
        if not inner:
            yield dataset
        for one in inner:
            yield from open_wrappers(one)

    for phase, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        loader = cfg.get(f'{phase}_dataloader')
        if loader is not None:
            for dataset in open_wrappers(loader.dataset):
                yield split, dataset


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
