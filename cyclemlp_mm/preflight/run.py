"""All checks of a config, in one go."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

from cyclemlp_mm.datasets.coco_file import annotations_kept
from cyclemlp_mm.datasets.file_names import read_names
from cyclemlp_mm.datasets.load_image import LoadCheckedImage, check_steps
from cyclemlp_mm.engine import require_toolbox
from cyclemlp_mm.engine.bad_images import check_max_value
from cyclemlp_mm.engine.config_data import data_sets, evaluators, other_evaluated_files
from cyclemlp_mm.errors import UserError, count, some

from . import model
from .coco import check_coco
from .files import check_channels, check_images, check_shared_images, list_images
from .findings import Report
from .segmentation import check_batch_of_one, check_crop, check_labels, check_sizes
from .settings import check_schedule, check_settings, class_of


@annotations_kept()
def run_preflight(cfg: Config, full: bool = False, weights: bool = True) -> Report:
    """Check data, config and machine; returns what was found, and raises nothing for it.

    Args:
        cfg (Config): As it goes to the Runner, ``work_dir`` included. Not changed.
        full (bool): Look at every image and label image, not at a sample. Defaults to False.
        weights (bool): Also load the weights that the config names. Defaults to True.
    """
    init_default_scope(require_toolbox(cfg))
    report = Report()
    check_settings(report, cfg)
    if report.of('error'):  # what is wrong there is read by all that follows
        return report
    paths = _check_data_sets(report, cfg, full)
    check_shared_images(report, sorted(paths['train']), sorted(paths['val']))
    for finding in other_evaluated_files(cfg):
        report.error(*finding)
    model.check_ignore_index(report, cfg)
    model.check_batch(report, cfg, len(paths['train']))
    check_schedule(report, cfg)
    built = model.build_model(report, cfg)
    if built is None:
        return report
    if cfg.default_scope == 'mmseg':
        check_crop(report, cfg)
        check_batch_of_one(report, cfg, built, len(paths['train']))
    model.check_sharding(report, cfg, built)
    model.check_levels(report, cfg, built)
    model.check_layer_decay(report, cfg, built)
    model.check_custom_keys(report, cfg, built)
    model.check_work_dir(report, cfg, built)
    if weights:
        model.check_weights(report, cfg, built)
    return report


def _check_data_sets(report: Report, cfg: Config, full: bool) -> dict[str, set[str]]:
    """Check data sets and their images; returns the files of 'train' and of 'val'."""
    looked_at, trained, paths, channels = [], (), defaultdict(set), {}
    for split, dataset in data_sets(cfg):
        classes = _class_names(report, split, dataset)
        if not trained:  # the data set of training comes first
            trained = classes
        elif classes and list(classes) != list(trained):
            what = f'is {some(list(trained))} in training, but {some(list(classes))} in '
            what += f'{split}_dataloader or its test: labels would not mean the same'
            report.error('metainfo.classes', what, 'Write the same names in the same order')
        keys = ('data_root', 'ann_file', 'data_prefix', 'split')  # the last one is ImageNet's
        place = [str(dataset.get(key)) for key in keys]
        if place in looked_at:  # val and test are mostly the same
            continue
        looked_at.append(place)
        if split == 'train' and classes:
            model.check_num_classes(report, cfg, len(classes))
        infos = check_dataset(report, cfg, split, dataset, classes, full)
        try:
            steps = Compose(dataset.get('pipeline')).transforms
        except Exception as error:  # a step may check its settings in any way
            what = f'cannot be built ({type(error).__name__}: {error})'
            report.error(f'{split}_dataloader.dataset.pipeline', what)
            continue
        check_steps(steps, False, check_max_value(cfg))
        loader = next((step for step in steps if isinstance(step, LoadCheckedImage)), None)
        loaded = check_images(report, cfg, infos, full, loader or LoadCheckedImage())
        if loader is not None and not re.search('RGB2Gray|Albu', str(dataset.pipeline)):
            channels = loaded | channels  # the example of training stays
        paths[split].update(info['img_path'] for info in infos if os.path.isfile(info['img_path']))
    check_channels(report, cfg, channels)
    return paths


@annotations_kept()
def check_test_data(report: Report, cfg: Config) -> None:
    """Check what a model is evaluated on, which no training's check has seen.

    Args:
        report (Report): Gets the findings about annotations, labels and class names.
        cfg (Config): As it goes to the Runner. Not changed.
    """
    if all(evaluator.get('format_only') for evaluator in evaluators(cfg, ['test'])):
        return  # the annotations are elsewhere
    for split, dataset in data_sets(cfg, ['test']):
        classes = _class_names(report, split, dataset)
        check_dataset(report, cfg, split, dataset, classes, full=False)


def _class_names(report: Report, split: str, dataset: ConfigDict) -> Sequence[str]:
    """Class names of a data set, of the config or of the class; a text that is none is reported."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if not isinstance(classes, str):
        kind = class_of(dataset)
        return classes or getattr(kind, 'METAINFO', {}).get('classes') or ()
    if Path(classes).is_file():  # mmengine reads it
        return read_names(Path(classes))
    key = f'{split}_dataloader.dataset.metainfo.classes'
    what = f'is the text {classes!r}, neither a tuple of names nor a file of them'
    report.error(key, what, f'Write a comma: classes=({classes!r},)')
    return (classes,)


def check_dataset(
    report: Report, cfg: Config, split: str, dataset: ConfigDict, classes: Sequence[str], full: bool
) -> list[dict]:
    """Check the annotations; returns what is known about each image that is there."""
    root = Path(dataset.get('data_root') or '.')
    if dataset.get('data_root') and not root.is_dir():
        what = 'there is no such folder (data_root of a data set)'
        report.error(root, what, 'Put the data there, or give --data DIR')
        return []
    if cfg.default_scope == 'mmdet' and dataset.get('ann_file'):
        return check_coco(report, cfg, split, dataset, classes)
    labels, names = root / 'classes.txt', []
    with suppress(UserError):  # not read by this config either
        names = read_names(labels) if labels.is_file() else []
    if sorted(names) == sorted(classes) and names != list(classes):
        what = f'names the labels as {some(names)}, the config as {some(list(classes))}: names '
        fix = 'Take the order of the file for metainfo.classes'
        report.error(labels, f'{what}would be exchanged', fix)
    elif sorted(names) != sorted(classes) and names and classes:
        what = f'names {some(names)}, but the classes are {some(list(classes))}'
        report.note(labels, f'{what}: the file is not read')
    with_labels = split == 'train' or 'LoadAnnotations' in str(dataset.get('pipeline'))
    infos = list_images(report, cfg, dataset, classes, with_labels)
    times = Counter(info['img_path'] for info in infos)
    if several := [path for path, number in times.items() if number > 1]:  # in a list of labels
        given = sorted(
            {str(info.get('gt_label')) for info in infos if info['img_path'] == several[0]}
        )
        what = f'listed more than once: {count(len(several), "image")} of {split}, e.g. '
        what += f'{several[0]} with label {" and ".join(given)}'
        report.warning(root, what, 'Leave one line for each')
    if cfg.default_scope == 'mmseg' and infos:
        if with_labels and classes and infos[0].get('seg_map_path'):
            check_labels(report, cfg, split, dataset, infos, classes, full)
        if split == 'val':
            check_sizes(report, cfg, dataset, infos)
    return infos
