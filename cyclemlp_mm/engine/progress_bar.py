"""A progress bar with the time left, on a terminal; elsewhere nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor


@contextmanager
def progress_bar(runner: Runner) -> Iterator[None]:
    """Show a :class:`ProgressBar` for what the runner does in the block, however it ends.

    The hook is given to the runner, not to its config: what the work dir records stays a config
    that any tool runs.
    """
    bar = ProgressBar()
    runner.register_hook(bar)
    try:
        yield
    finally:
        bar.close()


class ProgressBar(Hook):
    """Shows how far training and evaluation are, with the latest loss and the time left.

    Log lines go on above the bar. Where the output is no terminal (a file, a pipe, a queue of a
    cluster), and in all processes but the first, nothing is shown.

    Args:
        console (Console, optional): Where to draw. Defaults to None: the standard output.
    """

    priority = 'VERY_LOW'

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=getattr(sys.stdout, 'raw', sys.stdout))
        self.shown = self.console.is_terminal and is_main_process()
        self._progress: Progress | None = None
        self._tasks: dict[str, int] = {}
        self._streams: list[tuple[logging.StreamHandler, object]] = []

    def before_run(self, runner: Runner) -> None:
        """Begin to draw, with the log above the bar."""
        if not self.shown:
            return
        self._progress = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn('left'),
            TimeRemainingColumn(),
            TextColumn('{task.fields[loss]}'),
            console=self.console,
            transient=True,
        )
        self._progress.start()
        # The logger holds the stream from before; rich's own writes above the bar.
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler and handler.stream is not sys.stdout:
                self._streams.append((handler, handler.setStream(sys.stdout)))

    def after_run(self, runner: Runner) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar and give the log its stream back; also where a run was broken off."""
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams.clear()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        """Move on by an iteration."""
        loss = (outputs or {}).get('loss')
        if isinstance(loss, Tensor):
            loss = loss.item()  # float() of one with a gradient warns
        unit = (
            'iterations'
            if isinstance(runner.train_loop, IterBasedTrainLoop)
            else (f'epoch {runner.epoch + 1}/{runner.max_epochs}')
        )
        self._show(
            'train',
            f'train, {unit}',
            runner.iter + 1,
            runner.max_iters,
            '' if loss is None else f'loss {loss:.3f}',
        )

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        """Move on by a batch of the validation."""
        self._show('val', 'evaluate', batch_idx + 1, len(runner.val_dataloader))

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Remove the validation's line."""
        if self._progress is not None and 'val' in self._tasks:
            self._progress.remove_task(self._tasks.pop('val'))

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        """Move on by a batch of the test."""
        self._show('test', 'test', batch_idx + 1, len(runner.test_dataloader))

    def _show(self, kind: str, title: str, done: int, total: int, loss: str = '') -> None:
        if self._progress is None:
            return
        if kind not in self._tasks:
            # What was done before a resumed run must not count as done at once.
            self._tasks[kind] = self._progress.add_task(
                title, total=total, completed=done - 1, loss=loss
            )
        self._progress.update(
            self._tasks[kind], description=title, completed=done, total=total, loss=loss
        )
