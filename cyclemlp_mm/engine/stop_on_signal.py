"""SIGTERM and Ctrl-C: finish the iteration, save, and leave with a code that says so."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.dist import all_reduce, get_comm_device, get_dist_info
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .atomic_checkpoints import VALIDATION_DUE, AtomicCheckpointHook
from .train_loops import ResumableEpochLoop, validation_follows

#: Exit code of a training that was stopped by a signal, with all its state saved: EX_TEMPFAIL of
#: sysexits.h, 'try again later'. For a cluster: put the job into the queue again.
EXIT_STOPPED = 75
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class TrainingStopped(SystemExit):
    """A training that was stopped by a signal; exit code 75 where nothing catches it."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_STOPPED)
        self.message = message


@contextmanager
def stoppable() -> Iterator[None]:
    """Around all of a training: SIGTERM ends it with the same exit code while no iteration runs.

    :class:`StopOnSignal` takes over from the first iteration to the last.

    Raises:
        TrainingStopped: The signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop_at_once(number: int, frame: object) -> None:
    message = 'stopped by SIGTERM while no iteration ran: there was nothing to save'
    print(f'{message} (exit code {EXIT_STOPPED})', file=sys.stderr, flush=True)
    raise TrainingStopped(message)


@HOOKS.register_module()
class StopOnSignal(Hook):
    """Stops the training at the end of the iteration in which SIGTERM or SIGINT arrives.

    All processes stop at the same iteration, whichever of them got the signal. A second Ctrl-C, a
    second or more after the first, ends the process at once. A validation that was broken off comes
    first when the training is resumed.
    """

    priority = 'LOWEST'  # the iteration's other hooks come first

    def __init__(self) -> None:
        self.received: str | None = None
        self._at = 0.0
        self._handlers: dict = {}

    def before_train(self, runner: Runner) -> None:
        """Take the signals over, which only a process's main thread can; validate what is due."""
        if not self._handlers and threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in _SIGNALS}
        if runner.val_loop is not None and _is_due(runner):
            runner.logger.info('the validation of the saved step was not completed: it comes first')
            runner.val_loop.run()

    def before_val(self, runner: Runner) -> None:
        """The validation is no longer due, unless this one is broken off as well."""
        runner.message_hub.update_info(VALIDATION_DUE, False)

    def after_run(self, runner: Runner) -> None:
        """Give the signals back."""
        self.give_back()

    def give_back(self) -> None:
        """Put the handlers from before in place."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Save and leave, if a signal has come.

        Raises:
            TrainingStopped: It has.
        """
        # Not between two halves of an accumulated gradient, which no checkpoint holds.
        every = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if (runner.iter + 1) % every == 0 and self._any_received():
            self._save_and_leave(runner, runner.epoch, runner.iter + 1)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """In one process, a validation is broken off; several ones finish it together."""
        if get_dist_info()[1] == 1 and self.received and runner._train_loop is not None:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # it swapped the weights for the validation
                    hook.after_val_epoch(runner)
            runner.message_hub.update_info(VALIDATION_DUE, True)
            self._save_and_leave(runner, runner.epoch, runner.iter)

    def _note(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.received and now - self._at > 1:
            self.give_back()
            raise KeyboardInterrupt
        if self.received is None:  # launchers send it to the group and to each process
            self.received, self._at = signal.Signals(number).name, now

    def _any_received(self) -> bool:
        if get_dist_info()[1] == 1:
            return self.received is not None
        flag = torch.tensor(float(self.received is not None), device=get_comm_device())
        all_reduce(flag, 'max')
        return bool(flag.item())

    def _save_and_leave(self, runner: Runner, epoch: int, iteration: int) -> None:
        name = self.received or 'a signal to another process'
        hooks = _checkpoint_hooks(runner)
        if hooks:
            path = hooks[0].save_here(runner, epoch, iteration)
            message = f'saved {path}; go on with the same command and --resume'
        else:
            message = 'nothing was saved: the config has no AtomicCheckpointHook'
        message = f'stopped by {name} after iteration {iteration}: {message}'
        runner.logger.warning(f'{message} (exit code {EXIT_STOPPED})')
        self.give_back()
        raise TrainingStopped(message)


def _is_due(runner: Runner) -> bool:
    """Whether the checkpoint that was resumed lacks the validation of its step."""
    due = runner.message_hub.get_info(VALIDATION_DUE)
    if due is not None or not getattr(runner, '_resume', False):
        return bool(due)
    # Written by mmengine or an older version. Nothing else would come after a complete training.
    is_epochs = isinstance(runner.train_loop, ResumableEpochLoop)
    done = runner.epoch if is_epochs else runner.iter
    end = runner.max_epochs if is_epochs else runner.max_iters
    return done >= end and validation_follows(runner, done)


def _checkpoint_hooks(runner: Runner) -> list[AtomicCheckpointHook]:
    return [hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)]
