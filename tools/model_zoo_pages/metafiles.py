"""``model-index.yml`` and its metafiles, in OpenMMLab's format: read, checked, measured.

Collections, models and results are the dicts of the metafiles, with OpenMMLab's keys and our own:
a model's Metadata has Recipe (what it is trained by; rows of one table share it), Arch (none for a
config with one of its own) and FLOPs Size (height x width); a result has Quoted From (a citation)
or Log (of ours); a collection may have a Note for readers, and Shown Settings of its ``arch_zoo``.
"""

import re
from pathlib import Path
from typing import NamedTuple

import yaml

from cyclemlp_mm.analysis import build_on_meta, count_parameters, count_parts
from cyclemlp_mm.engine import load_config
from cyclemlp_mm.errors import MissingFileError, UserError

#: What each entry must have, and the pattern of its value.
COLLECTION = dict.fromkeys(('Name', 'Metadata/Backbone', 'Paper/Title', 'Paper/URL'), '.')
COLLECTION['Code'] = r'.+\.py'
MODEL = dict.fromkeys(('Name', 'In Collection', 'Metadata/Recipe', 'Metadata/Training Data'), '.')
MODEL |= {'Config': r'.+\.py', 'Metadata/FLOPs Size': r'\d+x\d+$'}
MODEL |= {'Metadata/Parameters': r'\d+$', 'Metadata/FLOPs': r'\d+$'}
RESULT = {'Dataset': '.', 'Metrics': '.'}


class Collection(NamedTuple):
    """A family of backbones: its entry, those of its models in their order, and their file."""

    family: dict
    models: tuple[dict, ...]
    metafile: Path

    def by_recipe(self) -> dict[str, list[dict]]:
        """Models by recipe, in the metafile's order."""
        groups: dict[str, list[dict]] = {}
        for model in self.models:
            groups.setdefault(model['Metadata']['Recipe'], []).append(model)
        return groups


def read_collections(root: str | Path) -> list[Collection]:
    """Read ``model-index.yml`` in the project's root, and every metafile that it imports.

    Raises a MissingFileError if one is not there, a UserError with file, model and field if a field
    is missing or wrong.
    """
    index = _load(Path(root) / 'model-index.yml')
    return [_read_metafile(Path(root) / name) for name in index['Import']]


def _load(path: Path) -> dict:
    if not path.is_file():
        raise MissingFileError(f'{path} does not exist')
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except yaml.YAMLError as error:
        raise UserError(f'{path} is not YAML: {error}') from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: expected keys and values, but got {type(content).__name__}')
    return content


def _read_metafile(path: Path) -> Collection:
    content = _load(path)
    families, models = content.get('Collections') or (), content.get('Models') or ()
    if len(families) != 1:
        raise UserError(f'{path}: expected one entry under Collections')
    [family] = families
    _check_fields(f'{path}: Collections', family, COLLECTION)
    names = [model.get('Name', 'a model without Name') for model in models]
    for name, model in zip(names, models, strict=True):
        where = f'{path}: {name}'
        _check_fields(where, model, MODEL)
        if model['In Collection'] != family['Name']:
            raise UserError(f'{where}: In Collection must be {family["Name"]}')
        if names.count(name) > 1:
            raise UserError(f'{where} is listed more than once')
        for result in model.get('Results', ()):
            _check_fields(f'{where}, a result', result, RESULT)
            if ('Quoted From' in result) == ('Log' in result):
                raise UserError(f'{where}: a result has either Quoted From or Log, a log of ours')
    return Collection(family, tuple(models), path)


def _check_fields(where: str, entry: dict, fields: dict[str, str]) -> None:
    for field, pattern in fields.items():
        value = entry
        for key in field.split('/'):
            if not isinstance(value, dict) or key not in value:
                raise UserError(f'{where} misses {field}')
            value = value[key]
        if not re.match(pattern, str(value)):
            raise UserError(f'{where} has a wrong value: {field}: {value}')


def size_of(model: dict) -> tuple[int, int]:
    """Height and width of the image at which FLOPs are counted."""
    return tuple(map(int, model['Metadata']['FLOPs Size'].split('x')))


def measure(model: dict, root: str | Path) -> dict[str, int]:
    """Build a model without weights; count its parameters, and multiply-adds of one image."""
    built = build_on_meta(load_config(str(Path(root) / model['Config'])))
    flops = sum(count_parts(built, size_of(model)).values())
    return {'Parameters': count_parameters(built), 'FLOPs': flops}


def write_measured(collection: Collection, root: str | Path) -> list[str]:
    """Write the counts into the metafile, with its comments; returns the names that changed."""
    text = collection.metafile.read_text(encoding='utf-8')
    changed = []
    for model in collection.models:
        counted = measure(model, root)
        if not counted.items() <= model['Metadata'].items():
            changed.append(model['Name'])
            start = re.search(rf'(?m)^\s*- Name: {re.escape(model["Name"])}\s*$', text).start()
            entry = text[start:]
            for key, value in counted.items():
                entry = re.sub(rf'(?m)^(\s*{key}:) .*$', rf'\1 {value}', entry, count=1)
            text = text[:start] + entry
    collection.metafile.write_text(text, encoding='utf-8')
    return changed
