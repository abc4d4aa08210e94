"""All checks of a config, in one go."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope

from cyclemlp_mm.datasets.coco_file import annotations_kept
from cyclemlp_mm.datasets.file_names import read_lines
from cyclemlp_mm.datasets.image_files import IMAGE_SUFFIXES, split_images
from cyclemlp_mm.datasets.load_image import LoadCheckedImage, check_steps
from cyclemlp_mm.engine import require_toolbox
from cyclemlp_mm.engine.bad_images import check_max_value
from cyclemlp_mm.engine.config_data import data_sets, evaluators, other_evaluated_files
from cyclemlp_mm.errors import UserError

from .classification import check_class_folders, check_list
from .coco import check_coco
from .files import report_passed_over
from .findings import Report, some
from .images import check_channels, check_images, check_shared_images
from .machine import check_layers, check_shared_memory, check_strategy, check_work_dir
from .model import (
    build_model,
    check_batch,
    check_ignore_index,
    check_layer_decay,
    check_levels,
    check_num_classes,
    check_weights,
)
from .segmentation import check_batch_of_one, check_crop, check_segmentation
from .settings import check_settings


@annotations_kept()
def run_preflight(cfg: Config, full: bool = False, weights: bool = True) -> Report:
    """Check data, config and machine.

    Args:
        cfg (Config): As it goes to the Runner, ``work_dir`` included. Not changed.
        full (bool): Look at every image and label image, not at a sample. Defaults to False.
        weights (bool): Also load the weights that the config names. Defaults to True.

    Returns:
        Report: What was found; nothing is raised for it.
    """
    init_default_scope(require_toolbox(cfg))
    report = Report()
    check_settings(report, cfg)
    if report.findings:  # what is wrong there is read by all that follows
        return report
    limit = cfg.get('max_bad_fraction', 0.05)
    looked_at, trained, paths, channels = [], (), defaultdict(set), set()
    for split, dataset in data_sets(cfg):
        classes = _checked_classes(report, split, dataset)
        if not trained:  # the data set of training comes first
            trained = classes
        elif classes and list(classes) != list(trained):
            report.error(
                'metainfo.classes',
                f'training has {some(list(trained))}, but {split}_dataloader or its test has '
                f'{some(list(classes))}: labels would not mean the same',
                'Write the same names in the same order into both',
            )
        keys = ('data_root', 'ann_file', 'data_prefix', 'split')  # the last one is ImageNet's
        place = [str(dataset.get(key)) for key in keys]
        if place in looked_at:  # val and test are mostly the same
            continue
        looked_at.append(place)
        _check_listed(report, cfg, dataset, classes)
        if split == 'train' and classes:
            check_num_classes(report, cfg, len(classes))
        files = _check_dataset(report, cfg, split, dataset, classes, full)
        loader = _loader(cfg, dataset)
        check_images(report, files, full, limit, loader)
        if loader is not None and not re.search('RGB2Gray|Albu', str(dataset.pipeline)):
            check_channels(report, cfg, files, loader, channels)
        paths[split].update(path for path, _ in files)
    check_shared_images(report, sorted(paths['train']), sorted(paths['val']))
    for finding in other_evaluated_files(cfg):
        report.error(*finding)
    check_ignore_index(report, cfg)
    check_batch(report, cfg)
    check_strategy(report, cfg)
    check_shared_memory(report, cfg)
    model = build_model(report, cfg)
    if cfg.default_scope == 'mmseg':
        check_crop(report, cfg)
        if model is not None:
            check_batch_of_one(report, cfg, model, len(paths['train']))
    if model is not None:
        check_layers(report, cfg, model)
        check_levels(report, cfg, model)
        check_layer_decay(report, cfg, model)
        check_work_dir(report, cfg, model)
        if weights:
            check_weights(report, cfg, model)
    return report


@annotations_kept()
def check_test_data(report: Report, cfg: Config) -> None:
    """Check what a model is evaluated on: annotations, labels and class names.

    What is wrong there is wrong in the figures, which no training's check has seen.

    Args:
        report (Report): Gets the findings.
        cfg (Config): As it goes to the Runner. Not changed.
    """
    if all(evaluator.get('format_only') for evaluator in evaluators(cfg, ['test'])):
        return  # the annotations are elsewhere
    for split, dataset in data_sets(cfg, ['test']):
        classes = _checked_classes(report, split, dataset)
        _check_listed(report, cfg, dataset, classes)
        _check_dataset(report, cfg, split, dataset, classes, full=False)


def _checked_classes(report: Report, split: str, dataset: ConfigDict) -> Sequence[str]:
    """Class names of a data set; a text that is none is reported."""
    classes = _classes(dataset)
    if not isinstance(classes, str):
        return classes
    report.error(
        f'{split}_dataloader.dataset.metainfo.classes',
        f'is the text {classes!r}, neither a tuple of names nor a file of them',
        f'Write a comma: classes=({classes!r},)',
    )
    return (classes,)


def _check_listed(report: Report, cfg: Config, dataset: ConfigDict, classes: Sequence[str]) -> None:
    """Compare class names with the file that names the labels, as ``--data`` reads it."""
    file = Path(dataset.get('data_root') or '.') / 'classes.txt'
    if cfg.default_scope == 'mmdet' or not file.is_file():
        return
    try:
        names = [name for line in read_lines(file) if (name := line.strip())]
    except UserError:  # not read by this config either
        return
    if sorted(names) == sorted(classes) and names != list(classes):
        report.error(
            file,
            f'names the labels as {some(names)}, the config as {some(list(classes))}: names would '
            'be exchanged',
            'Take the order of the file for metainfo.classes',
        )


def _check_dataset(
    report: Report, cfg: Config, split: str, dataset: ConfigDict, classes: Sequence[str], full: bool
) -> list[tuple[str, dict]]:
    """Check the annotations; returns the image files, each with what is known about it."""
    root = Path(dataset.get('data_root') or '.')
    prefix = dataset.get('data_prefix') or {}
    if dataset.get('data_root') and not root.is_dir():
        report.error(
            root,
            'there is no such folder (data_root of a data set)',
            'Put the data there, or give --data DIR',
        )
        return []
    if cfg.default_scope == 'mmdet' and dataset.get('ann_file'):
        ann_file = root / dataset.ann_file
        if not ann_file.is_file():
            report.error(
                ann_file,
                'there is no such file (ann_file of a data set)',
                'Give --data DIR in the layout of COCO 2017',
            )
            return []
        return check_coco(report, cfg, split, dataset, classes, ann_file)
    if cfg.default_scope == 'mmseg' and 'img_path' in prefix:
        return check_segmentation(report, cfg, split, dataset, classes, full)
    prefix = prefix if isinstance(prefix, str) else prefix.get('img_path', '')
    folder = root / (prefix or dataset.get('split') or '')
    if not folder.is_dir():
        report.error(folder, 'there is no such folder (data_prefix of a data set)')
        return []
    if cfg.default_scope == 'mmpretrain' and _reads_as_custom(dataset):
        return _check_classification(report, cfg, dataset, root, folder, classes)
    files, _ = split_images(folder.rglob('*'))
    if not files:
        report.error(folder, f'there is no image ({", ".join(IMAGE_SUFFIXES)})')
    return [(str(path), {}) for path in files]


def _check_classification(
    report: Report,
    cfg: Config,
    dataset: ConfigDict,
    root: Path,
    folder: Path,
    classes: Sequence[str],
) -> list[tuple[str, dict]]:
    with_label = dataset.get('with_label', True) and dataset.get('split') != 'test'
    ann_file = root / (dataset.get('ann_file') or f'meta/{dataset.get("split")}.txt')  # ImageNet's
    if dataset.get('ann_file') or ann_file.is_file():
        limit = cfg.get('max_bad_fraction', 0.05)
        return check_list(report, ann_file, folder, classes, with_label, limit)
    suffixes = tuple(
        getattr(_kind(dataset), 'IMG_EXTENSIONS', None)
        or _setting(dataset, 'extensions', IMAGE_SUFFIXES)
    )
    if with_label:
        return check_class_folders(report, folder, classes, suffixes)
    files, others = split_images(folder.rglob('*'), suffixes)
    report_passed_over(report, folder, others, ', '.join(suffixes))
    if not files:
        report.error(folder, f'there is no image ({", ".join(suffixes)})')
    return [(str(path), {}) for path in files]


def _reads_as_custom(dataset: ConfigDict) -> bool:
    """Whether a data set reads lists and class folders as mmpretrain's ``CustomDataset`` does."""
    from mmpretrain.datasets import CustomDataset  # not needed by the other toolboxes

    return getattr(_kind(dataset), 'load_data_list', None) is CustomDataset.load_data_list


def _loader(cfg: Config, dataset: ConfigDict) -> LoadCheckedImage | None:
    """What loads the images of a data set in training; None where its pipeline does not say."""
    steps = [TRANSFORMS.build(dict(s)) for s in dataset.get('pipeline') or () if _is_needed(s)]
    check_steps(steps, False, check_max_value(cfg))
    return next((step for step in steps if isinstance(step, LoadCheckedImage)), None)


def _is_needed(step: dict) -> bool:
    """Whether a step loads, or resizes to scales that leave nothing of long images."""
    return bool(re.search('Load|Resize|RandomChoice', str(step.get('type'))))


def _classes(dataset: ConfigDict) -> Sequence[str]:
    """Class names of a data set: of the config, or of the class."""
    given = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(given, str) and Path(given).is_file():  # mmengine reads it
        return [name for line in read_lines(Path(given)) if (name := line.strip())]
    return given or getattr(_kind(dataset), 'METAINFO', {}).get('classes') or ()


def _kind(dataset: ConfigDict) -> type | None:
    """The class of a data set; unlike ``build``, ``get`` alone leaves the toolbox's scope out."""
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(dataset.get('type', ''))


def _setting(dataset: ConfigDict, name: str, otherwise: object) -> object:
    """A setting of a data set: of the config, or the class's default."""
    if name in dataset:
        return dataset[name]
    parameters = inspect.signature(_kind(dataset).__init__).parameters
    default = parameters[name].default if name in parameters else otherwise
    return otherwise if default is inspect.Parameter.empty else default
