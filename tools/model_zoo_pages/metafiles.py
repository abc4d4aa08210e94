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
from cyclemlp_mm.errors import UserError


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

    Raises a UserError with file and model if an entry lacks one of OpenMMLab's keys or ours.
    """
    index = yaml.safe_load((Path(root) / 'model-index.yml').read_text(encoding='utf-8'))
    return [_read_metafile(Path(root) / name) for name in index['Import']]


def _read_metafile(path: Path) -> Collection:
    content = yaml.safe_load(path.read_text(encoding='utf-8'))
    [family] = content['Collections']
    for model in content['Models']:
        missing = {'Name', 'In Collection', 'Config', 'Metadata'} - model.keys()
        missing |= {'Recipe', 'Training Data', 'FLOPs Size'} - model.get('Metadata', {}).keys()
        if missing:
            raise UserError(f'{path}: {model.get("Name")} misses {", ".join(sorted(missing))}')
    return Collection(family, tuple(content['Models']), path)


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
