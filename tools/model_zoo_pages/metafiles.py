"""``model-index.yml`` and the metafiles it names, in OpenMMLab's format, read and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from cyclemlp_mm.errors import MissingFileError, UserError


@dataclass(frozen=True)
class Result:
    """What a model reached on a data set.

    Attributes:
        dataset (str): Name of the data set.
        metrics (dict[str, float]): In percent, by name.
        quoted_from (str): Citation; empty where the result is ours.
        log (str): Our log, relative to the project's root; empty where the result is quoted.
    """

    dataset: str
    metrics: dict[str, float]
    quoted_from: str = ''
    log: str = ''


@dataclass(frozen=True)
class Model:
    """One config and what is known of it.

    Attributes:
        name (str): The config's name.
        config (str): Its path, relative to the project's root.
        arch (str): Arch of the backbone; empty for a config with one of its own.
        recipe (str): What it is trained by, such as 'RetinaNet 1x'; rows of one table share it.
        training_data (str): Data set.
        parameters (int): Of the built model.
        flops (int): Multiply-adds of one image at ``size``.
        size (tuple[int, int]): Height and width.
        metadata (dict): All of the metafile's Metadata.
        results (tuple[Result]): Quoted and ours.
        weights (str): URL; empty where none were published.
    """

    name: str
    config: str
    arch: str
    recipe: str
    training_data: str
    parameters: int
    flops: int
    size: tuple[int, int]
    metadata: dict = field(repr=False)
    results: tuple[Result, ...] = ()
    weights: str = ''


@dataclass(frozen=True)
class Collection:
    """A family of backbones.

    Attributes:
        name (str): The family's name.
        backbone (str): Class in the root registry.
        code (str): File that holds it, from the root; some are registered only when imported.
        paper_title (str): Of the paper.
        paper_url (str): Of the paper.
        note (str): What readers of the tables have to know; may be empty.
        shown_settings (tuple[str]): Keys of the class's ``arch_zoo`` to show.
        models (tuple[Model]): In the metafile's order.
        metafile (Path): Where this was read.
    """

    name: str
    backbone: str
    code: str
    paper_title: str
    paper_url: str
    note: str
    shown_settings: tuple[str, ...]
    models: tuple[Model, ...]
    metafile: Path

    def by_recipe(self) -> dict[str, list[Model]]:
        """Models by recipe, in the metafile's order."""
        groups: dict[str, list[Model]] = {}
        for model in self.models:
            groups.setdefault(model.recipe, []).append(model)
        return groups


def read_collections(root: str | Path) -> list[Collection]:
    """Read ``model-index.yml`` and every metafile that it imports.

    Args:
        root (str | Path): The project's root.

    Raises:
        MissingFileError: The index or a metafile is not there.
        UserError: A field is missing or wrong; names file, model and field.
    """
    root = Path(root)
    index = _load(root / 'model-index.yml')
    return [_read_metafile(root / name) for name in index['Import']]


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
    try:
        [entry] = content['Collections']
        metadata = entry['Metadata']
        name = entry['Name']
        models = tuple(_read_model(path, name, m) for m in content['Models'])
        collection = Collection(
            name=name,
            backbone=metadata['Backbone'],
            code=entry['Code'],
            paper_title=entry['Paper']['Title'],
            paper_url=entry['Paper']['URL'],
            note=entry.get('Note', ''),
            shown_settings=tuple(metadata.get('Shown Settings', ())),
            models=models,
            metafile=path,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f'{path}: Collections misses or misspells {error}') from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path}: expected one entry under Collections') from error
    names = [model.name for model in models]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f'{path}: {", ".join(twice)} is listed more than once')
    return collection


def _read_model(path: Path, collection: str, entry: dict) -> Model:
    name = entry.get('Name', 'a model without Name')
    try:
        if entry['In Collection'] != collection:
            raise UserError(f'{path}: {name} is not In Collection: {collection}')
        metadata = entry['Metadata']
        height, width = metadata['FLOPs Size'].split('x')
        return Model(
            name=name,
            config=entry['Config'],
            arch=metadata.get('Arch', ''),
            recipe=metadata['Recipe'],
            training_data=metadata['Training Data'],
            parameters=int(metadata['Parameters']),
            flops=int(metadata['FLOPs']),
            size=(int(height), int(width)),
            metadata=metadata,
            results=tuple(_read_result(path, name, r) for r in entry.get('Results', ())),
            weights=entry.get('Weights', ''),
        )
    except KeyError as error:
        raise UserError(f'{path}: {name} misses {error}') from error
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path}: {name} has a wrong value: {error}') from error


def _read_result(path: Path, name: str, entry: dict) -> Result:
    quoted, log = entry.get('Quoted From', ''), entry.get('Log', '')
    if bool(quoted) == bool(log):
        raise UserError(
            f'{path}: a result of {name} must say either where it is quoted from (Quoted From) or '
            'which log of ours shows it (Log)'
        )
    return Result(entry['Dataset'], dict(entry['Metrics']), quoted, log)
