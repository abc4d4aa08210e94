"""Any checkpoint of a CycleMLP that we read, written again: our names, published, safetensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cyclemlp_mm.errors import CheckpointError, MissingFileError, UserError
from cyclemlp_mm.user_path import user_path

from .allowed_types import DamagedFile
from .cyclemlp import CYCLEMLP_FORMAT, arch_of, is_certainly_published, is_ours, to_published
from .files import read_checkpoint, sha256_of
from .formats import DATASET_META, PaddleStateDict, to_safetensors
from .unwrap import find_state_dict, first_parts, split_names
from .whole_model import join_whole, split_whole, with_sensible_meta

#: What ``convert`` writes.
TARGETS = ('ours', 'published', 'safetensors')


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` did.

    Attributes:
        source (str): 'published', 'Paddle' or 'ours'.
        arch (str): Name of the architecture, or 'custom' with its settings; all names that fit,
            where the file has not all stages.
        backbone (int): Tensors of the backbone in the new file, without constants.
        classifier (int): Those of the classifier.
        rest (int): Those of the rest of the model (neck, heads) in the new file.
        dropped (int): Those of the rest that the new format has no place for.
        sha256 (str): Of the new file.
    """

    source: str
    arch: str
    backbone: int
    classifier: int
    rest: int
    dropped: int
    sha256: str


def convert(
    source: str | Path, target: str | Path, to: str | None = None, force: bool = False
) -> Conversion:
    """Read any file that we read, check it against its architecture, and write it in a new format.

    'ours' and 'safetensors' have our names: a backbone's own, or a whole model's (``backbone.…``,
    ``head.fc.…``). 'published' has the published ones, of backbone and classifier.

    Args:
        source (str | Path): A path or an http(s) URL.
        target (str | Path): The new file. It appears complete or not at all.
        to (str, optional): One of ``TARGETS``. None is 'safetensors' for such a suffix, else
            'ours'. A ``.safetensors`` suffix is kept for published names, too.
        force (bool): Overwrite ``target``. Defaults to False.

    Raises:
        UserError: ``target`` is there and ``force`` is not set, or cannot be written.
        CheckpointError: ``source`` cannot be read, or is not a complete CycleMLP.
    """
    target, source = user_path(target), str(source)
    to = to or ('safetensors' if target.suffix == '.safetensors' else 'ours')
    _check_target(target, to, force)
    content = read_checkpoint(source)
    state_dict = find_state_dict(content, source)
    paddle = isinstance(content, PaddleStateDict)
    backbone, classifier, rest = split_whole(state_dict, paddle, source)
    arch = _verify(backbone, classifier, source)
    dropped = 0
    if to == 'published':
        named = {f'head.{name}': tensor for name, tensor in classifier.items()}
        try:
            new = to_published({**backbone, **named})
        except CheckpointError as error:
            raise CheckpointError(f'checkpoint {source}: {error}') from error
        dropped, rest = len(rest), {}
    elif classifier or rest:
        new = join_whole(backbone, classifier, rest)
    else:
        new = backbone
    new = {name: tensor.detach().contiguous() for name, tensor in new.items()}
    # What a training wrote about itself (class names, config) stays.
    meta = {**with_sensible_meta(content, source).get('meta', {}), 'arch': arch}
    _write(new, target, to, meta, force)
    bare, _ = split_names(state_dict, CYCLEMLP_FORMAT.anchors)
    kind = 'Paddle' if paddle else 'published' if is_certainly_published(bare) else 'ours'
    counts = len(backbone), len(classifier), len(rest), dropped
    return Conversion(kind, arch, *counts, sha256_of(target))


def _check_target(target: Path, to: str, force: bool) -> None:
    if to not in TARGETS:
        raise UserError(f'--to must be one of {", ".join(TARGETS)}, but got {to!r}')
    if target.suffix == '.pdparams':
        raise UserError(f'{target}: Paddle files are only read; choose .pth or .safetensors')
    if target.is_dir():
        raise UserError(f'{target} is a folder: name the file in it')
    if not target.parent.is_dir():
        raise MissingFileError(f'the folder {target.parent} does not exist: make it first')
    if target.exists() and not force:
        raise UserError(f'{target} is there already: choose another name, or give --force')


def _verify(backbone: Mapping[str, Tensor], classifier: Mapping[str, Tensor], source: str) -> str:
    """Check names, shapes and types against the architecture; returns its name."""
    from cyclemlp_mm.models import CycleMLP  # the models import this package

    arch = arch_of(backbone) if is_ours(backbone) else None
    if arch is None or 10 * sum(arch['depths']) > len(backbone):
        raise CheckpointError(
            f'checkpoint {source} holds no complete CycleMLP backbone: its names begin with '
            f'{first_parts(backbone)}'
        )
    stages = len(arch['depths'])
    # The first stages alone may be those of several.
    known = [n for n, row in CycleMLP.arch_zoo.items() if _built(row, stages) == arch]
    name = ' or '.join(known) or f'custom ({_settings(arch)})'
    stem = backbone.get('stem.proj.weight')
    in_channels = stem.shape[1] if stem is not None and stem.dim() == 4 else 3
    # Stages that the file does not have are not built.
    keys = ('depths', 'widths', 'mlp_ratios')
    whole = {k: (*v, *v[-1:] * 3)[:4] if k in keys else v for k, v in arch.items()}
    whole['downsample'] = arch['downsample'] or 'conv'
    try:
        with torch.device('meta'):
            model = CycleMLP(whole, in_channels, range(stages))
    except ValueError as error:
        raise CheckpointError(f'checkpoint {source} is of no CycleMLP: {error}') from error
    left = model.check_fit(backbone, source).left
    if left:
        also = ', '.join(left)
        raise CheckpointError(f'checkpoint {source} does not fit CycleMLP {name}: it has {also}')
    shapes = {n: tuple(t.shape) for n, t in classifier.items()}
    width, bias = arch['widths'][-1], shapes.get('bias', (0,))
    if classifier and shapes != {'weight': (*bias, width), 'bias': bias}:
        raise CheckpointError(
            f'checkpoint {source}: the classifier must have a weight (classes, {width}) and a bias '
            f'(classes,), but has {shapes}'
        )
    return name


def _built(row: Mapping[str, Any], stages: int) -> dict:
    """What :func:`arch_of` can tell of an arch of which only the first stages are built."""
    built = {k: v[:stages] if isinstance(v, tuple) else v for k, v in row.items()}
    return built if stages > 1 else {**built, 'downsample': None}


def _settings(arch: Mapping[str, Any]) -> str:
    texts = {k: '-'.join(map(str, v)) if isinstance(v, tuple) else v for k, v in arch.items()}
    return ', '.join(f'{key} {text}' for key, text in texts.items() if text is not None)


def _as_text(meta: dict) -> dict[str, str]:
    """What safetensors has place for: without the class names, a detector would guess."""
    text = {'format': 'pt', 'arch': meta['arch']}
    if isinstance(meta.get('dataset_meta'), dict):
        text[DATASET_META] = json.dumps(meta['dataset_meta'], default=_plain, skipkeys=True)
    return text


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


def _write(state_dict: dict[str, Tensor], target: Path, to: str, meta: dict, force: bool) -> None:
    """Write, read back, then give the file its name."""
    from cyclemlp_mm.engine.work_dir import atomic_file  # engine imports this package

    try:
        with atomic_file(target) as part:
            if to == 'safetensors' or target.suffix == '.safetensors':
                part.write_bytes(to_safetensors(state_dict, _as_text(meta)))
            else:  # published files are bare, as the authors' are
                with part.open('wb') as file:
                    content = dict(state_dict=state_dict, meta=meta)
                    torch.save(state_dict if to == 'published' else content, file)
            written = find_state_dict(read_checkpoint(part), str(target))
            if set(written) != set(state_dict) or any(
                not _same(written[n], tensor) for n, tensor in state_dict.items()
            ):
                raise CheckpointError(f'{target} could not be read back as it was written')
            if target.exists() and not force:
                raise UserError(f'{target} has appeared meanwhile: nothing was overwritten')
    except DamagedFile as error:
        raise CheckpointError(f'{target} cannot be written: {error}') from error


def _same(one: Tensor, other: Tensor) -> bool:
    """Bit by bit: NaNs, too."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (one, other)))
