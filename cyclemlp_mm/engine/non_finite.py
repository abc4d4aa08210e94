"""A loss or gradient that is not finite: left out, and after a few in a row the training stops."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from cyclemlp_mm.errors import UserError

from .atomic_checkpoints import AtomicCheckpointHook
from .sharded import any_process, is_sharded


class NonFiniteLossError(UserError):
    """The loss was nan or infinite, several iterations in a row."""


@HOOKS.register_module()
class StopOnNonFiniteLoss(Hook):
    """Keeps a non-finite loss from the weights, and stops when it does not pass.

    A training whose losses were all non-finite ends with an error, however short it was.

    A gradient with nan or inf in it is dropped before the optimiser's step, so weights, optimiser
    and averaged weights stay as they are. (Under float16 mixed precision, the loss scaler does so.)

    Args:
        max_in_a_row (int): Non-finite losses in a row after which the training stops, >= 1.
            Defaults to 10.
    """

    priority = 'VERY_HIGH'

    def __init__(self, max_in_a_row: int = 10) -> None:
        if max_in_a_row < 1:
            raise UserError(f'max_in_a_row of StopOnNonFiniteLoss is {max_in_a_row}; take >= 1')
        self.max_in_a_row = max_in_a_row
        self.in_a_row = 0
        self.num_bad, self.num_iters = 0, 0  # of this process's run
        self._images: list[str] = []
        self._good: str | None = None  # the newest checkpoint that a finite loss came after

    def before_train(self, runner: Runner) -> None:
        """Watch the optimiser's steps."""
        optimizers = getattr(runner.optim_wrapper, 'optim_wrappers', None)
        wrappers = optimizers.values() if optimizers else [runner.optim_wrapper]
        # Else gradients are the same in all processes.
        drop = partial(_drop_non_finite, in_parts=is_sharded(runner.model))
        for wrapper in wrappers:
            wrapper.optimizer.register_step_pre_hook(drop)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Look at the loss.

        Raises:
            NonFiniteLossError: It was not finite for ``max_in_a_row`` iterations.
        """
        self.num_iters += 1
        bad = [name for name, value in (outputs or {}).items() if not _is_finite(value)]
        if not bad:
            self.in_a_row, self._images = 0, []
            self._good = _last_saved(runner)
            return
        self.in_a_row += 1
        self.num_bad += 1
        self._images += _image_paths(data_batch)
        here = f'iteration {runner.iter + 1}: {", ".join(bad)} not finite'
        if self.in_a_row < self.max_in_a_row:
            runner.logger.warning(
                f'{here} ({self.in_a_row} in a row), the weights were left as they were; images: '
                f'{_some(_image_paths(data_batch))}'
            )
            return
        raise NonFiniteLossError(
            f'{here}, {self.in_a_row} in a row. Images of these iterations: '
            f'{_some(self._images)}. Last good checkpoint: {self._say_good(runner)}. A lower '
            'learning rate, a longer warm-up or optim_wrapper.clip_grad=dict(max_norm=10) may '
            'help; tools/check.py CONFIG --full looks for broken images and labels'
        )

    def after_train(self, runner: Runner) -> None:
        """Report how many iterations changed nothing.

        Raises:
            NonFiniteLossError: All of them.
        """
        if not self.num_bad:
            return
        said = f'{self.num_bad} of {self.num_iters} iterations had a loss that is not finite'
        if self.num_bad < self.num_iters:
            runner.logger.warning(f'{said}: they did not change the weights')
            return
        raise NonFiniteLossError(
            f'{said}: the weights are those of the start. Images: {_some(self._images)}. A lower '
            'learning rate, a longer warm-up or optim_wrapper.clip_grad=dict(max_norm=10) may '
            'help; tools/check.py CONFIG --full looks for broken images and labels'
        )

    def _say_good(self, runner: Runner) -> str:
        newest = _last_saved(runner)
        good = self._good or 'none'
        if '://' not in good and not Path(good).exists():  # as old checkpoints go
            good = 'none'
        if newest in (None, self._good):
            return good if newest else 'none yet'
        return f'{good} ({newest} was saved after the last finite loss, and may be as bad)'


def _last_saved(runner: Runner) -> str | None:
    """The checkpoint that this training wrote last."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)]
    return getattr(hooks[0], 'last_good', None) if hooks else None


def _drop_non_finite(
    optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict, in_parts: bool
) -> None:
    grads = [
        p.grad
        for group in optimizer.param_groups
        for p in group['params']
        if p.grad is not None and not p.grad.is_sparse
    ]
    # Not by a norm: PyTorch 2.1's largest number takes no notice of NaN, and float16 sums overflow.
    finite = [torch.isfinite(grad).all() for grad in grads]
    bad = ~torch.stack(finite).all() if finite else torch.tensor(False)
    if in_parts:
        bad = any_process(bad)
    if bad:
        for group in optimizer.param_groups:
            for parameter in group['params']:
                parameter.grad = None  # optimisers leave such a parameter alone


def _is_finite(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    return not isinstance(value, float) or value - value == 0


def _image_paths(data_batch: object) -> list[str]:
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    return [str(s.img_path) for s in samples or () if hasattr(s, 'img_path')]


def _some(paths: list[str], most: int = 8) -> str:
    paths = list(dict.fromkeys(paths))
    more = f' and {len(paths) - most} more' if len(paths) > most else ''
    return f'{", ".join(paths[:most]) or "unknown"}{more}'
