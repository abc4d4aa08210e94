"""Markdown made from the metafiles: ``docs/model_zoo.md``."""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mmengine.registry import MODELS

from cyclemlp_mm.errors import UserError

from .metafiles import Collection, size_of

#: Data sets whose recipes get a table each, and their usual metric.
BENCHMARKS = {'COCO 2017': 'box AP', 'ADE20K': 'mIoU'}
TOP1 = 'Top 1 Accuracy'
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
        family = collection.family
        parts += [f'## {family["Name"]}', '[{Title}]({URL})'.format(**family['Paper'])]
        parts += [*_note(family), _arch_table(collection)]
        others = []
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


def _note(family: dict) -> list[str]:
    return [family['Note'].strip()] if family.get('Note') else []


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _recipe_table(models: Sequence[dict]) -> str:
    """Models of one recipe, trained on one data set, counted at one size."""
    first, data = models[0]['Metadata'], _data(models[0])
    names = list(dict.fromkeys(n for m in models for r in _results(m) for n in r['Metrics']))
    has_weights = any(model.get('Weights') for model in models)
    head = ['config', 'parameters', 'FLOPs, {}×{}'.format(*size_of(models[0]))]
    kinds = [('quoted', 'Quoted From'), ('ours', 'Log')]
    columns = [
        (name, whose)
        for name in names
        for whose, source in kinds
        if any(True for model in models for _ in _results(model, source, name))
    ]
    head += [f'{name}, {whose}' for name, whose in columns]
    rows = []
    for model in models:
        row = [f'`{model["Name"]}`', _parameters(model), _flops(model)]
        for name, whose in columns:
            ours = [_with_log(r, f'{r["Metrics"][name]:g}') for r in _results(model, 'Log', name)]
            row.append(_quoted(model, name) if whose == 'quoted' else ''.join(ours[:1]))
        weights = [f'[authors]({model["Weights"]})' if model.get('Weights') else '']
        rows.append(row + weights * has_weights)
    unit = next((unit for unit in ('Epochs', 'Iterations') if unit in first), None)
    if unit is None:
        raise UserError(f'{models[0]["Name"]}: its metafile entry misses Epochs or Iterations')
    schedule = f'{first[unit]} {unit.lower()} at batch {first["Batch Size"]}'
    return f'{data}. {schedule}.\n\n' + _table([*head, *['weights'] * has_weights], rows)


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
    if kind is None:
        raise UserError(f'{collection.metafile}: Backbone is not in the root registry')
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


def _quoted(model: dict, metric: str) -> str:
    return next((f'{r["Metrics"][metric]:.1f}' for r in _results(model, 'Quoted From', metric)), '')


def _with_log(result: dict, text: str) -> str:
    return f'{text} ([log]({result["Log"].removeprefix("docs/")}))'


def _parameters(model: dict) -> str:
    return f'{model["Metadata"]["Parameters"] / 1e6:.1f}M'


def _flops(model: dict) -> str:
    number = model['Metadata']['FLOPs']
    return f'{number / 1e9:.1f}G' if number >= 5e7 else f'{number / 1e6:.1f}M'
