"""What a run shows: its log, which a full disk does not stop, and a progress bar."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mmengine.dist import is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from rich import progress
from rich.console import Console
from torch import Tensor


def _patient(method: Callable) -> Callable:
    """A method of LoggerHook after which the run goes on where a disk is full."""

    @functools.wraps(method)
    def patient(self: PatientLoggerHook, runner: Runner, *args, **kwargs) -> None:
        try:
            method(self, runner, *args, **kwargs)
        except OSError as error:
            self.lose(f'figures of the log could not be written: {error}', runner.logger.error)

    return patient


@HOOKS.register_module()
class PatientLoggerHook(LoggerHook):
    """``LoggerHook``, with its arguments, that a full disk does not stop.

    Lines of the log file, and figures of all visualizer backends, that cannot be written are
    missing there. The first is reported as an error, the rest are counted at the end.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.lost = 0

    after_train_iter = _patient(LoggerHook.after_train_iter)
    after_val_epoch = _patient(LoggerHook.after_val_epoch)
    after_test_epoch = _patient(LoggerHook.after_test_epoch)

    def before_run(self, runner: Runner) -> None:
        """Also let the log file fail without a traceback for each line."""
        super().before_run(runner)
        for handler in runner.logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handleError = self._lose_line  # the attribute that logging has for it

    def after_run(self, runner: Runner) -> None:
        _patient(LoggerHook.after_run)(self, runner)
        if self.lost:
            runner.logger.warning(
                f'{self.lost} entries of the log or its figures in {runner.log_dir} are missing: '
                'they could not be written'
            )

    def _lose_line(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            raise error
        self.lose(f'a line of the log file could not be written: {error}', _to_stderr)

    def lose(self, message: str, report: Callable[[str], object]) -> None:
        """Count an entry that could not be written, and report the first."""
        self.lost += 1
        if self.lost == 1:
            report(f'{message}. Training goes on; make room, or the log stays incomplete')


def _to_stderr(message: str) -> None:
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(runner: Runner) -> Iterator[None]:
    """Show a :class:`ProgressBar` for what the runner, not its config, does in the block."""
    bar = ProgressBar()
    runner.register_hook(bar)
    try:
        yield
    finally:
        bar.after_run(runner)


class ProgressBar(Hook):
    """Shows how far training and evaluation are, with the latest loss and the time left.

    Log lines are printed above the bar. Where the output is not a terminal (a file, a pipe, a
    cluster's queue), and in all processes but the first, nothing is shown.

    Args:
        console (Console, optional): Where to draw. Defaults to None: the standard output.
    """

    priority = 'VERY_LOW'

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(file=getattr(sys.stdout, 'raw', sys.stdout))
        done = progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeElapsedColumn()
        left = 'left', progress.TimeRemainingColumn(), '{task.fields[loss]}'
        look = dict(transient=True, disable=not (console.is_terminal and is_main_process()))
        self.bar = progress.Progress('{task.description}', *done, *left, console=console, **look)
        self._tasks: dict[str, int] = {}
        self._streams: list[tuple[logging.StreamHandler, object]] = []

    def before_run(self, runner: Runner) -> None:
        """Begin to draw, with the log above the bar."""
        self.bar.start()
        # The logger holds the stream from before; rich's own writes above the bar.
        for handler in () if self.bar.disable else runner.logger.handlers:
            if type(handler) is logging.StreamHandler and handler.stream is not sys.stdout:
                self._streams.append((handler, handler.setStream(sys.stdout)))

    def after_run(self, runner: Runner) -> None:
        """Remove the bar and give the log its stream back."""
        while self._streams:
            handler, stream = self._streams.pop()
            handler.setStream(stream)
        self.bar.stop()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        loss = (outputs or {}).get('loss')
        if isinstance(loss, Tensor):
            loss = loss.item()  # float() of one with a gradient warns
        by_iter = isinstance(runner.train_loop, IterBasedTrainLoop)
        unit = 'iterations' if by_iter else f'epoch {runner.epoch + 1}/{runner.max_epochs}'
        text = '' if loss is None else f'loss {loss:.3f}'
        self._show('train', runner.iter + 1, runner.max_iters, f'train, {unit}', text)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        self._show('evaluate', batch_idx + 1, len(runner.val_dataloader))

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if 'evaluate' in self._tasks:
            self.bar.remove_task(self._tasks.pop('evaluate'))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        self._show('test', batch_idx + 1, len(runner.test_dataloader))

    def _show(self, kind: str, done: int, total: int, title: str = '', loss: str = '') -> None:
        shown = dict(description=title or kind, total=total, completed=done, loss=loss)
        if kind not in self._tasks:
            # What was done before a resumed run must not count as done at once.
            self._tasks[kind] = self.bar.add_task(**{**shown, 'completed': done - 1})
        self.bar.update(self._tasks[kind], **shown)
