"""Checkpoints as mmengine loads them, into a whole detector, segmentor or classifier."""

import re
from collections.abc import Mapping

from torch import Tensor

from cyclemlp_mm.errors import CheckpointError

from . import mpvit
from .cyclemlp import CYCLEMLP_FORMAT, is_ours
from .limits import shorten
from .loading import find_paddle, to_our_names
from .mpvit import MPVIT_FORMAT
from .published import PublishedFormat
from .unwrap import WRAPPERS, find_state_dict

#: Families whose published files are taken for whole models, told by their names.
FAMILIES = (CYCLEMLP_FORMAT, MPVIT_FORMAT)
_BACKBONE = 'backbone.'
_CLASSIFIER = re.compile(r'head\.(?:fc\.)?(weight|bias)')


def for_mmengine(content: object, source: str) -> object:
    """What a file holds, in the form and under the names that mmengine's loading expects.

    Published and Paddle files become ``{'state_dict': {'backbone.…': …, 'head.fc.…': …}}``, so that
    ``load_from``, ``tools/test.py`` and the inference APIs take them as they are; so does the file
    of a backbone alone, under our names. What is not of our families is left alone.

    Args:
        content (object): What :func:`read_checkpoint` returned.
        source (str): The file, for messages.

    Raises:
        CheckpointError: It holds no state dict, or a Paddle file of an unknown family.
    """
    if isinstance(content, Tensor):  # e.g. embeddings, which some models read by the same way
        return content
    if not isinstance(content, dict):
        raise CheckpointError(
            f'checkpoint {source} holds no state dict, but a {type(content).__name__}'
        )
    meta = content.get('meta')
    if isinstance(meta, dict):
        # Resuming, mmengine would run this text as Python; what it writes itself is 'cfg'.
        meta.pop('config', None)
    names = _first_mapping(content)
    backbone = {_without(n, 'module.'): t for n, t in names.items() if isinstance(n, str)}
    prefixed = any(name.startswith(_BACKBONE) for name in backbone)
    bare = {_without(n, _BACKBONE): t for n, t in backbone.items()} if prefixed else backbone
    for family in FAMILIES:
        if family.is_certain(bare):
            return _published(content, source, family)
    if find_paddle(content):
        raise CheckpointError(
            f'checkpoint {source} is a Paddle file, but not of a CycleMLP: which of its weights '
            'are transposed is not known'
        )
    ours = is_ours(bare) or mpvit.is_ours(bare)
    if 'state_dict' in content:
        _check_state_dict(content['state_dict'], source)
        content = dict(content)
    elif ours:
        content = {'state_dict': names}
    if ours:
        content.setdefault('meta', {})  # mmseg's init_model looks for it
    if ours and not prefixed:  # a backbone's own file: it finds its names itself, a detector not
        content['state_dict'] = {f'{_BACKBONE}{name}': t for name, t in backbone.items()}
    return content


def split_whole(
    state_dict: 'Mapping[str, Tensor]',
    paddle: bool,
    source: str,
    family: PublishedFormat = CYCLEMLP_FORMAT,
) -> 'tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]':
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
    prefixed = any(name.startswith(_BACKBONE) for name in state_dict)
    inner, rest = {}, {}
    for name, tensor in state_dict.items():
        if not prefixed or name.startswith(_BACKBONE):
            inner[_without(name, _BACKBONE)] = tensor
        else:
            rest[name] = tensor
    ours = to_our_names(family, inner, paddle, source)
    classifier = {}
    for part in (ours, rest):
        for name in [n for n in part if _CLASSIFIER.fullmatch(n)]:
            classifier[_CLASSIFIER.fullmatch(name)[1]] = part[name]
    backbone = {n: t for n, t in ours.items() if not _CLASSIFIER.fullmatch(n)}
    return backbone, classifier, {n: t for n, t in rest.items() if not _CLASSIFIER.fullmatch(n)}


def join_whole(
    backbone: 'Mapping[str, Tensor]',
    classifier: 'Mapping[str, Tensor]',
    rest: 'Mapping[str, Tensor]',
) -> 'dict[str, Tensor]':
    """The inverse of :func:`split_whole`: the names of our models' checkpoints."""
    whole = {f'{_BACKBONE}{name}': tensor for name, tensor in backbone.items()}
    return whole | {f'head.fc.{name}': tensor for name, tensor in classifier.items()} | dict(rest)


def _published(content: dict, source: str, family: PublishedFormat) -> dict:
    state_dict = find_state_dict(content, source)
    parts = split_whole(state_dict, find_paddle(content), source, family)
    meta = content.get('meta')
    return {'state_dict': join_whole(*parts), 'meta': meta if isinstance(meta, dict) else {}}


def _first_mapping(content: dict) -> Mapping:
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return content[key]
    return content


def _check_state_dict(state_dict: object, source: str) -> None:
    if not isinstance(state_dict, dict):
        raise CheckpointError(
            f'checkpoint {source} has a {type(state_dict).__name__} for a state dict'
        )
    for name, value in state_dict.items():
        # _extra_state is where modules may keep something that is no tensor
        if not isinstance(name, str) or not (
            isinstance(value, Tensor) or name.endswith('_extra_state')
        ):
            raise CheckpointError(
                f'checkpoint {source} is no state dict: its entry {shorten(name)} is a '
                f'{type(value).__name__}, not a tensor under a name'
            )


def _without(name: str, prefix: str) -> str:
    while name.startswith(prefix):
        name = name[len(prefix):]
    return name
