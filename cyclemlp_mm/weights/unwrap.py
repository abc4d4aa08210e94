"""From what a checkpoint file holds to named tensors, and to those of the backbone."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping

from mmengine.logging import print_log
from torch import Tensor

from cyclemlp_mm.errors import CheckpointError, count, shorten

#: Keys under which files in the wild keep the state dict.
WRAPPERS = ('state_dict', 'model')
#: The backbone's name in the models of the toolboxes.
BACKBONE = 'backbone.'
#: Parts of names that PyTorch's own wrappers put in (compile, FSDP, activation checkpointing).
_TORCH_PARTS = re.compile(
    r'(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.'
)
#: Names that others give to what they wrap a model in: Lightning, timm, DeiT, EMA, plain loops.
_OUTER_PARTS = {
    *('module', 'model', 'net', 'network', 'backbone', 'ema', 'ema_model', 'model_ema'),
    *('state_dict_ema', 'ema_state_dict', 'model_state_dict'),
}
#: Counts of updates in the state of an averaged model, PyTorch's and mmengine's.
_AVERAGES = ('n_averaged', 'steps')


def find_state_dict(content: object, source: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint: bare, or under ``state_dict``, ``model`` or one other key.

    Numbers, texts, None and counts of updates among the tensors are left out. Names are without
    what PyTorch's wrappers put into them; of a teacher and a student, they begin with their keys.
    """
    found = mapping_in(content)
    if not found:
        kind = f'{len(content)} keys' if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f'checkpoint {source} holds no state dict: expected names and tensors, bare or under '
            f'{" or ".join(map(repr, WRAPPERS))}, but got {kind}'
        )
    wrong = [name for name, value in found.items() if not _is_named(name, value)]
    if len(wrong) == len(found) or not all(_is_metadata(name, found[name]) for name in wrong):
        raise CheckpointError(
            f'checkpoint {source} is not a state dict: {len(wrong)} of {len(found)} entries are '
            f'not tensors under a name, e.g. {shorten([str(k) for k in wrong[:3]], 240)}'
        )
    plain: dict[str, Tensor] = {}
    for name, tensor in found.items():
        short = plain_name(name) if isinstance(name, str) else ''
        if not isinstance(tensor, Tensor) or (short in _AVERAGES and not tensor.dim()):
            continue
        if short in plain:
            raise CheckpointError(
                f'checkpoint {source} has two tensors for {shorten(short)}, of a model and of the '
                'same one wrapped: save one of them only'
            )
        plain[short] = tensor
    _report_others(content, found, source)
    return plain


def mapping_in(content: object) -> Mapping:
    """What may be the state dict in a checkpoint: of several parts, all, with keys in names."""
    if not isinstance(content, Mapping):
        return {}
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return content[key]
    if any(isinstance(value, Tensor) for value in content.values()):
        return content
    named = {}
    for key, part in content.items():
        is_part = isinstance(key, str) and isinstance(part, Mapping)
        if is_part and all(_is_named(n, t) for n, t in part.items()):
            named |= with_prefix(part, f'{key}.')
    return named or content


def _report_others(content: object, read: Mapping, source: str) -> None:
    """Log parts of a checkpoint with tensors of the names that are read, which are not: such as an
    average of the weights next to them."""
    # mmengine's own has both, and its hook reads them; of several parts without any, all are read.
    if read is content or not isinstance(content, Mapping) or 'message_hub' in content:
        return
    names = {plain_name(str(name)) for name in read}
    parts = {key: part for key, part in content.items() if isinstance(part, Mapping)}
    for key, part in parts.items():
        number = len(names.intersection(plain_name(str(name)) for name in part))
        if number and part is not read and not any(f'{key}.{name}' in read for name in part):
            what = f'not used, under {key!r}: {count(number, "tensor")} of the same names'
            print_log(f'checkpoint {source}: {what}', 'current', logging.WARNING)


def plain_name(name: str) -> str:
    """A tensor's name without what torch.compile, FSDP and DistributedDataParallel add to it."""
    name = _TORCH_PARTS.sub('', name)
    while name.startswith('module.'):
        name = name.removeprefix('module.')
    return name


def _is_named(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _is_metadata(name: object, value: object) -> bool:
    is_simple = isinstance(value, (int, float, str, type(None)))
    return isinstance(name, str) and (is_simple or name.endswith('_extra_state'))


def _find_prefix(names: Collection[str], anchors: Iterable[str]) -> tuple[str | None, list[str]]:
    """What a backbone's names begin with, by names that it always has, or None; and all options."""
    possible = []
    for anchor in anchors:
        possible += [n.removesuffix(anchor) for n in names if f'.{n}'.endswith(f'.{anchor}')]
    possible = list(dict.fromkeys(possible))
    for prefix in (BACKBONE, ''):
        if prefix in possible:
            return prefix, possible
    if not possible:
        return _likely_prefix(names), possible
    known = [prefix for prefix in possible if _OUTER_PARTS.issuperset(prefix.split('.')[:-1])]
    return (known[0] if len(known) == 1 else None), possible


def _likely_prefix(names: Iterable[str]) -> str:
    return BACKBONE if any(name.startswith(BACKBONE) for name in names) else ''


def select_backbone(
    state_dict: Mapping[str, Tensor], prefix: str | None, anchors: Iterable[str], source: str
) -> tuple[dict[str, Tensor], int]:
    """The tensors of the backbone, ``prefix`` removed, and how many others the file has.

    None finds the prefix by ``anchors``, names that a backbone always has, or raises.
    """
    if prefix is None:
        prefix, possible = _find_prefix(state_dict, anchors)
        if prefix is None:
            options = ' or '.join(f'prefix={p!r}' for p in possible[:4])
            raise CheckpointError(
                f'checkpoint {source} does not fit the model. None of its {len(state_dict)} names '
                f"is one of the backbone's: they begin with {first_parts(state_dict)}. If the "
                f"backbone is there, set init_cfg=dict(type='Pretrained', checkpoint=…, …) with "
                f'{options}'
            )
    else:
        prefix = plain_name(prefix if not prefix or prefix.endswith('.') else f'{prefix}.')
    chosen = part_of(state_dict, prefix)
    if not chosen:
        raise CheckpointError(
            f'checkpoint {source} has no name that begins with prefix={prefix!r}; its names begin '
            f'with {first_parts(state_dict)}'
        )
    return chosen, len(state_dict) - len(chosen)


def split_names(
    state_dict: Mapping[str, Tensor], anchors: Iterable[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A whole model's tensors: the backbone's, without a prefix, and the rest (neck, heads)."""
    prefix = _find_prefix(state_dict, anchors)[0]
    if prefix is None:
        prefix = _likely_prefix(state_dict)
    outer, found, _ = f'.{prefix}'.partition(f'.{BACKBONE}')
    outer = f'{outer}.'.lstrip('.') if found else ''
    rest = {n.removeprefix(outer): t for n, t in state_dict.items() if not n.startswith(prefix)}
    return part_of(state_dict, prefix), rest


def part_of(state_dict: Mapping[str, Tensor], prefix: str = BACKBONE) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {n[len(prefix) :]: t for n, t in state_dict.items() if n.startswith(prefix)}


def with_prefix(state_dict: Mapping[str, Tensor], prefix: str = BACKBONE) -> dict[str, Tensor]:
    """The same tensors, their names after ``prefix``."""
    return {f'{prefix}{name}': tensor for name, tensor in state_dict.items()}


def named_like(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A file's tensors under the names that a model has: with ``backbone.``, or without."""
    for named in (state_dict, with_prefix(state_dict), part_of(state_dict)):
        if any(name in own for name in named):
            return named
    return state_dict


def first_parts(names: Iterable[str], most: int = 5) -> str:
    """The distinct first parts of dotted names, for messages."""
    parts = list(dict.fromkeys(name.split('.')[0] for name in names))
    return ', '.join(map(shorten, parts[:most])) + (', …' if len(parts) > most else '')
