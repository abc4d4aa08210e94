"""A ``DataLoader`` that can start at any batch, and whose samples do not depend on the past.

mmengine seeds each worker once; from then on, a sample's augmentation depends on all that its
worker loaded before. Here every sample has a seed of its own, made from the training's seed, the
epoch and the sample's number in it. So a training that is resumed in the middle of an epoch sees
what it would have seen, and two processes see what one process with twice the batch sees.
"""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch
from mmengine.dist import get_dist_info
from torch.utils.data import DataLoader, IterableDataset, Sampler

_SAMPLE = 0  # kinds of places, see seed_all; 1 is an iteration
_TAKEN = ('num_workers', 'collate_fn', 'pin_memory', 'timeout', 'multiprocessing_context')
_TAKEN += ('generator', 'prefetch_factor', 'persistent_workers', 'pin_memory_device', 'in_order')


def seed_all(*place: int) -> None:
    """Seed Python's, numpy's and PyTorch's generators of this process.

    Args:
        *place (int): Non-negative numbers, such as (seed, kind, epoch, sample). Two places give
            independent streams, one the same stream in every process and after every restart.
    """
    words = np.random.SeedSequence(place).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed((int(words[2]) << 31) ^ int(words[3]))


class TrainingLoader(DataLoader):
    """Yields batches as the loader that it is made from; the seed is that of all processes."""

    def __init__(self, loader: DataLoader, seed: int) -> None:
        super().__init__(
            _SeededDataset(loader.dataset),
            batch_sampler=_PlacedBatches(loader.batch_sampler, seed),
            worker_init_fn=IgnoreSignals(loader.worker_init_fn),
            **{name: getattr(loader, name) for name in _TAKEN if hasattr(loader, name)},
        )

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """Set the epoch of the samples' seeds, and how many batches are left out, not loaded."""
        self.batch_sampler.epoch = epoch
        self.batch_sampler.skip = batch

    def __iter__(self) -> Iterator[object]:
        """Yield batches; a generator, as mmengine before 0.10.8 asks for one before all is set."""
        yield from super().__iter__()


def training_loader(loader: DataLoader, seed: int) -> DataLoader:
    """A :class:`TrainingLoader` in its place, unless it has no batches, or data without indices."""
    is_one = isinstance(loader, TrainingLoader)
    if is_one or isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return loader
    return TrainingLoader(loader, seed)


class _PlacedBatches(Sampler):
    """Batches of (index, place) from batches of indices; leaves out the first ``skip``."""

    def __init__(self, batches: Sampler, seed: int) -> None:
        self.batches = batches
        self.seed = seed
        self.epoch = 0
        self.skip = 0
        self.sampler = getattr(batches, 'sampler', None)  # its epoch is set by mmengine's hook
        self.batch_size = getattr(batches, 'batch_size', None)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple]]:
        rank, processes = get_dist_info()
        sample = 0
        for batch in self.batches:
            first, sample = sample, sample + len(batch)
            if self.skip:
                self.skip -= 1
                continue
            # Numbered over all processes: samplers give samples to them in turn.
            yield [
                (index, (self.seed, _SAMPLE, self.epoch, number * processes + rank))
                for number, index in enumerate(batch, first)
            ]


class _SeededDataset:
    """A data set whose samples are seeded by their place in the training.

    All else is the data set's own: hooks read and set attributes of ``train_dataloader.dataset``.
    """

    def __init__(self, dataset: object) -> None:
        object.__setattr__(self, '_dataset', dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index_and_place: tuple[int, tuple[int, ...]]) -> object:
        index, place = index_and_place
        seed_all(*place)
        return self._dataset[index]

    def __getattr__(self, name: str) -> object:
        if name.startswith('__') or name == '_dataset':  # also while it is unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._dataset, name, value)


class IgnoreSignals:
    """A ``worker_init_fn``: workers leave signals to the training process, which ends them.

    Ctrl-C goes to all processes of a terminal, and a cluster's SIGTERM to all of a job; the last
    iteration of the training process still needs its workers.
    """

    def __init__(self, start: Callable | None) -> None:
        self.start = start

    def __call__(self, worker_id: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_parents_sigterm, daemon=True).start()
        if self.start is not None:
            self.start(worker_id)


def _wait_for_parents_sigterm() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
