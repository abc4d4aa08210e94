"""Checkpoints as mmengine loads them, into a whole detector, segmentor or classifier."""

import logging
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.logging import print_log
from torch import Tensor

from cyclemlp_mm.errors import CheckpointError

from .cyclemlp import CYCLEMLP_FORMAT
from .formats import PaddleStateDict
from .loading import to_our_names
from .published import FAMILIES, PublishedFormat
from .unwrap import find_state_dict, mapping_in, plain_name, split_names, with_prefix

_CLASSIFIER = re.compile(r'head\.(?:fc\.)?(weight|bias)')


def for_mmengine(content: Any, source: str, renamed: bool = True) -> Any:
    """What a file holds, in the form and under the names that mmengine's loading expects.

    A file of our families becomes ``{'state_dict': {'backbone.…': …, 'head.fc.…': …}}``, whether
    published, Paddle's, wrapped, or of a backbone alone; unless ``renamed`` is False. Others are
    unchanged.
    """
    if isinstance(content, Tensor):  # e.g. embeddings, which some models read by the same way
        return content
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f'checkpoint {source} holds no state dict, but a {kind}')
    paddle = isinstance(content, PaddleStateDict)
    content = _without_configs(with_sensible_meta(content, source))
    found = mapping_in(content)
    named = {plain_name(n): t for n, t in found.items() if isinstance(n, str)}
    anchors = [name for family in FAMILIES.values() for name in family.anchors]
    bare, _ = split_names(named, anchors)
    for family in FAMILIES.values() if renamed else ():
        if family.is_certain(bare) or (family.is_ours(bare) and not paddle):
            parts = split_whole(find_state_dict(content, source), paddle, source, family)
            kept = content if 'state_dict' in content else {}
            meta = content.get('meta')  # mmseg's init_model looks for it
            return {
                **kept,
                'state_dict': _with_file(join_whole(*parts), found, source),
                'meta': meta if isinstance(meta, dict) else {},
            }
    if paddle:
        raise CheckpointError(
            f'checkpoint {source} is a Paddle file, but not of a CycleMLP: which of its weights '
            'are transposed is not known'
        )
    if 'state_dict' not in content:
        return _with_file(content, content, source)
    state_dict = content['state_dict']  # other models may keep what they like in theirs
    if not isinstance(state_dict, dict):
        kind = type(state_dict).__name__
        raise CheckpointError(f'checkpoint {source} has a {kind} for a state dict')
    return {**content, 'state_dict': _with_file(state_dict, state_dict, source)}


def _without_configs(content: dict) -> dict:
    """A checkpoint without config texts: mmengine runs them as Python when it resumes, and in
    inferencers that are given weights and no config."""
    changed, hub = {}, content.get('message_hub')
    if 'meta' in content:
        changed['meta'] = _but(content['meta'], 'cfg', 'config')
    if isinstance(hub, dict) and isinstance(hub.get('runtime_info'), dict):
        changed['message_hub'] = {**hub, 'runtime_info': _but(hub['runtime_info'], 'cfg')}
    # A bare state dict stays itself: the versions of its modules are an attribute.
    return {**content, **changed} if changed else content


def _but(part: dict, *keys: str) -> dict:
    return {key: value for key, value in part.items() if key not in keys}


def with_sensible_meta(content: dict, source: str) -> dict:
    """A checkpoint whose ``meta`` is a dict, with class names and colours that can be used.

    The toolboxes' APIs take over whatever is there. What is invalid becomes None, and is logged.
    """
    if 'meta' not in content:
        return content
    odd = [] if isinstance(content['meta'], dict) else ['meta']
    meta = {} if odd else dict(content['meta'])
    if not isinstance(meta.get('dataset_meta', {}), dict):
        del meta['dataset_meta']
        odd.append('meta.dataset_meta')
    parts = {'meta.': meta}
    if 'dataset_meta' in meta:
        named = {k: v for k, v in meta['dataset_meta'].items() if isinstance(k, str)}
        parts['meta.dataset_meta.'] = meta['dataset_meta'] = named
    for where, part in parts.items():
        for keys in (('classes', 'palette'), ('CLASSES', 'PALETTE')):
            names = _names(part.get(keys[0]))
            colours = _colours(part.get(keys[1]), len(names or ()))
            checked = dict(zip(keys, (names, colours)))
            odd += [where + k for k in keys if part.get(k) is not None and checked[k] is None]
            if part.keys() & keys:
                part.update(checked)  # both: mmseg looks for either
    if odd:
        message = f'checkpoint {source}: ignored invalid {", ".join(odd)}'
        print_log(message, 'current', logging.WARNING)
    return {**content, 'meta': meta}


def _names(value: Any) -> Sequence[str] | None:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    is_names = isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
    return value if is_names else None


def _colours(value: Any, at_least: int) -> list[tuple[int, ...]] | None:
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
    """A model's backbone under our names, classifier ('weight', 'bias') and rest (neck, heads)."""
    inner, rest = split_names(state_dict, family.anchors)
    backbone = dict(to_our_names(family, inner, paddle, source))
    classifier = {}
    for part in (backbone, rest):
        for match in [*filter(None, map(_CLASSIFIER.fullmatch, part))]:
            classifier[match[1]] = part.pop(match[0])
    return backbone, classifier, rest


def join_whole(
    backbone: Mapping[str, Tensor], classifier: Mapping[str, Tensor], rest: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The inverse of :func:`split_whole`: the names of our models' checkpoints."""
    return with_prefix(backbone) | with_prefix(classifier, 'head.fc.') | dict(rest)


def _with_file(names: Mapping, old: Mapping, source: str) -> OrderedDict:
    """A state dict that tells a backbone of ours which file it is from: a module gets what is in
    ``_metadata`` under its name when it is loaded."""
    named: Any = OrderedDict(names)
    named._metadata = dict(getattr(old, '_metadata', {}))
    for part in ('', 'backbone'):
        named._metadata[part] = {**named._metadata.get(part, {}), 'file': source}
    return named
