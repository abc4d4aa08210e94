"""mmengine's training loops, resumable to the bit at any iteration.

Unlike mmengine's, every iteration and every sample has its own random state (see
:mod:`cyclemlp_mm.datasets.training_loader`), and an interrupted epoch continues with its next
batch, where mmengine starts the epoch again.
"""

import errno
import tempfile
from bisect import bisect
from collections.abc import Callable, Iterator

from mmengine.dist import get_rank, get_world_size
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, ValLoop
from torch.utils.data import DataLoader

from cyclemlp_mm.datasets.training_loader import (
    IgnoreSignals,
    TrainingLoader,
    seed_all,
    training_loader,
)
from cyclemlp_mm.errors import CheckpointError, UserError

_ITERATION = 1  # kinds of places, see seed_all; 0 is a sample
#: Keys of the message hub, and so of checkpoints: processed and all batches of the epoch.
BATCHES_DONE = 'batches_done'
_EPOCH_LENGTH, _BATCH = 'epoch_length', 'images_per_iteration'


class _ResumableLoop:
    """What both loops share: their data, its length, and the random state of an iteration."""

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **kwargs) -> None:
        differ = runner._randomness_cfg.get('diff_rank_seed', False)
        if isinstance(dataloader, dict):
            dataloader = runner.build_dataloader(dataloader, runner.seed, differ)
        # The seed that all processes share: mmengine adds the rank to the runner's.
        self.seed = runner.seed - get_rank() if differ else runner.seed
        super().__init__(runner, training_loader(dataloader, self.seed), **kwargs)

    def run_iter(self, *args) -> None:
        seed_all(self.seed, _ITERATION, self._iter, get_rank())
        super().run_iter(*args)

    def _note_length(self) -> None:
        """Warn if the resumed checkpoint was trained with batches of another size or number."""
        hub, loader = self.runner.message_hub, self.dataloader
        size = getattr(getattr(loader, 'batch_sampler', None), 'batch_size', None)
        size = None if size is None else size * get_world_size()  # of all processes
        before = hub.get_info(_BATCH)
        if None not in (before, size) and before != size:
            self.runner.logger.warning(
                f'an iteration of the resumed training took {before!r:.20} images, now it takes '
                f'{size}: the learning rate was chosen for the former'
            )
        hub.update_info(_BATCH, size)
        try:
            batches = len(self.dataloader)
        except TypeError:  # data without a length
            return
        before = hub.get_info(_EPOCH_LENGTH)
        if before not in (None, batches):
            self.runner.logger.warning(
                f'the resumed training had {before} batches in an epoch, and now there are '
                f'{batches}: it goes on with other data, in another order'
            )
        hub.update_info(_EPOCH_LENGTH, batches)


@LOOPS.register_module()
class ResumableEpochLoop(_ResumableLoop, EpochBasedTrainLoop):
    """``EpochBasedTrainLoop``, with its arguments, that is resumed in the middle of an epoch."""

    def run_epoch(self) -> None:
        hub = self.runner.message_hub
        start = hub.get_info(BATCHES_DONE) or 0
        if type(start) is not int or start < 0:
            raise CheckpointError(
                f'the resumed checkpoint has {start!r:.50} batches of the epoch done: it is '
                'damaged. Resume an earlier one'
            )
        self._note_length()
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


@LOOPS.register_module()
class ResumableIterLoop(_ResumableLoop, IterBasedTrainLoop):
    """``IterBasedTrainLoop``, with its arguments, that loads no batch twice when it is resumed."""

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, **kwargs) -> None:
        super().__init__(runner, dataloader, **kwargs)
        if isinstance(self.dataloader, TrainingLoader):
            self.dataloader_iterator = _Stream(self.dataloader)

    def run(self) -> object:
        self._note_length()
        stream = self.dataloader_iterator
        if isinstance(stream, _Stream) and not getattr(self, 'fast_forward_on_resume', False):
            stream.start_at(self._iter)
        return super().run()


class _Stream:
    """Batches without end, from any iteration on."""

    def __init__(self, loader: TrainingLoader) -> None:
        self.loader = loader
        self.idle = 0
        self.batches = self._endless()

    def start_at(self, iteration: int) -> None:
        self.loader.start_at(0, iteration)
        self.idle = iteration  # mmengine before 0.10.8 takes the batches to skip one by one

    def skip_iter(self, batches: int) -> None:
        """As later versions of mmengine skip them; :meth:`start_at` has done so."""
        self.idle = 0

    def __next__(self) -> object:
        if self.idle:
            self.idle -= 1
            return None
        return next(self.batches)

    def _endless(self) -> Iterator:
        """A finite sampler begins again, as its next epoch."""
        places, epoch = self.loader.batch_sampler, 0
        while True:
            left, is_empty = places.skip, True
            for batch in self.loader:
                is_empty = False
                yield batch
            if is_empty and places.skip == left:
                raise UserError('train_dataloader has no batch: its data set is empty')
            epoch += 1
            if hasattr(places.sampler, 'set_epoch'):
                places.sampler.set_epoch(epoch)
            self.loader.start_at(epoch, places.skip)


@LOOPS.register_module()
class PatientValLoop(ValLoop):
    """``ValLoop``, with its arguments, after which training continues where a disk is full.

    Metrics write predictions to temporary files. Of several processes, the others would wait: there
    it is an error.
    """

    def __init__(self, runner: Runner, *args, **kwargs) -> None:
        super().__init__(runner, *args, **kwargs)
        self.dataloader.worker_init_fn = IgnoreSignals(self.dataloader.worker_init_fn)
        evaluate = self.evaluator.evaluate
        self.evaluator.evaluate = lambda size: self._figures(evaluate, size)

    def _figures(self, evaluate: Callable[[int], dict], size: int) -> dict:
        try:
            return evaluate(size)
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


def validation_follows(runner: Runner, done: int) -> bool:
    """Whether a loop of this module validates after so many epochs, or iterations."""
    loop = runner.train_loop
    if runner.val_loop is None or not isinstance(loop, _ResumableLoop):
        return False
    end = loop.max_epochs if isinstance(loop, ResumableEpochLoop) else loop.max_iters
    interval = loop.dynamic_intervals[bisect(loop.dynamic_milestones, done + 1) - 1]
    return done >= loop.val_begin and (done % interval == 0 or done == end)
