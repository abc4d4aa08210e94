"""Checkpoints as mmengine loads them, into a whole detector, segmentor or classifier."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np
from mmengine.logging import print_log
from torch import Tensor

from cyclemlp_mm.errors import CheckpointError

from .cyclemlp import CYCLEMLP_FORMAT
from .loading import find_paddle, to_our_names
from .mpvit import MPVIT_FORMAT
from .published import PublishedFormat
from .repmlp import REPMLP_FORMAT
from .unwrap import find_state_dict, mapping_in, plain_name, split_names, with_prefix

#: Families whose files are taken for whole models, recognised by their names.
FAMILIES = (CYCLEMLP_FORMAT, MPVIT_FORMAT, REPMLP_FORMAT)
_OURS = ('stem.proj.weight', 'stem.0.conv.weight')
#: Names by which a backbone of ours is found in a file, whatever its prefix.
ANCHORS = (*(family.example for family in FAMILIES), *_OURS)
_CLASSIFIER = re.compile(r'head\.(?:fc\.)?(weight|bias)')


def for_mmengine(content: object, source: str, renamed: bool = True) -> object:
    """What a file holds, in the form and under the names that mmengine's loading expects.

    Published and Paddle files become ``{'state_dict': {'backbone.…': …, 'head.fc.…': …}}``, so that
    ``load_from``, ``tools/test.py`` and the inference APIs take them as they are; so does the file
    of a backbone alone, under our names, and one with prefixes of usual wrappers. Content that is
    not of our families is unchanged.

    Args:
        content (object): What :func:`read_checkpoint` returned.
        source (str): The file, for messages.
        renamed (bool): Whether names of our families are changed. Defaults to True.

    Raises:
        CheckpointError: It holds no state dict, or a Paddle file of an unknown family.
    """
    if isinstance(content, Tensor):  # e.g. embeddings, which some models read by the same way
        return content
    if not isinstance(content, dict):
        raise CheckpointError(
            f'checkpoint {source} holds no state dict, but a {type(content).__name__}'
        )
    content = _without_configs(with_sensible_meta(content, source))
    named = {n: t for n, t in mapping_in(content).items() if isinstance(n, str)}
    bare, _ = split_names({plain_name(n): t for n, t in named.items()}, ANCHORS)
    for family in FAMILIES if renamed else ():
        if family.is_certain(bare) or (family.is_ours(bare) and not find_paddle(content)):
            return _renamed(content, source, family)
    if find_paddle(content):
        raise CheckpointError(
            f'checkpoint {source} is a Paddle file, but not of a CycleMLP: which of its weights '
            'are transposed is not known'
        )
    if 'state_dict' in content:
        state_dict = content['state_dict']  # other models may keep what they like in theirs
        if not isinstance(state_dict, dict):
            raise CheckpointError(
                f'checkpoint {source} has a {type(state_dict).__name__} for a state dict'
            )
        return {**content, 'state_dict': _with_file(state_dict, state_dict, source)}
    return _with_file(content, content, source)


def _without_configs(content: dict) -> dict:
    """A checkpoint without config texts: mmengine runs them as Python where it uses them.

    It does so when it resumes, and in inferencers that are given weights and no config.
    """
    hub = content.get('message_hub')
    if 'meta' in content:
        meta = {k: v for k, v in content['meta'].items() if k not in ('cfg', 'config')}
        content = {**content, 'meta': meta}
    if isinstance(hub, dict) and isinstance(hub.get('runtime_info'), dict):
        info = {k: v for k, v in hub['runtime_info'].items() if k != 'cfg'}
        content = {**content, 'message_hub': {**hub, 'runtime_info': info}}
    return content


def with_sensible_meta(content: dict, source: str) -> dict:
    """A checkpoint whose ``meta`` is a dict, with class names and colours that can be used.

    The APIs of the toolboxes take over whatever is there, and end in a traceback later. What makes
    no sense is None in what is returned, and logged.

    Args:
        content (dict): Unchanged.
        source (str): The file, for the message.
    """
    if 'meta' not in content:
        return content
    meta, odd = content['meta'], []
    if not isinstance(meta, dict):
        meta, odd = {}, ['meta']
    meta = dict(meta)
    if not isinstance(meta.get('dataset_meta', {}), dict):
        del meta['dataset_meta']
        odd.append('meta.dataset_meta')
    parts = {'meta.': meta}
    if 'dataset_meta' in meta:
        named = {k: v for k, v in meta['dataset_meta'].items() if isinstance(k, str)}
        parts['meta.dataset_meta.'] = meta['dataset_meta'] = named
    for where, part in parts.items():
        for classes, palette in (('classes', 'palette'), ('CLASSES', 'PALETTE')):
            if classes not in part and palette not in part:
                continue
            names = _names(part.get(classes))
            colours = _colours(part.get(palette), len(names or ()))
            for key, value in ((classes, names), (palette, colours)):
                if part.get(key) is not None and value is None:
                    odd.append(where + key)
                part[key] = value  # both: mmseg looks for either
    if odd:
        said = f'checkpoint {source}: {", ".join(odd)} makes no sense, and is not used'
        print_log(said, 'current', logging.WARNING)
    return {**content, 'meta': meta}


def _names(value: object) -> Sequence[str] | None:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    is_names = isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
    return value if is_names else None


def _colours(value: object, at_least: int) -> list[tuple[int, ...]] | None:
    value = value.tolist() if isinstance(value, (np.ndarray, Tensor)) else value
    if isinstance(value, tuple) and all(type(part) is int for part in value):
        value = [value] * at_least  # mmdet: one for all
    try:
        colours = [tuple(int(part) for part in colour) for colour in value]
    except (TypeError, ValueError, OverflowError):
        return None
    fits = all(len(c) == 3 and min(c) >= 0 and max(c) <= 255 for c in colours)
    return colours if fits and len(colours) >= at_least else None


def split_whole(
    state_dict: Mapping[str, Tensor],
    paddle: bool,
    source: str,
    family: PublishedFormat = CYCLEMLP_FORMAT,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """A model's tensors under our names, in three parts.

    Args:
        state_dict (Mapping[str, Tensor]): Of a backbone, classifier, detector or segmentor, with
            published names or ours.
        paddle (bool): Whether Linear weights are (in, out).
        source (str): The file, for messages.
        family (PublishedFormat): Whose names they are. Defaults to CycleMLP's.

    Returns:
        tuple: The backbone without prefix; the classifier as 'weight' and 'bias', empty where there
        is none; and the rest (neck, heads) as it was.

    Raises:
        CheckpointError: A constant of the architecture differs.
    """
    inner, rest = split_names(state_dict, (*_OURS, family.example))
    ours = to_our_names(family, inner, paddle, source)
    classifier = {}
    for part in (ours, rest):
        for name in [n for n in part if _CLASSIFIER.fullmatch(n)]:
            classifier[_CLASSIFIER.fullmatch(name)[1]] = part[name]
    backbone = {n: t for n, t in ours.items() if not _CLASSIFIER.fullmatch(n)}
    return backbone, classifier, {n: t for n, t in rest.items() if not _CLASSIFIER.fullmatch(n)}


def join_whole(
    backbone: Mapping[str, Tensor], classifier: Mapping[str, Tensor], rest: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The inverse of :func:`split_whole`: the names of our models' checkpoints."""
    named = with_prefix(classifier, 'head.fc.')
    return with_prefix(backbone) | named | dict(rest)


def _renamed(content: dict, source: str, family: PublishedFormat) -> dict:
    """A file of one of our families, under the names of our models' checkpoints."""
    state_dict = find_state_dict(content, source)
    parts = split_whole(state_dict, find_paddle(content), source, family)
    whole = _with_file(join_whole(*parts), mapping_in(content), source)
    kept = content if 'state_dict' in content else {}
    meta = content.get('meta')  # mmseg's init_model looks for it
    return {**kept, 'state_dict': whole, 'meta': meta if isinstance(meta, dict) else {}}


def _with_file(names: Mapping, old: Mapping, source: str) -> OrderedDict:
    """A state dict that tells a backbone of ours, alone or in a model, which file it is from.

    What stands in ``_metadata`` for a module is handed to it when it is loaded; its version, too.
    """
    named = OrderedDict(names)
    named._metadata = dict(getattr(old, '_metadata', {}))
    for part in ('', 'backbone'):
        named._metadata[part] = {**named._metadata.get(part, {}), 'file': source}
    return named
