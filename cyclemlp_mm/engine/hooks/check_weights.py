"""Weights of a whole model: all of them where it is tested or resumed, else logged by part."""

from collections import Counter

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from cyclemlp_mm.engine.config_data import names_of, require_same_classes, trained_classes
from cyclemlp_mm.engine.runner.resume import check_resumable, is_resumed, loaded_from
from cyclemlp_mm.engine.runner.strategy import is_sharded, whole_state_dict
from cyclemlp_mm.errors import CheckpointError
from cyclemlp_mm.models.strict_init import StrictInit
from cyclemlp_mm.weights.loading import fits, is_counter, misfits
from cyclemlp_mm.weights.unwrap import (
    BACKBONE,
    find_state_dict,
    first_parts,
    named_like,
    part_of,
    plain_name,
)


@HOOKS.register_module()
class CheckLoadedWeights(Hook):
    """Compares a checkpoint with the model before mmengine loads it, not strictly, and logs it.

    - Tested or resumed: every tensor of the model must be in the file, in its shape.
    - ``load_from`` in training: the backbone's must be (its output norms may be new); heads may
      differ, as for another number of classes, and are counted in the log.

    Data with other class names, or in another order, is rejected: labels would not mean the same.
    ``load_from`` takes data with other names, to fine-tune on them. A backbone's own file (names
    without ``backbone.``) is taken too.
    """

    priority = 'VERY_HIGH'  # before EMAHook looks at the state dict

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check and log; where names lack ``backbone.``, they are changed in ``checkpoint``."""
        source = loaded_from(runner)
        in_file = find_state_dict(checkpoint, source)
        in_file = dict(named_like(in_file, _state_dict(runner.model)))
        if 'state_dict' not in checkpoint:
            checkpoint.clear()
        if list(checkpoint.get('state_dict', ())) != list(in_file):
            checkpoint['state_dict'] = in_file  # else as it is: it carries the modules' versions
        # A loop is built just before the checkpoint is loaded; until then it is its config.
        training = isinstance(runner._train_loop, BaseLoop)
        resumed = is_resumed(runner)
        if training and resumed:
            check_resumable(checkpoint, source)
        complete = not training or resumed
        runner.logger.info(compare(runner.model, in_file, source, complete))
        _check_classes(runner, checkpoint, source, fine_tuning=not complete)


def _check_classes(runner: Runner, checkpoint: dict, source: str, fine_tuning: bool) -> None:
    """Reject data in which labels mean other classes than in the file."""
    trained = trained_classes(checkpoint)
    if not trained and not fine_tuning:
        what = 'names no classes: whether its labels are those of the data is not known'
        runner.logger.warning(f'{source} {what}')
    for phase in ('train', 'val', 'test'):
        loop = getattr(runner, f'_{phase}_loop', None)
        if not isinstance(loop, BaseLoop) or not hasattr(loop, 'dataloader'):
            continue
        names = names_of(getattr(loop.dataloader.dataset, 'metainfo', None))
        if not fine_tuning or sorted(names) == sorted(trained):
            require_same_classes(trained, names, source)
        elif names and len(names) == len(trained):
            runner.logger.warning(
                f'{source} was trained with the classes {trained}, the data has {names}: the heads '
                'start from the weights of the others'
            )


def compare(model: nn.Module, in_file: dict[str, Tensor], source: str, complete: bool) -> str:
    """Report what of a model a file holds: counts, in all and of each part of the model.

    Raises CheckpointError where a part that is needed is missing, all or the backbone only
    (``complete``), or where a backbone of ours has no place for some of the file's tensors.
    """
    own = _state_dict(model)
    needed = [name for name in own if not is_counter(name)]
    fitting = {name for name in needed if name in in_file and fits(name, in_file[name], own[name])}
    if not fitting:
        raise CheckpointError(
            f'checkpoint {source} does not fit the model: none of its {len(in_file)} tensors does. '
            f'Its names begin with {first_parts(in_file)}; the model has {first_parts(own)}'
        )
    strict = {  # backbones of ours, by what their names in the state dict begin with
        plain_name(f'{name}.') if name else '': module
        for name, module in model.named_modules()
        if isinstance(module, StrictInit)
    }
    lines, judged = [f'loaded {len(fitting)} of {len(needed)} tensors from {source}'], set()
    for prefix, backbone in strict.items():
        inner = part_of(in_file, prefix)
        report = backbone.check_fit(inner, source, part_of(own, prefix), complete, prefix)
        judged.update(prefix + name for name in inner)
        for kind, count in report.left.items():
            lines.append(f'  {prefix[:-1]}: in the file, not used: {kind} ({count})')
    rest = {
        name: own[name]
        for name in needed
        if (complete or name.startswith(BACKBONE)) and not name.startswith(tuple(strict))
    }
    if wrong := misfits(rest, in_file, [name for name in rest if name not in in_file]):
        raise CheckpointError(
            f'checkpoint {source} does not fit the model; nothing was loaded. {"; ".join(wrong)}. '
            'Is it the config that the file was trained with?'
        )
    found = Counter(name.split('.')[0] for name in fitting)
    for part, total in Counter(name.split('.')[0] for name in needed).items():
        if found[part] < total:
            lines.append(f'  {part}: {found[part]} of {total}, the others are new')
    left = [name for name in in_file if name not in own and name not in judged]
    if left:
        lines.append(f'  in the file, not used: {len(left)} ({first_parts(left)})')
    return '\n'.join(lines)


def _state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The full state dict of a model, without the names of what is wrapped around it."""
    if is_sharded(model):
        return whole_state_dict(model)
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model.state_dict()
