"""All checks of a config, in one go."""

import inspect
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope

from cyclemlp_mm.datasets.coco_file import annotations_kept
from cyclemlp_mm.datasets.load_image import resize_scales
from cyclemlp_mm.engine import require_toolbox
from cyclemlp_mm.engine.config_data import data_sets, other_evaluated_files

from .coco import check_coco
from .findings import Report, count, some
from .folders import check_class_folders, check_list
from .images import check_images, check_shared_images
from .labels import check_labels
from .model import (
    build_model,
    check_batch,
    check_ignore_index,
    check_layer_decay,
    check_layers,
    check_levels,
    check_num_classes,
    check_strategy,
    check_weights,
    check_work_dir,
)
from .settings import check_settings
from .shared_memory import check_shared_memory

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


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
    looked_at, trained, paths = [], (), defaultdict(set)
    for split, dataset in data_sets(cfg):
        classes = _classes(dataset)
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
        if split == 'train' and classes:
            check_num_classes(report, cfg, len(classes))
        files = _check_dataset(report, cfg, split, dataset, classes, full)
        check_images(report, files, full, limit, resize_scales(dataset.get('pipeline') or ()))
        paths[split].update(path for path, _ in files)
    check_shared_images(report, sorted(paths['train']), sorted(paths['val']))
    for finding in other_evaluated_files(cfg):
        report.error(*finding)
    check_ignore_index(report, cfg)
    check_batch(report, cfg)
    check_strategy(report, cfg)
    check_shared_memory(report, cfg)
    model = build_model(report, cfg)
    if model is not None:
        check_layers(report, cfg, model)
        check_levels(report, cfg, model)
        check_layer_decay(report, cfg, model)
        check_work_dir(report, cfg, model)
        if weights:
            check_weights(report, cfg, model)
    return report


def _check_dataset(
    report: Report, cfg: Config, split: str, dataset: ConfigDict, classes: 'Sequence[str]',
    full: bool,
) -> 'list[tuple[str, dict]]':  # fmt: skip
    """Check the annotations; returns the image files, each with what is known about it."""
    root = Path(dataset.get('data_root') or '.')
    prefix = dataset.get('data_prefix') or {}
    if dataset.get('data_root') and not root.is_dir():
        report.error(root, 'there is no such folder (data_root of a data set)',
                     'Put the data there, or give --data DIR')  # fmt: skip
        return []
    if cfg.default_scope == 'mmdet' and dataset.get('ann_file'):
        ann_file = root / dataset.ann_file
        if not ann_file.is_file():
            report.error(ann_file, 'there is no such file (ann_file of a data set)',
                         'Give --data DIR in the layout of COCO 2017')  # fmt: skip
            return []
        return check_coco(report, cfg, split, dataset, classes, ann_file)
    if cfg.default_scope == 'mmseg' and 'img_path' in prefix:
        return _check_segmentation(report, dataset, root, prefix, classes, full)
    prefix = prefix if isinstance(prefix, str) else prefix.get('img_path', '')
    folder = root / (prefix or dataset.get('split') or '')
    if not folder.is_dir():
        report.error(folder, 'there is no such folder (data_prefix of a data set)')
        return []
    if cfg.default_scope == 'mmpretrain' and _reads_as_custom(dataset):
        return _check_classification(report, cfg, dataset, root, folder, classes)
    files = sorted(p for p in folder.rglob('*') if p.suffix.lower() in _SUFFIXES)
    if not files:
        report.error(folder, f'there is no image ({", ".join(_SUFFIXES)})')
    return [(str(path), {}) for path in files]


def _check_classification(
    report: Report, cfg: Config, dataset: ConfigDict, root: Path, folder: Path,
    classes: 'Sequence[str]',
) -> 'list[tuple[str, dict]]':  # fmt: skip
    with_label = dataset.get('with_label', True) and dataset.get('split') != 'test'
    ann_file = root / (dataset.get('ann_file') or f'meta/{dataset.get("split")}.txt')  # ImageNet's
    if dataset.get('ann_file') or ann_file.is_file():
        limit = cfg.get('max_bad_fraction', 0.05)
        return check_list(report, ann_file, folder, classes, with_label, limit)
    suffixes = getattr(_kind(dataset), 'IMG_EXTENSIONS', _setting(dataset, 'extensions', _SUFFIXES))
    if with_label:
        return check_class_folders(report, folder, classes, suffixes)
    files = sorted(p for p in folder.rglob('*') if p.suffix.lower() in suffixes)
    if not files:
        report.error(folder, f'there is no image ({", ".join(suffixes)})')
    return [(str(path), {}) for path in files]


def _reads_as_custom(dataset: ConfigDict) -> bool:
    """Whether a data set reads lists and class folders as mmpretrain's ``CustomDataset`` does."""
    from mmpretrain.datasets import CustomDataset  # not needed by the other toolboxes

    return getattr(_kind(dataset), 'load_data_list', None) is CustomDataset.load_data_list


def _check_segmentation(
    report: Report, dataset: ConfigDict, root: Path, prefix: dict, classes: 'Sequence[str]',
    full: bool,
) -> 'list[tuple[str, dict]]':  # fmt: skip
    images, labels = root / prefix['img_path'], root / prefix.get('seg_map_path', '')
    absent = [folder for folder in (images, labels) if not folder.is_dir()]
    for folder in absent:
        report.error(folder, 'there is no such folder (data_prefix of a data set)')
    if absent:
        return []
    suffix = _setting(dataset, 'img_suffix', '.jpg')
    label_suffix = _setting(dataset, 'seg_map_suffix', '.png')
    files = sorted(images.rglob(f'*{suffix}'))
    if not files:
        report.error(images, f'there is no image ending in {suffix} (img_suffix)')
        return []
    pairs = []
    for path in files:
        stem = str(path.relative_to(images)).removesuffix(suffix)
        pairs.append((path, labels / f'{stem}{label_suffix}'))
    unlabelled = [path.name for path, label in pairs if not label.is_file()]
    if unlabelled:
        report.error(labels, f'{len(unlabelled)} of {count(len(pairs), "image")} have no label '
                             f'image, e.g. {unlabelled[0]}')  # fmt: skip
    pairs = [pair for pair in pairs if pair[1].is_file()]
    if pairs and classes:
        steps = [step for step in dataset.get('pipeline', ()) if step['type'] == 'CheckLabels']
        if len({(step.get('num_classes'), step.get('ignore_label')) for step in steps}) > 1:
            said = ', then '.join(f'ignore_label={s.get("ignore_label")}' for s in steps)
            report.error(
                'pipeline', f'CheckLabels stands in it {len(steps)} times, with different settings '
                f'({said}): what one leaves out, the other takes for a class or for a stray label',
                'Leave all but one out of the config',
            )  # fmt: skip
        check_labels(
            report, pairs, classes, bool(_setting(dataset, 'reduce_zero_label', False)),
            steps[0].get('ignore_label') if steps else None, full,
        )  # fmt: skip
    return [(str(path), dict(seg_map_path=str(label))) for path, label in pairs]


def _classes(dataset: ConfigDict) -> 'Sequence[str]':
    """Class names of a data set: of the config, or of the class."""
    given = (dataset.get('metainfo') or {}).get('classes')
    return given or getattr(_kind(dataset), 'METAINFO', {}).get('classes') or ()


def _kind(dataset: ConfigDict) -> 'type | None':
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
