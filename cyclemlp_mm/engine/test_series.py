"""A series of tests of one model: a classifier at several sizes, any model on corrupted images."""

import copy
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from cyclemlp_mm.datasets.corrupt import CORRUPTIONS, SEVERITIES, require_library
from cyclemlp_mm.datasets.image_files import IMAGE_SUFFIXES
from cyclemlp_mm.errors import MissingFileError, UserError, some
from cyclemlp_mm.visualization.curves import HEADLINES
from cyclemlp_mm.visualization.figures import draw_corruptions, draw_sizes

from .config_data import data_sets, heads_classes
from .work_dir import write_atomically

TOP1 = 'accuracy/top1'
_TITLES = {'coco/bbox_mAP': 'box AP', 'coco/segm_mAP': 'mask AP', TOP1: 'top-1'}
#: The 15 of ImageNet-C, in the order of its paper's tables.
BENCHMARK = tuple(name for group in list(CORRUPTIONS)[:4] for name in CORRUPTIONS[group])
#: Errors of AlexNet on ImageNet-C in %, means over the severities: ``ALEXNET_ERR`` in imagenet.py
#: of github.com/google-research/augmix, there from github.com/hendrycks/robustness.
ALEXNET = dict(
    zip(
        BENCHMARK,
        (88.6428, 89.4468, 92.2640, 81.9880, 82.6268, 78.5948, 79.8360)
        + (86.6816, 82.6572, 81.9324, 56.4592, 85.3204, 64.6056, 71.7840, 60.6500),
        strict=True,
    )
)
#: Steps that resize, and the setting that says to which size.
_SIZE_KEYS = dict(CenterCrop='crop_size', Resize='scale', ResizeEdge='scale')
_RESIZING = re.compile('Resize|Crop|Pad|Scale')
_WORDNET = re.compile(r'n\d{8}')


class SizeSeries:
    """Tests a classifier at several image sizes.

    The ``CenterCrop`` of the test pipeline, or the ``Resize`` where there is none, gets the size;
    steps that resize before a crop are scaled with it, so that it keeps its share of the image.

    Args:
        cfg (Config): A classifier's; not changed.
        sizes (Sequence[int]): Sides of the square images in pixels.

    Raises:
        UserError: The config is no classifier's, its pipeline has other steps, or sizes are wrong.
    """

    name = 'sizes'

    def __init__(self, cfg: Config, sizes: Sequence[int]) -> None:
        require_classifier(cfg, '--sizes')
        if min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise UserError(f'--sizes must be different numbers from 1, but got {list(sizes)}')
        self.own_size = input_size(cfg)
        self.loaders = {}
        for size in sorted(sizes):
            changed = copy.deepcopy(cfg)
            for _, dataset in data_sets(changed, ['test']):
                scale_pipeline(dataset.pipeline, size)
            self.loaders[size] = changed.test_dataloader

    def run(self, runner: Runner) -> dict:
        """Test; returns metrics by size, and writes table, json and plot into the work dir.

        Raises a UserError before the first test for a size that the backbone does not take.
        """
        for size in self.loaders:
            check_size(runner.model, size)
        found = {}
        for size, metrics in run_tests(runner, self.loaders, [TOP1]):
            found[size] = metrics
            write_results(runner, self.name, dict(sizes=found))
        points = [(size, metrics[TOP1]) for size, metrics in found.items()]
        lines = ['| size | top-1 |', '|---|---|', *(f'| {size} | {y:.2f} |' for size, y in points)]
        finish(runner, self.name, lines, lambda path: draw_sizes(points, self.own_size, path))
        return found


class CorruptionSeries:
    """Tests a model on its test data, and on these or others corrupted at severities 1 to 5.

    Classifiers get images that are corrupted after resizing and cropping, as those of ImageNet-C
    were; detectors and segmentors images that are corrupted as they are stored.

    Args:
        cfg (Config): Not changed.
        names (Sequence[str]): Corruptions or groups of :data:`CORRUPTIONS`; empty means the 15 of
            ImageNet-C, or all of ``folder``. Defaults to ().
        folder (str, optional): For classifiers: corrupted images in ImageNet-C's layout
            ``CORRUPTION/SEVERITY/CLASS/IMAGE``. Defaults to None: they are made.
        reference (str, optional): For classifiers: whose errors the corruption errors are relative
            to, 'alexnet' or a ``corruptions.json``. Defaults to None: they are not computed.

    Raises:
        UserError: A name is unknown, or the config, the folder or the reference do not fit.
    """

    name = 'corruptions'

    def __init__(
        self,
        cfg: Config,
        names: Sequence[str] = (),
        folder: str | None = None,
        reference: str | None = None,
    ) -> None:
        for option, value in (('--corrupted-data', folder), ('--reference', reference)):
            if value is not None:
                require_classifier(cfg, option)
        if folder is None:
            require_library()
        self.metrics = [TOP1] if cfg.default_scope == 'mmpretrain' else HEADLINES
        names = _names(names, folder)
        self.source = reference
        self.reference = None if reference is None else _reference_errors(cfg, names, reference)
        self.loaders = {('clean', 0): None}
        for name in names:
            for severity in SEVERITIES:
                changed = copy.deepcopy(cfg)
                for _, dataset in data_sets(changed, ['test']):
                    if folder is None:
                        corrupt_data(dataset, name, severity)
                    else:
                        use_corrupted_folder(dataset, Path(folder), f'{name}/{severity}')
                self.loaders[name, severity] = changed.test_dataloader

    def run(self, runner: Runner) -> dict:
        """Test; returns what ``corruptions.json`` holds, next to table and plot in the work dir."""
        results = dict(clean={}, corrupted={}, summary={})
        for (name, severity), metrics in run_tests(runner, self.loaders, self.metrics):
            if severity:
                results['corrupted'].setdefault(name, {})[str(severity)] = metrics
            else:
                results['clean'] = metrics
            write_results(runner, self.name, results)
        lines, panels = [], {}
        for metric in (name for name in self.metrics if name in results['clean']):
            clean = _per_cent(results['clean'], metric)
            rows = {
                name: [_per_cent(metrics, metric) for metrics in tests.values()]
                for name, tests in results['corrupted'].items()
            }
            panels[_TITLES.get(metric, metric)] = {name: [clean, *y] for name, y in rows.items()}
            table, results['summary'][metric] = self._table(metric, clean, rows)
            lines += [*table, '']
        write_results(runner, self.name, results)
        finish(runner, self.name, lines, lambda path: draw_corruptions(panels, path))
        return results

    def _table(
        self, metric: str, clean: float, rows: dict[str, list[float]]
    ) -> tuple[list[str], dict]:
        """Table and summary: errors of arXiv 1903.12261 for top-1, else mPC of arXiv 1907.07484."""
        title, is_error = _TITLES.get(metric, metric), metric == TOP1
        if is_error:
            title, clean = 'top-1 error in %', 100 - clean
            rows = {name: [100 - value for value in values] for name, values in rows.items()}
        means = {name: float(np.mean(values)) for name, values in rows.items()}
        mean, columns = float(np.mean([*means.values()])), dict(mean=means)
        if is_error:
            summary = dict(clean_error=clean, mean_error=mean)
            text = f'clean error {clean:.1f}, mean error {mean:.1f}'
        else:
            summary = dict(P=clean, mPC=mean, rPC=100 * mean / clean if clean > 0 else None)
            relative = f'{summary["rPC"]:.1f} %' if clean > 0 else 'undefined'
            text = f'P {clean:.1f}, mPC {mean:.1f}, rPC {relative}'
        if self.reference is not None:
            ce = {name: 100 * error / self.reference[name] for name, error in means.items()}
            summary |= dict(CE=ce, mCE=float(np.mean([*ce.values()])))
            columns['CE'] = ce
            text += f', mCE {summary["mCE"]:.1f} (reference: {self.source})'
        names = [f'{title}, severity', *map(str, SEVERITIES), *columns]
        lines = [f'| {" | ".join(names)} |', '|---' * len(names) + '|']
        for name, values in rows.items():
            values = [*values, *(column[name] for column in columns.values())]
            lines.append(f'| {name} | {" | ".join(f"{value:.1f}" for value in values)} |')
        return [*lines, '', text], summary


def run_tests(
    runner: Runner, loaders: dict, metrics: Sequence[str]
) -> Iterator[tuple[object, dict]]:
    """Test with one loader after the other, None is the runner's own; yields key and metrics.

    The first test is logged in full, of the others a line each is on the screen. Raises a UserError
    if the first one reports none of ``metrics``.
    """
    screens = [h for h in runner.logger.handlers if type(h) is logging.StreamHandler]
    levels = [handler.level for handler in screens]
    for number, (key, loader) in enumerate(loaders.items(), 1):
        if loader is not None:
            runner.test_loop.dataloader = runner.build_dataloader(loader)
        for handler in screens if number > 1 else ():
            handler.setLevel(max(handler.level, logging.WARNING))
        found = runner.test()
        for handler, level in zip(screens, levels, strict=True):
            handler.setLevel(level)
        if number == 1 and not any(name in found for name in metrics):
            what = f'the test reports {some(sorted(found)) or "no metric (was nothing found?)"}'
            raise UserError(f'{what}: a series of tests needs {" or ".join(metrics)}')
        name = f'{key} px' if isinstance(key, int) else f'{key[0]} {key[1] or ""}'.strip()
        values = [f'{_TITLES.get(m, m)} {_per_cent(found, m):.1f}' for m in metrics if m in found]
        text = ', '.join(values) or 'nothing was found'
        runner.logger.info(f'test {number} of {len(loaders)}: {name}: {text}')
        yield key, {k: float(v) for k, v in found.items() if isinstance(v, Real)}


def _per_cent(metrics: dict, name: str) -> float:
    """A metric in %; 0 where it is missing, as mmdet's AP is where no box was found."""
    return metrics.get(name, 0.0) * (100 if name.startswith('coco/') else 1)


def require_classifier(cfg: Config, option: str) -> None:
    """Raise a UserError with the name of an option unless the config is mmpretrain's."""
    if cfg.default_scope != 'mmpretrain':
        raise UserError(f'{option} is for classifiers, but the config is of {cfg.default_scope}')


def _names(names: Sequence[str], folder: str | None) -> list[str]:
    """Names of corruptions, each once, with groups written out."""
    known = [name for group in CORRUPTIONS.values() for name in group]
    if folder is not None:
        if not Path(folder).is_dir():
            raise MissingFileError(f'--corrupted-data {folder}: no such folder')
        there = {path.name for path in Path(folder).iterdir() if path.is_dir()}
        known = [*(n for n in known if n in there), *sorted(there.difference(known))]
    if not known:
        raise UserError(f'--corrupted-data {folder} has no folders of corruptions')
    names = names or (BENCHMARK if folder is None else known)
    listed = [one for name in names for one in CORRUPTIONS.get(name, (name,))]
    if unknown := [name for name in listed if name not in known]:
        where = '' if folder is None else f' in {folder}'
        what = f'--corruptions: {some(unknown)} unknown; there are {", ".join(known)}{where}'
        raise UserError(f'{what}, and the groups are {", ".join(CORRUPTIONS)}')
    return list(dict.fromkeys(listed))


def _reference_errors(cfg: Config, names: Sequence[str], source: str) -> dict[str, float]:
    """Mean top-1 errors in %, by corruption, of 'alexnet' or of a ``corruptions.json``."""
    if source == 'alexnet':
        errors, numbers = ALEXNET, {number for _, number in heads_classes(cfg.model)}
        if numbers != {1000}:
            what = f"its errors are for ImageNet's 1000 classes, but the model has {numbers}"
            raise UserError(f'--reference alexnet: {what}. Give the corruptions.json of a model')
    else:
        try:
            found = json.loads(Path(source).read_bytes())['corrupted']
            top1 = {k: [v[str(s)][TOP1] for s in SEVERITIES] for k, v in found.items()}
            errors = {name: 100 - float(np.mean(values)) for name, values in top1.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f'is not the complete corruptions.json of a classifier ({error!r})'
            raise UserError(f'--reference {source} {what}: test one with --corruptions') from error
    missing = [name for name in names if not errors.get(name)]
    if missing:
        fix = 'leave them out, or give another reference'
        raise UserError(f'--reference {source} has no error for {some(missing)}: {fix}')
    return errors


def write_results(runner: Runner, name: str, content: dict) -> None:
    """Write ``NAME.json`` into the work dir, after each test; the first process does."""
    if is_main_process():
        text = json.dumps(dict(checkpoint=str(runner.cfg.get('load_from')), **content), indent=2)
        write_atomically(text.encode(), Path(runner.work_dir) / f'{name}.json')


def finish(runner: Runner, name: str, lines: Sequence[str], draw: Callable[[Path], object]) -> None:
    """Print the table, and write it and the plot into the work dir; the first process does."""
    if is_main_process():
        file, table = Path(runner.work_dir) / name, '\n'.join(lines).strip()
        write_atomically(f'{table}\n'.encode(), f'{file}.md')
        draw(Path(f'{file}.png'))
        print(f'\n{table}\n\ntable {file}.md, {file}.json; plot {file}.png', flush=True)


def input_size(cfg: Config) -> int:
    """Side of the square images that a classifier is tested on."""
    return _sizing_step(next(dataset for _, dataset in data_sets(cfg, ['test'])).pipeline)[2]


def scale_pipeline(pipeline: list[dict], size: int) -> None:
    """Let a test pipeline of a classifier make images of another size, in place."""
    last, key, own = _sizing_step(pipeline)
    for step in pipeline:
        if step is last:
            step[key] = size if isinstance(step[key], int) else (size, size)
        elif _RESIZING.search(str(step['type'])):
            name = _SIZE_KEYS[step['type']]
            is_one = isinstance(step[name], int)
            sides = [step[name]] if is_one else step[name]
            scaled = tuple(round(side * size / own) for side in sides)
            step[name] = scaled[0] if is_one else scaled


def _sizing_step(pipeline: list[dict]) -> tuple[dict, str, int]:
    """The step that makes the size of a classifier's images, its key, and the side in pixels."""
    steps = [step for step in pipeline if _RESIZING.search(str(step['type']))]
    known = all(_SIZE_KEYS.get(step['type']) in step for step in steps)
    if not steps or not known or steps[-1]['type'] == 'ResizeEdge' or steps[-1].get('keep_ratio'):
        names = ', '.join(str(step['type']) for step in steps) or 'no step that resizes'
        raise UserError(
            f'test_dataloader.dataset.pipeline has {names}; the size of images can be changed for '
            'Resize(scale=…), and for Resize or ResizeEdge with CenterCrop(crop_size=…) after it'
        )
    key = _SIZE_KEYS[steps[-1]['type']]
    value = steps[-1][key]
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) > 1:
        what = f'{key} {tuple(value)} of {steps[-1]["type"]} in test_dataloader.dataset.pipeline'
        raise UserError(f'{what} makes no square images: a series of tests needs them')
    return steps[-1], key, sides.pop()


def check_size(model: torch.nn.Module, size: int) -> None:
    """Raise a UserError if a classifier's backbone does not take square images of this side."""
    backbone = getattr(model.module if is_model_wrapper(model) else model, 'backbone', None)
    if backbone is None:  # a classifier of timm's or others, of which nothing is known
        return
    what = f'--sizes {size}: {type(backbone).__name__}'
    # A RepMLP's partitions are as large as in training; ours fills up smaller images with zeros.
    if hasattr(backbone, 'patch_hs') and any(size % s for s in backbone.img_size):
        sides = '×'.join(map(str, backbone.img_size))
        fix = 'give multiples of it, or take weights of another img_size'
        raise UserError(f'{what} has weights for partitions of {sides} px: {fix}')
    channels = getattr(backbone, 'in_channels', 3)
    image = next(backbone.parameters()).new_zeros(1, channels, size, size)
    try:
        with torch.no_grad():
            backbone.eval()(image)
    except (ValueError, RuntimeError, AssertionError, IndexError) as error:
        raise UserError(f'{what} does not take this size ({error}): leave it out') from error


def corrupt_data(dataset: ConfigDict, corruption: str, severity: int) -> None:
    """Let a data set corrupt its images: a classifier's at the end, others' right after loading."""
    types = [str(step['type']) for step in dataset.pipeline]
    loads = [i + 1 for i, kind in enumerate(types) if re.match(r'Load.*Image', kind)]
    places = [i for i, kind in enumerate(types) if kind == 'PackInputs'] or loads
    if not places:
        what = 'has neither PackInputs nor a step that loads images'
        raise UserError(f'test_dataloader.dataset.pipeline {what}: nothing can be corrupted there')
    step = dict(type='CorruptImage', corruption=corruption, severity=severity)
    dataset.pipeline = [*dataset.pipeline[: places[0]], step, *dataset.pipeline[places[0] :]]


def use_corrupted_folder(dataset: ConfigDict, root: Path, part: str) -> None:
    """Let a classifier's data set read the class folders in ``root/part``, without cropping.

    Such images are cropped already: all resizing becomes one step, to the same input size.
    """
    folder = root / part
    if not folder.is_dir():
        raise MissingFileError(f'--corrupted-data {root} lacks the folder {part}')
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    classes = list((dataset.get('metainfo') or {}).get('classes') or ())
    is_known, expected = names == classes, f"{some(classes)}, in the alphabet's order"
    if dataset.type == 'ImageNet' and not classes:
        is_known = len(names) == 1000 and all(map(_WORDNET.fullmatch, names))
        expected = "ImageNet's 1000: n01440764, …"
    if not is_known:
        what = f'has the class folders {some(names) or "(none)"}, but the data of the config needs'
        raise UserError(f'--corrupted-data {folder} {what} {expected}')
    scale = (_sizing_step(dataset.pipeline)[2],) * 2
    resize = dict(type='Resize', scale=scale, backend='pillow', interpolation='bicubic')
    kept = [step for step in dataset.pipeline if not _RESIZING.search(str(step['type']))]
    for unused in ('split', 'classes'):  # of mmpretrain's ImageNet
        dataset.pop(unused, None)
    dataset.update(type='CustomDataset', data_root=str(folder), data_prefix='', ann_file='')
    dataset.update(with_label=True, extensions=IMAGE_SUFFIXES)
    dataset.pipeline = [kept[0], resize, *kept[1:]]
