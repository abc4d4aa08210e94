"""Hooks that end a training early: on SIGTERM or Ctrl-C, and when its loss is not finite."""

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from cyclemlp_mm.engine.runner.launch import any_process
from cyclemlp_mm.engine.runner.strategy import is_sharded
from cyclemlp_mm.errors import UserError, some

from .checkpoint import VALIDATION_DUE, AtomicCheckpointHook

#: Exit code of a training that was stopped by a signal, with all its state saved: EX_TEMPFAIL of
#: sysexits.h, 'try again later'. For a cluster: put the job into the queue again.
EXIT_STOPPED = 75
_HELP = (
    'Try a lower learning rate or optim_wrapper.clip_grad=dict(max_norm=10); tools/check.py CONFIG '
    '--full looks for broken images and labels'
)


class TrainingStopped(SystemExit):
    """A training that was stopped by a signal; exit code 75 where nothing catches it."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_STOPPED)
        self.message = message


class NonFiniteLossError(UserError):
    """The loss was nan or infinite, several iterations in a row."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Around all of a training: SIGTERM ends it with the same exit code while no iteration runs."""

    def stop(number: int, frame: object) -> None:
        message = 'stopped by SIGTERM while no iteration ran: there was nothing to save'
        print(f'{message} (exit code {EXIT_STOPPED})', file=sys.stderr, flush=True)
        raise TrainingStopped(message)

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if is_main else None
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


@HOOKS.register_module()
class StopOnSignal(Hook):
    """Stops the training at the end of the iteration in which SIGTERM or SIGINT arrives.

    All processes stop at the same iteration. A second Ctrl-C, a second or more after the first,
    ends the process at once. An interrupted validation is repeated first when resumed.
    """

    priority = 'LOWEST'  # the iteration's other hooks come first

    def __init__(self) -> None:
        self.received: str | None = None
        self._at = 0.0
        self._handlers: dict = {}

    def before_train(self, runner: Runner) -> None:
        """Handle the signals, which only a process's main thread can; run a validation if due."""
        if not self._handlers and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._note)
        if runner.val_loop is not None and runner.message_hub.get_info(VALIDATION_DUE):
            runner.logger.info('the validation of the saved step was not completed: it comes first')
            runner.val_loop.run()

    def before_val(self, runner: Runner) -> None:
        """The validation is no longer due, unless this one is interrupted as well."""
        runner.message_hub.update_info(VALIDATION_DUE, False)

    def after_run(self, runner: Runner) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Restore the signal handlers from before the training."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        """Save and raise :class:`TrainingStopped`, if a signal has come."""
        # Not between two halves of an accumulated gradient, which no checkpoint holds.
        if (runner.iter + 1) % getattr(runner.optim_wrapper, '_accumulative_counts', 1):
            return
        received = self.received is not None
        if received if get_world_size() == 1 else any_process(torch.tensor(received)):
            self._save_and_leave(runner, runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        """In one process, a validation is interrupted; several processes complete it together."""
        if get_world_size() == 1 and self.received and runner._train_loop is not None:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # it swapped the weights for the validation
                    hook.after_val_epoch(runner)
            runner.message_hub.update_info(VALIDATION_DUE, True)
            self._save_and_leave(runner, runner.iter)

    def _note(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.received and now - self._at > 1:
            self.give_back()
            raise KeyboardInterrupt
        if self.received is None:  # launchers send it to the group and to each process
            self.received, self._at = signal.Signals(number).name, now

    def _save_and_leave(self, runner: Runner, iteration: int) -> None:
        hook, saved = _checkpoint_hook(runner), 'nothing: the config has no AtomicCheckpointHook'
        if hook is not None:
            path = hook.save_here(runner, runner.epoch, iteration)
            saved = f'{path}; go on with the same command and --resume'
        name = self.received or 'a signal to another process'
        message = f'stopped by {name} after iteration {iteration}: saved {saved}'
        runner.logger.warning(f'{message} (exit code {EXIT_STOPPED})')
        self.give_back()
        raise TrainingStopped(message)


def _checkpoint_hook(runner: Runner) -> AtomicCheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)), None)


@HOOKS.register_module()
class StopOnNonFiniteLoss(Hook):
    """Keeps a non-finite loss from the weights, and stops the training after several in a row.

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
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        # If not sharded, gradients are the same in all processes.
        drop = partial(_drop_non_finite, sharded=is_sharded(runner.model))
        for wrapper in wrappers:
            wrapper.optimizer.register_step_pre_hook(drop)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        """Raise :class:`NonFiniteLossError` after ``max_in_a_row`` non-finite losses."""
        self.num_iters += 1
        hook = _checkpoint_hook(runner)
        saved = hook.last_good if hook else None
        bad = [name for name, value in (outputs or {}).items() if not _is_finite(value)]
        if not bad:
            self.in_a_row, self._images, self._good = 0, [], saved
            return
        self.in_a_row += 1
        self.num_bad += 1
        images = _image_paths(data_batch)
        self._images += images
        here = f'iteration {runner.iter + 1}: {", ".join(bad)} not finite, {self.in_a_row} in a row'
        if self.in_a_row < self.max_in_a_row:
            runner.logger.warning(f'{here}; the weights are unchanged. Images: {_some(images)}')
            return
        good = self._good or ('none' if saved else 'none yet')
        if '://' not in good and saved and not Path(good).exists():  # as old checkpoints go
            good = 'none'
        if saved != self._good:
            good = f'{good} ({saved} was saved after the last finite loss, and may be as bad)'
        raise NonFiniteLossError(
            f'{here}. Images: {_some(self._images)}. Last good checkpoint: {good}. {_HELP}'
        )

    def after_train(self, runner: Runner) -> None:
        """Report how many iterations changed nothing; an error if all of them."""
        count = f'{self.num_bad} of {self.num_iters} iterations had a loss that is not finite'
        if 0 < self.num_bad == self.num_iters:
            raise NonFiniteLossError(f'{count}. Images: {_some(self._images)}. {_HELP}')
        if self.num_bad:
            runner.logger.warning(f'{count}: they did not change the weights')


def _drop_non_finite(
    optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict, sharded: bool
) -> None:
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    grads = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
    # Not by a norm: PyTorch 2.1's largest number takes no notice of NaN, and float16 sums overflow.
    finite = [torch.isfinite(grad).all() for grad in grads]
    bad = ~torch.stack(finite).all() if finite else torch.tensor(False)
    if any_process(bad) if sharded else bad:
        for parameter in parameters:
            parameter.grad = None  # optimisers skip such a parameter


def _is_finite(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    return not isinstance(value, float) or math.isfinite(value)


def _image_paths(data_batch: object) -> list[str]:
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    return [str(s.img_path) for s in samples or () if hasattr(s, 'img_path')]


def _some(paths: list[str]) -> str:
    return some(list(dict.fromkeys(paths)), 8) or 'unknown'
