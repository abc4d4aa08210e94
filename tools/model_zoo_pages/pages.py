"""Markdown made from the metafiles: ``docs/model_zoo.md``."""

import importlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mmengine.registry import MODELS

from .metafiles import Collection, size_of

#: Data sets whose recipes get a table each.
BENCHMARKS = ('COCO 2017', 'ADE20K')
FIGURE = 'images/accuracy_latency.png'
LATENCY = 'logs/accuracy_latency.json'
LATENCY_COMMANDS = """\
```bash
# takes minutes on a machine that does nothing else
python tools/benchmark.py --arch b1 b2 b3 b4 b5 t s b --size 1x224x224 \\
    --rivals resnet50 swin_t convnext_t --out work_dirs/latency
python tools/model_zoo.py --latency work_dirs/latency/benchmark.json
```"""

INTRO = """\
<!-- Written by tools/model_zoo.py from model-index.yml and the metafiles: change those. -->
# Model zoo

Parameters are counted on the built model. FLOPs are multiply-adds for one image of the size in the
table's head (`tools/get_flops.py CONFIG`); for a two-stage detector, with 1000 proposals and 100
masks. **Quoted** results are from the cited authors and their own code. **Ours** are measured with
this project, and the log is given. The COCO, ADE20K and ImageNet trainings were not run here: there
are only quoted results for them, and no weights of detectors or segmentors are published.

Configs are in `configs/`; the name is enough: `python tools/train.py NAME`."""


def model_zoo_page(collections: Sequence[Collection], docs: Path) -> str:
    """Make ``docs/model_zoo.md``, with the figure where the docs folder holds the latencies."""
    figure = 'Latency: **not measured**. '
    if (docs / LATENCY).is_file():
        figure = f'![ImageNet top-1, quoted, against latency, ours]({FIGURE})\n\n'
        figure += f'[Data]({LATENCY}). '
    figure += 'The commands that measure it and draw the figure:\n\n'
    parts = [INTRO, '## Accuracy against latency', figure + LATENCY_COMMANDS]
    for collection in collections:
        family, others = collection.family, []
        parts += [f'## {family["Name"]}', '[{Title}]({URL})'.format(**family['Paper'])]
        parts += [family['Note'].strip()] if family.get('Note') else []
        parts.append(_arch_table(collection))
        for recipe, models in collection.by_recipe().items():
            if len(models) > 1 or _data(models[0]) in BENCHMARKS:
                parts += [f'### {recipe}', _recipe_table(models)]
            else:
                others += models
        if others:
            parts += ['### Others', _others_table(others)]
        quoted = [r['Quoted From'] for m in collection.models for r in _results(m, 'Quoted From')]
        if quoted:
            parts.append('Quoted from: ' + '; '.join(dict.fromkeys(quoted)) + '.')
    return '\n\n'.join(parts) + '\n'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _recipe_table(models: Sequence[dict]) -> str:
    """Models of one recipe, trained on one data set, counted at one size."""
    head = ['config', 'parameters', 'FLOPs, {}×{}'.format(*size_of(models[0]))]
    rows = [[f'`{model["Name"]}`', _parameters(model), _flops(model)] for model in models]
    names = dict.fromkeys(n for m in models for r in _results(m) for n in r['Metrics'])
    for name, source in itertools.product(names, ('Quoted From', 'Log')):
        column = [[_figure(r, name) for r in _results(m, source, name)] for m in models]
        if any(column):
            head.append(f'{name}, {"quoted" if source == "Quoted From" else "ours"}')
            rows = [[*row, ''.join(found[:1])] for row, found in zip(rows, column, strict=True)]
    links = [f'[authors]({m["Weights"]})' if m.get('Weights') else '' for m in models]
    if any(links):
        head.append('weights')
        rows = [[*row, link] for row, link in zip(rows, links, strict=True)]
    first = models[0]['Metadata']
    unit = 'Epochs' if 'Epochs' in first else 'Iterations'
    schedule = f'{first[unit]} {unit.lower()} at batch {first["Batch Size"]}'
    return f'{_data(models[0])}. {schedule}.\n\n' + _table(head, rows)


def _figure(result: dict, name: str) -> str:
    value = result['Metrics'][name]
    return _with_log(result, f'{value:g}') if 'Log' in result else f'{value:.1f}'


def _others_table(models: Sequence[dict]) -> str:
    rows = []
    for model in models:
        results = []
        for result in _results(model):
            metrics = ', '.join(f'{name} {value:g}' for name, value in result['Metrics'].items())
            text = f'{result["Dataset"]}: {metrics}'
            results.append(_with_log(result, text) if 'Log' in result else f'{text} (quoted)')
        size = '{} at {}×{}'.format(_flops(model), *size_of(model))
        row = [f'`{model["Name"]}`', model['Metadata']['Recipe'], _parameters(model), size]
        rows.append([*row, '; '.join(results)])
    return _table(['config', 'what', 'parameters', 'FLOPs', 'results'], rows)


def _arch_table(collection: Collection) -> str:
    """The backbones of a family."""
    family = collection.family
    importlib.import_module(family['Code'].removesuffix('.py').replace('/', '.'))
    kind = MODELS.get(family['Metadata']['Backbone'])
    settings = family['Metadata'].get('Shown Settings', ())
    rows = []
    for model in collection.by_recipe().get('ImageNet', ()):
        name = model['Metadata']['Arch']
        shown = ['-'.join(map(str, kind.arch_zoo[name][setting])) for setting in settings]
        rows.append([f'`{name}`', *shown, _parameters(model), _flops(model)])
    return _table(['arch', *settings, 'parameters', 'FLOPs, 224×224'], rows)


def _data(model: dict) -> str:
    return model['Metadata']['Training Data']


def _results(model: dict, source: str | None = None, metric: str | None = None) -> Iterator[dict]:
    """Results, optionally only quoted ones or ours ('Quoted From' or 'Log'), or of a metric."""
    for result in model.get('Results', ()):
        if source in (None, *result) and metric in (None, *result['Metrics']):
            yield result


def _with_log(result: dict, text: str) -> str:
    return f'{text} ([log]({result["Log"].removeprefix("docs/")}))'


def _parameters(model: dict) -> str:
    return f'{model["Metadata"]["Parameters"] / 1e6:.1f}M'


def _flops(model: dict) -> str:
    number = model['Metadata']['FLOPs']
    return f'{number / 1e9:.1f}G' if number >= 5e7 else f'{number / 1e6:.1f}M'
