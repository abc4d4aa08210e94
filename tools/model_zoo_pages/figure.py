"""Accuracy against latency, from a ``benchmark.json`` of ``tools/benchmark.py``."""

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from cyclemlp_mm.errors import UserError
from cyclemlp_mm.visualization.figures import LINE_COLOURS, save

from .metafiles import Collection

MARKERS = ('o', 's', '^', 'D', 'v')
#: torchvision's backbones: the name shown, and the class of their weights.
RIVALS = dict(
    resnet50=('ResNet-50', 'ResNet50_Weights'),
    swin_t=('Swin-T', 'Swin_T_Weights'),
    convnext_t=('ConvNeXt-T', 'ConvNeXt_Tiny_Weights'),
)
RIVALS_TITLE = 'torchvision (its IMAGENET1K_V1)'


def read_latencies(path: str | Path) -> dict:
    """Read a ``benchmark.json``; a UserError if it is not inference at one size and dtype."""
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        kinds = {(row['mode'], row['size'], row['dtype']) for row in content['rows']}
    except (ValueError, KeyError, TypeError) as error:
        what = f'{path} is not a benchmark.json of tools/benchmark.py ({error!r})'
        raise UserError(what) from error
    if [mode for mode, *_ in kinds] != ['infer']:
        raise UserError(f'{path} must hold inference at one size and dtype, not {sorted(kinds)}')
    return content


def points(content: dict, collections: list[Collection]) -> dict[str, list[tuple]]:
    """What is drawn: by series, (latency per image in ms, quoted top-1, label).

    Series are a family in our form, the same in the published form where it was measured, and
    torchvision's backbones with the accuracy that torchvision states for its first weights.
    """
    from torchvision import models as torchvision_models

    top1 = {
        (collection.family['Metadata']['Backbone'], model['Metadata']['Arch']): (
            collection.family['Name'],
            result['Metrics']['Top 1 Accuracy'],
        )
        for collection in collections
        for model in collection.models
        for result in model.get('Results', ())
        if 'Quoted From' in result and 'Top 1 Accuracy' in result['Metrics']
    }
    series: dict[str, list[tuple]] = {}
    for row in content['rows']:
        name, key = row['contender'], (row.get('backbone', 'CycleMLP'), row['arch'])
        if name in RIVALS:
            title, (label, weights) = RIVALS_TITLE, RIVALS[name]
            metrics = getattr(torchvision_models, weights).IMAGENET1K_V1.meta['_metrics']
            accuracy = metrics['ImageNet-1K']['acc@1']
        elif key in top1 and name in ('ours', 'published'):
            title, accuracy = top1[key]
            title += ', published form' if name == 'published' else ''
            label = row['arch'].upper()
        else:
            continue
        milliseconds = row['median_ms'] / int(row['size'].split('x')[0])
        series.setdefault(title, []).append((milliseconds, accuracy, label))
    return {title: sorted(found) for title, found in series.items()}


def draw(content: dict, collections: list[Collection], path: str | Path) -> Path:
    """Draw what :func:`read_latencies` returned; returns ``path``."""
    figure = Figure(figsize=(7, 4.4), dpi=130, layout='constrained')
    axes = figure.subplots()
    found = points(content, collections)
    for (title, series), marker, colour in zip(found.items(), MARKERS, LINE_COLOURS, strict=False):
        times, accuracies, _ = zip(*series)
        axes.scatter(times, accuracies, color=colour, marker=marker, label=title)
        offset = (5, 5 if title == RIVALS_TITLE else -9)  # below for ours; so they seldom collide
        look = dict(textcoords='offset points', xytext=offset, fontsize=8, color=colour)
        for time, accuracy, label in series:
            axes.annotate(label, (time, accuracy), **look)
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.tick_params(axis='x', which='both', length=4, labelsize=9)  # 100 is the one major tick
    axes.margins(x=0.1, y=0.12)
    row = content['rows'][0]
    batch, height, width = row['size'].split('x')
    what = f'{height}×{width} image at batch {batch}, {row["dtype"]}'
    axes.set_xlabel(f'milliseconds per {what} (measured)')
    axes.set_ylabel('ImageNet top-1 in % (quoted)')
    axes.set_title(f'{content["device"]}, {content["threads"]} threads', fontsize=8)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    return save(figure, path)
