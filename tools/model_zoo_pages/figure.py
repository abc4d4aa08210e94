"""Accuracy against latency, from a ``benchmark.json`` of ``tools/benchmark.py``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from cyclemlp_mm.errors import MissingFileError, UserError

from .metafiles import Collection

#: Okabe and Ito's colours, told apart by all; a marker each as well.
STYLES = (('#0072b2', 'o'), ('#d55e00', 's'), ('#009e73', '^'), ('#cc79a7', 'D'), ('#e69f00', 'v'))
_RIVAL_WEIGHTS = dict(
    resnet50='ResNet50_Weights', swin_t='Swin_T_Weights', convnext_t='ConvNeXt_Tiny_Weights'
)
_RIVAL_NAMES = dict(resnet50='ResNet-50', swin_t='Swin-T', convnext_t='ConvNeXt-T')
_RIVALS = 'torchvision (its IMAGENET1K_V1)'


def read_latencies(path: str | Path) -> dict:
    """Read and check a benchmark.

    Args:
        path (str | Path): ``benchmark.json`` of one size and dtype, inference.

    Raises:
        MissingFileError: It is not there.
        UserError: It is something else, or mixes what cannot be compared.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f'{path} does not exist: tools/benchmark.py writes it')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        rows = content['rows']
        kinds = {(row['mode'], row['size'], row['dtype']) for row in rows}
        content['device'], content['threads']  # the figure says where
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is no benchmark.json of tools/benchmark.py ({error!r})') from error
    if len(kinds) != 1 or next(iter(kinds))[0] != 'infer':
        raise UserError(
            f'{path} must hold inference at one size and dtype, but has {sorted(kinds)}'
        )
    return content


def points(content: dict, collections: Sequence[Collection]) -> dict[str, list[tuple]]:
    """What is drawn: by series, (latency per image in ms, quoted top-1, label).

    Series are a family in our form, the same in the published form where it was measured, and
    torchvision's backbones with the accuracy that torchvision states for its first weights.
    """
    top1 = {}
    for collection in collections:
        for model in collection.models:
            for result in model.results:
                if result.quoted_from and 'Top 1 Accuracy' in result.metrics:
                    key = collection.backbone, model.arch
                    top1[key] = collection.name, result.metrics['Top 1 Accuracy']
    series: dict[str, list[tuple]] = {}
    for row in content['rows']:
        batch = int(row['size'].split('x')[0])
        milliseconds = row['median_ms'] / batch
        name = row['contender']
        if name in _RIVAL_WEIGHTS:
            point = (milliseconds, _torchvision_top1(name), _RIVAL_NAMES[name])
            series.setdefault(_RIVALS, []).append(point)
            continue
        family, accuracy = top1.get((row.get('backbone', 'CycleMLP'), row['arch']), (None, None))
        if family is None or name not in ('ours', 'published'):
            continue
        title = family if name == 'ours' else f'{family}, published form'
        series.setdefault(title, []).append((milliseconds, accuracy, row['arch'].upper()))
    return {title: sorted(found) for title, found in series.items()}


def _torchvision_top1(name: str) -> float:
    from torchvision import models

    weights = getattr(models, _RIVAL_WEIGHTS[name]).IMAGENET1K_V1
    return weights.meta['_metrics']['ImageNet-1K']['acc@1']


def draw(content: dict, collections: Sequence[Collection], path: str | Path) -> Path:
    """Draw the figure.

    Args:
        content (dict): From :func:`read_latencies`.
        collections (Sequence[Collection]): The families, for their quoted accuracies.
        path (str | Path): The PNG to write.

    Returns:
        Path: ``path``.

    Raises:
        UserError: No measured backbone has a quoted accuracy.
    """
    found = points(content, collections)
    if not found:
        raise UserError('the benchmark holds no backbone whose ImageNet accuracy is known')
    row = content['rows'][0]
    figure = Figure(figsize=(7, 4.4), dpi=130, layout='constrained')
    axes = figure.subplots()
    for i, (title, series) in enumerate(found.items()):
        colour, marker = STYLES[i % len(STYLES)]
        times, accuracies, _ = zip(*series)
        axes.scatter(times, accuracies, color=colour, marker=marker, label=title)
        for time, accuracy, label in series:
            below = title != _RIVALS  # where ours has its labels; so they seldom collide
            axes.annotate(
                label,
                (time, accuracy),
                textcoords='offset points',
                xytext=(5, -9 if below else 5),
                fontsize=8,
                color=colour,
            )
    axes.set_xscale('log')
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(ScalarFormatter())
    axes.margins(x=0.1, y=0.12)
    batch, height, width = row['size'].split('x')
    axes.set_xlabel(
        f'milliseconds per {height}×{width} image at batch {batch}, {row["dtype"]} (measured)'
    )
    axes.set_ylabel('ImageNet top-1 in % (quoted)')
    axes.set_title(f'{content["device"]}, {content["threads"]} threads', fontsize=8)
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)
    return Path(path)
