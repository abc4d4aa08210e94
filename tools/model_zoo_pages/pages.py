"""Markdown made from the metafiles: ``docs/model_zoo.md``, and the tables in ``README.md``."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmengine.registry import MODELS

from cyclemlp_mm.errors import UserError

from .metafiles import Collection, Model, Result

BEGIN = '<!-- model zoo: written by tools/model_zoo.py from the metafiles -->'
END = '<!-- end of model zoo -->'
#: Data sets whose recipes get a column in the README.
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

_INTRO = """\
<!-- Written by tools/model_zoo.py from model-index.yml and the metafiles: change those. -->
# Model zoo

Parameters are counted on the built model. FLOPs are multiply-adds for one image of the size in the
table's head (`tools/get_flops.py CONFIG`); for a two-stage detector, with 1000 proposals and 100
masks. **Quoted** results are from the cited authors and their own code. **Ours** are measured with
this project, and the log is given. The COCO, ADE20K and ImageNet trainings were not run here, so
our results for them are "not measured", and no weights of detectors or segmentors are published.

Configs are in `configs/`; the name is enough: `python tools/train.py NAME`."""


def model_zoo_page(collections: Sequence[Collection], docs: str | Path) -> str:
    """The whole of ``docs/model_zoo.md``.

    Args:
        collections (Sequence[Collection]): See
            :func:`~model_zoo_pages.metafiles.read_collections`.
        docs (str | Path): The docs folder; where it holds the measured latencies, the page shows
            the figure.
    """
    parts = [_INTRO, '## Accuracy against latency', _figure_text(Path(docs))]
    for collection in collections:
        parts.append(f'## {collection.name}')
        parts.append(f'[{collection.paper_title}]({collection.paper_url})')
        if collection.note:
            parts.append(collection.note.strip())
        for recipe, models in collection.by_recipe().items():
            if len(models) > 1 or models[0].training_data in BENCHMARKS:
                parts += [f'### {recipe}', _recipe_table(models)]
        others = [
            ms[0]
            for ms in collection.by_recipe().values()
            if len(ms) == 1 and ms[0].training_data not in BENCHMARKS
        ]
        if others:
            parts += ['### Others', _others_table(others)]
        citations = dict.fromkeys(r.quoted_from for m in collection.models for r in m.results)
        quoted = [c for c in citations if c]
        if quoted:
            parts.append('Quoted from: ' + '; '.join(quoted) + '.')
    return '\n\n'.join(parts) + '\n'


def readme_block(collections: Sequence[Collection]) -> str:
    """The tables in ``README.md``, with the lines that mark their beginning and end."""
    parts = [BEGIN]
    for collection in collections:
        parts += [f'**{collection.name}** ([paper]({collection.paper_url}))']
        parts += [_arch_table(collection), _size_table(collection)]
        if collection.note:
            parts.append(collection.note.strip())
    return '\n\n'.join([*parts, END])


def put_block(text: str, block: str) -> str:
    """The README's text with its marked block replaced.

    Raises:
        UserError: The text lacks the two lines that mark the block.
    """
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise UserError(f'README.md must hold the lines {BEGIN!r} and {END!r}, in this order')
    return text[:begin] + block + text[end + len(END) :]


def _figure_text(docs: Path) -> str:
    how = f'The commands that measure it and draw the figure:\n\n{LATENCY_COMMANDS}'
    if not (docs / LATENCY).is_file():
        return f'Latency: **not measured**. {how}'
    return f'![ImageNet top-1, quoted, against latency, ours]({FIGURE})\n\n[Data]({LATENCY}). {how}'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _recipe_table(models: Sequence[Model]) -> str:
    """Models of one recipe, trained on one data set, counted at one size."""
    metrics = dict.fromkeys(k for m in models for r in m.results for k in r.metrics)
    names = list(metrics) or [_usual_metric(models[0])]
    height, width = models[0].size
    weights = any(m.weights for m in models)
    head = ['config', 'parameters', f'FLOPs, {height}×{width}']
    head += [f'{name}, {whose}' for name in names for whose in ('quoted', 'ours')]
    head += ['weights'] * weights
    rows = []
    for model in models:
        row = [f'`{model.name}`', _millions(model.parameters), _billions(model.flops)]
        for name in names:
            row += [_quoted(model, name), _ours(model, name)]
        if weights:
            row.append(f'[authors]({model.weights})' if model.weights else '')
        rows.append(row)
    return f'{models[0].training_data}. {_schedule(models[0])}.\n\n' + _table(head, rows)


def _others_table(models: Sequence[Model]) -> str:
    head = ['config', 'what', 'parameters', 'FLOPs', 'results, ours']
    rows = [
        [
            f'`{model.name}`',
            model.recipe,
            _millions(model.parameters),
            f'{_billions(model.flops)} at {model.size[0]}×{model.size[1]}',
            '; '.join(_result_text(r) for r in model.results if r.log) or 'not measured',
        ]
        for model in models
    ]
    return _table(head, rows)


def _result_text(result: Result) -> str:
    metrics = ', '.join(f'{name} {value:g}' for name, value in result.metrics.items())
    return f'{result.dataset}: {metrics} ([log]({_from_docs(result.log)}))'


def _size_table(collection: Collection) -> str:
    """Parameters of every dense model: a row per arch, a column per recipe."""
    recipes = [
        recipe
        for recipe, models in collection.by_recipe().items()
        if models[0].training_data in BENCHMARKS
    ]
    sizes = {(m.arch, m.recipe): _millions(m.parameters) for m in collection.models}
    archs = dict.fromkeys(m.arch for m in collection.models if m.arch)
    rows = [
        [f'`{arch}`', *(sizes.get((arch, recipe), '') for recipe in recipes)]
        for arch in archs
        if any((arch, recipe) in sizes for recipe in recipes)
    ]
    return _table(['parameters', *recipes], rows)


def _arch_table(collection: Collection) -> str:
    """The backbones, as classifiers."""
    importlib.import_module(collection.code.removesuffix('.py').replace('/', '.'))
    kind = MODELS.get(collection.backbone)
    if kind is None:
        raise UserError(
            f'{collection.metafile}: Backbone {collection.backbone} is not in the root registry'
        )
    settings = collection.shown_settings
    head = ['arch', *settings, 'parameters', 'FLOPs', 'ImageNet top-1, quoted']
    rows = []
    for model in collection.by_recipe().get('ImageNet', ()):
        arch = kind.arch_zoo[model.arch] if settings else {}
        shown = ['-'.join(map(str, arch[name])) for name in settings]
        quoted = _quoted(model, 'Top 1 Accuracy')
        rows.append(
            [f'`{model.arch}`', *shown, _millions(model.parameters), _billions(model.flops), quoted]
        )
    return _table(head, rows)


def _quoted(model: Model, metric: str) -> str:
    found = [r.metrics[metric] for r in model.results if r.quoted_from and metric in r.metrics]
    return f'{found[0]:.1f}' if found else ''


def _ours(model: Model, metric: str) -> str:
    found = [r for r in model.results if r.log and metric in r.metrics]
    if not found:
        return 'not measured'
    return f'{found[0].metrics[metric]:g} ([log]({_from_docs(found[0].log)}))'


def _usual_metric(model: Model) -> str:
    if model.training_data == 'ADE20K':
        return 'mIoU'
    return 'box AP' if model.training_data == 'COCO 2017' else 'Top 1 Accuracy'


def _schedule(model: Model) -> str:
    for unit in ('Epochs', 'Iterations'):
        if unit in model.metadata:
            return f'{model.metadata[unit]} {unit.lower()} at batch {model.metadata["Batch Size"]}'
    raise UserError(f'{model.name}: its metafile entry misses Epochs or Iterations')


def _from_docs(path: str) -> str:
    return path.removeprefix('docs/')


def _millions(number: int) -> str:
    return f'{number / 1e6:.1f}M'


def _billions(number: int) -> str:
    return f'{number / 1e9:.1f}G' if number >= 5e7 else f'{number / 1e6:.1f}M'
