"""mmengine's training loops, resumable to the bit at any iteration.

Against mmengine's: every iteration and every sample has random states of its own (see
:mod:`cyclemlp_mm.datasets.training_loader`), and an epoch that was interrupted goes on with its
next batch, where mmengine begins it again.
"""

from __future__ import annotations

import errno
import tempfile
from bisect import bisect
from collections.abc import Iterator

from mmengine.dist import get_rank, get_world_size
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, ValLoop
from mmengine.runner import loops as mmengine_loops
from torch.utils.data import DataLoader

from cyclemlp_mm.datasets.training_loader import (
    IgnoreSignals,
    TrainingLoader,
    seed_all,
    training_loader,
)
from cyclemlp_mm.errors import CheckpointError, UserError

_ITERATION = 1  # kinds of places, see seed_all; 0 is a sample
#: Key of the message hub, and so of checkpoints: batches that the current epoch has behind it.
BATCHES_DONE = 'batches_done'
_EPOCH_LENGTH = 'epoch_length'


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """``EpochBasedTrainLoop`` that goes on in the middle of an epoch.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader | dict): Loader of the training data, or its config.
        **kwargs: As for :class:`mmengine.runner.EpochBasedTrainLoop`.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **kwargs) -> None:
        super().__init__(runner, _build(runner, dataloader), **kwargs)

    def run_epoch(self) -> None:
        """One epoch, or what is left of it."""
        hub = self.runner.message_hub
        start = hub.get_info(BATCHES_DONE) or 0
        if type(start) is not int or start < 0:
            raise CheckpointError(
                f'the resumed checkpoint says that {start!r:.50} batches of the epoch are done: it '
                'is damaged. Resume an earlier one'
            )
        _note_length(self.runner, self.dataloader)
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        if isinstance(self.dataloader, TrainingLoader):
            self.dataloader.start_at(self._epoch, start)
        else:
            start = 0
        for index, batch in enumerate(self.dataloader, start):
            hub.update_info(BATCHES_DONE, index + 1)
            self.run_iter(index, batch)
        hub.update_info(BATCHES_DONE, 0)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: object) -> None:
        """One iteration, from random states of its own."""
        seed_all(_common_seed(self.runner), _ITERATION, self._iter, get_rank())
        super().run_iter(idx, data_batch)


@LOOPS.register_module()
class ResumableIterLoop(IterBasedTrainLoop):
    """``IterBasedTrainLoop`` that goes on with the next batch, without loading those before it.

    Args:
        runner (Runner): The runner.
        dataloader (DataLoader | dict): Loader of the training data, or its config.
        **kwargs: As for :class:`mmengine.runner.IterBasedTrainLoop`.
    """

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **kwargs) -> None:
        super().__init__(runner, _build(runner, dataloader), **kwargs)
        if isinstance(self.dataloader, TrainingLoader):
            self.dataloader_iterator = _Stream(self.dataloader)

    def run(self) -> object:
        """Train until ``max_iters``."""
        _note_length(self.runner, self.dataloader)
        skips = hasattr(mmengine_loops._InfiniteDataloaderIterator, 'skip_iter')
        if isinstance(self.dataloader_iterator, _Stream) and not skips:
            # mmengine before 0.10.8 takes the batches to skip one by one.
            self.dataloader_iterator.skip_iter(self._iter, idle=self._iter)
        return super().run()

    def run_iter(self, data_batch: object) -> None:
        """One iteration, from random states of its own."""
        seed_all(_common_seed(self.runner), _ITERATION, self._iter, get_rank())
        super().run_iter(data_batch)


@LOOPS.register_module()
class PatientValLoop(ValLoop):
    """``ValLoop`` of a training that goes on where a full disk leaves no room for results.

    Metrics write predictions to temporary files; of several processes, the others would wait.

    Args:
        *args: As for :class:`mmengine.runner.ValLoop`.
        **kwargs: The same.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.dataloader.worker_init_fn = IgnoreSignals(self.dataloader.worker_init_fn)
        self._evaluate = self.evaluator.evaluate
        self.evaluator.evaluate = self._evaluate_patiently

    def _evaluate_patiently(self, size: int) -> dict:
        try:
            return self._evaluate(size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or get_world_size() > 1:
                raise
            for metric in self.evaluator.metrics:
                metric.results.clear()  # or the next evaluation would count them too
            self.runner.logger.error(
                f'this validation has no figures: {error}. Training goes on; make room in '
                f'{tempfile.gettempdir()} and {self.runner.work_dir}'
            )
            return {}


class _Stream:
    """Batches without end; a finite sampler begins again, as its next epoch."""

    def __init__(self, loader: TrainingLoader) -> None:
        self.loader = loader
        self.epoch = 0
        self.idle = 0
        self.iterator: Iterator | None = None

    def skip_iter(self, batches: int, idle: int = 0) -> None:
        """Leave out batches, counted from the first one of all.

        Args:
            batches (int): How many.
            idle (int): How many calls of ``next`` then get None. Defaults to 0.
        """
        self.loader.start_at(0, batches)
        self.idle = idle

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> object:
        if self.idle:
            self.idle -= 1
            return None
        if self.iterator is None:
            self.iterator = iter(self.loader)
        left = None
        while True:
            try:
                return next(self.iterator)
            except StopIteration:
                if left == self.loader.batch_sampler.skip:
                    raise UserError('the training data has no batch to give') from None
            left = self.loader.batch_sampler.skip
            self._next_epoch(left)

    def _next_epoch(self, left_to_skip: int) -> None:
        self.epoch += 1
        sampler = self.loader.batch_sampler.sampler
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(self.epoch)
        self.loader.start_at(self.epoch, left_to_skip)
        self.iterator = iter(self.loader)


def validation_follows(runner: Runner, done: int) -> bool:
    """Whether one of this module's loops validates after so many epochs, or iterations.

    Args:
        runner (Runner): During training.
        done (int): Epochs of :class:`ResumableEpochLoop`, iterations of :class:`ResumableIterLoop`.
    """
    loop = runner.train_loop
    if runner.val_loop is None or not isinstance(loop, (ResumableEpochLoop, ResumableIterLoop)):
        return False
    end = loop.max_epochs if isinstance(loop, ResumableEpochLoop) else loop.max_iters
    interval = loop.dynamic_intervals[bisect(loop.dynamic_milestones, done + 1) - 1]
    return done >= loop.val_begin and (done % interval == 0 or done == end)


def _note_length(runner: Runner, loader: DataLoader) -> None:
    """Warn where the checkpoint that was resumed is of another number of batches."""
    try:
        batches = len(loader)
    except TypeError:  # data without a length
        return
    before = runner.message_hub.get_info(_EPOCH_LENGTH)
    if before not in (None, batches):
        runner.logger.warning(
            f'the resumed training had {before} batches in an epoch, and now there are {batches}: '
            'the number of images, train_dataloader.batch_size or the number of processes has '
            'changed. It goes on with other data in another order; iterations and learning rates '
            'are counted on from the checkpoint'
        )
    runner.message_hub.update_info(_EPOCH_LENGTH, batches)


def _build(runner: Runner, dataloader: DataLoader | dict) -> DataLoader:
    if isinstance(dataloader, dict):
        diff_rank_seed = runner._randomness_cfg.get('diff_rank_seed', False)
        dataloader = runner.build_dataloader(
            dataloader, seed=runner.seed, diff_rank_seed=diff_rank_seed
        )
    return training_loader(dataloader, _common_seed(runner))


def _common_seed(runner: Runner) -> int:
    """The seed that all processes share; with ``diff_rank_seed``, mmengine adds the rank."""
    differ = runner._randomness_cfg.get('diff_rank_seed', False)
    return runner.seed - get_rank() if differ else runner.seed
