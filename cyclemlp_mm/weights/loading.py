"""Load a backbone from a checkpoint: completely, or not at all.

Whatever is not an expected difference, by name, raises before anything is copied.
"""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from torch import Tensor, nn

from cyclemlp_mm.errors import CheckpointError, count, shorten

from .files import read_checkpoint
from .formats import PaddleStateDict
from .published import PublishedFormat
from .unwrap import find_state_dict, first_parts, select_backbone

_OUTPUT_NORM = re.compile(
    r'(norm\d+|final_norm)\.(weight|bias|running_mean|running_var|num_batches_tracked)'
)
#: Stage and block that a tensor belongs to; an MPViT counts the layers of its parallel paths.
BLOCK = re.compile(r'stages\.(\d+)\.(?:paths\.\d+\.layers\.)?(\d+)\.')


@dataclass
class LoadReport:
    """What happened to the tensors of a file and of a model.

    Attributes:
        source (str): The file.
        loaded (int): Tensors copied into the model.
        total (int): Tensors the model has.
        new (dict[str, list[str]]): Kind to the model's names the file rightly lacks.
        left (dict[str, int]): Kind to the number of tensors in the file the model rightly lacks.
    """

    source: str
    loaded: int = 0
    total: int = 0
    new: dict[str, list[str]] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f'loaded {self.loaded} of {self.total} tensors from {self.source}']
        for kind, names in self.new.items():
            lines.append(f'  new, not in the file: {kind} ({", ".join(names)})')
        if self.left:
            unused = ', '.join(f'{kind} ({count})' for kind, count in self.left.items())
            lines.append(f'  in the file, not used: {unused}')
        return '\n'.join(lines)


def split_pretrained(
    init_cfg: dict | list[dict] | None, pretrained: str | None
) -> tuple[list[dict] | None, list[dict]]:
    """Part an ``init_cfg`` into what mmengine does and the checkpoints that we load.

    Args:
        init_cfg (dict | list[dict], optional): As for any ``BaseModule``.
        pretrained (str, optional): The older way to name a checkpoint.

    Returns:
        tuple: The rest of ``init_cfg`` (None if empty), and the keyword arguments of
        :func:`init_from_checkpoint`, one dict per ``type='Pretrained'`` entry.
    """
    if pretrained is not None:
        if init_cfg is not None:
            raise ValueError("give init_cfg or the deprecated 'pretrained', not both")
        init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        message = f"'pretrained' is deprecated; use init_cfg={init_cfg}"
        print_log(message, 'current', logging.WARNING)
    if init_cfg is None:
        return None, []
    listed = [init_cfg] if isinstance(init_cfg, dict) else init_cfg
    if not isinstance(listed, (list, tuple)) or not all(isinstance(cfg, dict) for cfg in listed):
        raise TypeError(
            f'init_cfg must be a dict or a list of dicts, but got {init_cfg!r}. For a checkpoint: '
            "dict(type='Pretrained', checkpoint=…)"
        )
    rest, ours = [], []
    allowed = {'type', 'checkpoint', 'prefix', 'map_location'}
    for cfg in listed:
        if 'type' not in cfg:
            expected = "init_cfg must have a type, e.g. dict(type='Pretrained', checkpoint=…)"
            raise ValueError(f'{expected}, but got {dict(cfg)}')
        if not _is_pretrained(cfg['type']):
            rest.append(cfg)
        elif not isinstance(cfg.get('prefix', ''), (str, type(None))):
            raise TypeError(f'init_cfg: prefix must be a text, but got {cfg["prefix"]!r}')
        elif allowed.issuperset(cfg) and cfg.get('checkpoint'):
            ours.append({key: value for key, value in cfg.items() if key != 'type'})
        else:
            raise ValueError(
                f"init_cfg of type 'Pretrained' takes {sorted(allowed)} and needs 'checkpoint', "
                f'but got {dict(cfg)}'
            )
    return rest or None, ours


def _is_pretrained(kind: object) -> bool:
    """Whether mmengine would take ``PretrainedInit``: by name, or as the class itself."""
    if isinstance(kind, str):
        return kind.rpartition('.')[2] in ('Pretrained', PretrainedInit.__name__)
    return isinstance(kind, type) and issubclass(kind, PretrainedInit)


def init_from_checkpoint(
    model: nn.Module,
    published: PublishedFormat,
    checkpoint: str,
    prefix: str | None = None,
    map_location: str = 'cpu',
) -> LoadReport:
    """Load a backbone and log what was loaded.

    Takes published files, Paddle's, our own, and those of a whole detector or segmentor; as
    ``.pth``, ``.pdparams`` or ``.safetensors``. Prefixes of usual wrappers are found.

    Args:
        model (nn.Module): The backbone.
        published (PublishedFormat): Its family's published names.
        checkpoint (str): Path or http(s) URL.
        prefix (str, optional): What the backbone's names begin with in the file. None finds it.
        map_location (str): Device to read to. Defaults to 'cpu'.

    Raises:
        MissingFileError: The file is not there.
        CheckpointError: It cannot be read or does not fit; the model is left as it was.
    """
    content = read_checkpoint(checkpoint, map_location)
    anchors = (published.example, next(iter(model.state_dict())))
    found = find_state_dict(content, checkpoint)
    state_dict, others = select_backbone(found, prefix, anchors, checkpoint)
    paddle = isinstance(content, PaddleStateDict)
    ours = to_our_names(published, state_dict, paddle, checkpoint)
    report = load_strictly(model, published, ours, checkpoint)
    if others:
        report.left['rest of the model'] = others
    print_log(f'{type(model).__name__}: {report}', 'current')
    return report


def load_strictly(
    model: nn.Module, published: PublishedFormat, state_dict: Mapping[str, Tensor], source: str
) -> LoadReport:
    """Copy ``state_dict``, under our names, into ``model``, if it fits, see :func:`check_fit`.

    Raises:
        CheckpointError: It does not; the model is left as it was.
    """
    own = model.state_dict()
    report = check_fit(model, published, state_dict, source, own)
    common = {name: tensor for name, tensor in state_dict.items() if name in own}
    model.load_state_dict(common, strict=False)  # strictness was checked above, kind by kind
    return report


def check_fit(
    model: nn.Module,
    published: PublishedFormat,
    state_dict: Mapping[str, Tensor],
    source: str,
    own: Mapping[str, Tensor] | None = None,
    complete: bool = False,
    prefix: str = '',
) -> LoadReport:
    """Compare a backbone with a state dict: what every way to load one calls.

    Expected differences: the family's extras (a classifier), whole output norms of one side,
    stages of the same arch after the last level that the model returns, and BatchNorm's counters of
    batches.

    Args:
        model (nn.Module): The backbone.
        published (PublishedFormat): Its family's published names.
        state_dict (Mapping[str, Tensor]): Under our names, without a prefix.
        source (str): The file, for messages.
        own (Mapping[str, Tensor], optional): The backbone's state dict, if it is sharded.
        complete (bool): Output norms must be in the file, too. Defaults to False.
        prefix (str): What names have in the file, for messages. Defaults to ''.

    Raises:
        CheckpointError: Anything else differs.
    """
    own = model.state_dict() if own is None else own
    report = LoadReport(source, sum(name in own for name in state_dict), len(own))
    missing, unexpected = [], []
    norms = {name.split('.')[0] for name in state_dict if _OUTPUT_NORM.fullmatch(name)}
    for name in [name for name in own if name not in state_dict]:
        is_new_norm = _OUTPUT_NORM.fullmatch(name) and name.split('.')[0] not in norms
        kind = 'output norms' if is_new_norm and not complete else None
        kind = 'counters of batches' if is_counter(name) else kind
        (report.new.setdefault(kind, []) if kind else missing).append(name)
    left_out = _stages_left_out(model, state_dict)
    for name in [name for name in state_dict if name not in own]:
        if kind := _kind_of_extra(name, published, left_out):
            report.left[kind] = report.left.get(kind, 0) + 1
        else:
            unexpected.append(name)
    misfit = misfits(own, state_dict, missing, prefix)
    if unexpected:
        listed = shorten([prefix + name for name in unexpected[:3]], 240)
        misfit.append(f'{len(unexpected)} are unknown to the model, e.g. {listed}')
    if not misfit:
        return report
    head = f'checkpoint {source} does not fit the model; nothing was loaded.'
    if not state_dict:
        raise CheckpointError(
            f'{head} It has no tensor whose name begins with {prefix!r}. (Published files, and '
            'those of a backbone alone, need cyclemlp_mm.safe_loading in custom_imports.)'
        )
    if not report.loaded:
        raise CheckpointError(
            f'{head} None of its {len(state_dict)} names{f" after {prefix!r}" if prefix else ""} '
            f'is known: they begin with {first_parts(state_dict)}; expected e.g. '
            f'{published.example!r} (published) or {next(iter(own))!r} (ours). If the backbone '
            "has a prefix, set init_cfg=dict(type='Pretrained', checkpoint=…, prefix='THAT.')"
        )
    in_file, in_model = published.describe(state_dict), published.describe(own)
    if in_file != in_model:
        head += f' The file holds {in_file}; the model has {in_model}: is it the right arch?'
    raise CheckpointError(f'{head} {"; ".join(misfit)}')


def misfits(
    own: Mapping[str, Tensor],
    state_dict: Mapping[str, Tensor],
    missing: Collection[str],
    prefix: str = '',
) -> list[str]:
    """Sentences on tensors that a state dict lacks, or has in another shape or type."""
    found = []
    if missing:
        which = "of the backbone's tensors" if prefix else 'tensors'
        listed = [prefix + name for name in [*missing][:3]]
        found.append(f'{len(missing)} of {len(own)} {which} are missing, e.g. {listed}')
    broken = [n for n in state_dict if n in own and not _is_finite(n, state_dict[n])]
    if broken:
        which = shorten([prefix + name for name in broken[:3]], 240)
        where = f'{count(len(broken), "tensor")}, e.g. {which}'
        found.append(f'nan or inf in {where}: of a training that diverged?')
    misshapen = [n for n in state_dict if n in own and not fits(n, state_dict[n], own[n])]
    for name in misshapen[:1]:
        in_file, in_model = (f'{tuple(t.shape)} {t.dtype}' for t in (state_dict[name], own[name]))
        found.append(
            f'{len(misshapen)} have another shape or type, e.g. {prefix}{name}: {in_file} in the '
            f'file, {in_model} in the model'.replace('torch.', '')
        )
    return found


def to_our_names(
    published: PublishedFormat, state_dict: Mapping[str, Tensor], paddle: bool, source: str
) -> Mapping[str, Tensor]:
    """A backbone's state dict, published, Paddle's (``paddle``) or ours, under our names."""
    try:
        if paddle:
            state_dict = published.from_paddle(state_dict)
        return published.to_ours(state_dict) if published.is_published(state_dict) else state_dict
    except CheckpointError as error:
        raise CheckpointError(f'checkpoint {source}: {error}') from error


def _kind_of_extra(name: str, published: PublishedFormat, left_out: Collection[int]) -> str | None:
    for kind, pattern in published.extras.items():
        if re.fullmatch(pattern, name):
            return kind
    if _OUTPUT_NORM.fullmatch(name):
        return 'output norms'
    match = re.match(r'(stages|downsamples|downsample_layers)\.(\d+)\.', name)
    # RepMLP counts the downsamplings themselves: 0 is the one into stage 1.
    if match and int(match[2]) + (match[1] == 'downsample_layers') in left_out:
        return 'stages after the last returned level'
    return 'counters of batches' if is_counter(name) else None


def _stages_left_out(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Collection[int]:
    """Stages of the model's arch that it does not build; none, if the file's have other depths."""
    depths = getattr(model, 'depths', ())
    in_file = [0] * len(depths)
    for match in filter(None, map(BLOCK.match, state_dict)):
        if (stage := int(match[1])) < len(depths):
            in_file[stage] = max(in_file[stage], int(match[2]) + 1)
    # The file of a model that was cut, too, has fewer.
    same = all(there in (0, depth) for there, depth in zip(in_file, depths))
    return range(len(getattr(model, 'stages', ())), len(depths)) if same else ()


def is_counter(name: str) -> bool:
    """Whether it is BatchNorm's counter of batches, which nothing here reads."""
    return name.rpartition('.')[2] == 'num_batches_tracked'


def fits(name: str, tensor: Tensor, own: Tensor) -> bool:
    """Same shape; ints are not weights, though copying them into floats would work."""
    same_kind = is_counter(name) or tensor.is_floating_point() == own.is_floating_point()
    return tensor.shape == own.shape and same_kind and tensor.layout == own.layout


def _is_finite(name: str, tensor: Tensor) -> bool:
    """Whether all numbers are; a mask that is added to scores holds -inf."""
    if not tensor.is_floating_point() or tensor.is_meta or tensor.layout != torch.strided:
        return True
    values = tensor if tensor.element_size() > 1 else tensor.float()  # 8 bits have no isfinite
    return name.endswith('mask') or bool(values.isfinite().all())
