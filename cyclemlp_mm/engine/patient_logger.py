"""Log file and figures of a run on a full disk: reported, and training goes on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mmengine.hooks import LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class PatientLoggerHook(LoggerHook):
    """``LoggerHook`` that a full disk does not stop.

    Lines of the log file, and figures of all visualizer backends, that cannot be written are
    missing there. The first is reported as an error, the rest are counted in the end.

    Args:
        **kwargs: As for :class:`mmengine.hooks.LoggerHook`.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.lost = 0

    def before_run(self, runner: Runner) -> None:
        """Also let the log file fail without a traceback for each line."""
        super().before_run(runner)
        for handler in runner.logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handleError = self._lose_line  # logging's place for it

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """As mmengine's."""
        with self._surviving(runner):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """As mmengine's."""
        with self._surviving(runner):
            super().after_val_epoch(runner, metrics)

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """As mmengine's."""
        with self._surviving(runner):
            super().after_test_epoch(runner, metrics)

    def after_run(self, runner: Runner) -> None:
        """Also report how much is missing."""
        with self._surviving(runner):
            super().after_run(runner)
        if self.lost:
            runner.logger.warning(
                f'{self.lost} entries of the log or its figures in {runner.log_dir} are missing: '
                'they could not be written'
            )

    @contextmanager
    def _surviving(self, runner: Runner) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._lose(f'figures of the log could not be written: {error}', runner.logger.error)

    def _lose_line(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            raise error
        self._lose(f'a line of the log file could not be written: {error}', _to_stderr)

    def _lose(self, message: str, report: object) -> None:
        self.lost += 1
        if self.lost == 1:
            report(f'{message}. Training goes on; make room, or the log stays incomplete')


def _to_stderr(message: str) -> None:
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)
