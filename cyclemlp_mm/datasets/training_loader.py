"""A ``DataLoader`` that can start at any batch, and whose samples do not depend on the past.

mmengine seeds each worker once; from then on, a sample's augmentation depends on all that its
worker loaded before, and so on the number of workers, on prefetching and on restarts. Here every
sample has a seed of its own, made from the training's seed, the epoch and the sample's number in
it. So a training that is resumed in the middle of an epoch sees what it would have seen, and two
processes see what one process with twice the batch sees.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mmengine.dist import get_dist_info
from torch.utils.data import DataLoader, IterableDataset, Sampler

from .image_notes import ImageNote, take_notes
from .random_states import seed_all

_SAMPLE = 0  # kinds of places, see random_states; 1 is an iteration


class TrainingLoader(DataLoader):
    """See the module. Yields batches as the loader that it is made from.

    Args:
        loader (DataLoader): What to load. Not used any more afterwards.
        seed (int): The training's seed, the same in all processes.
        place_samples (bool): Whether samples are seeded and batches can be skipped, as training
            wants. False only takes notes. Defaults to True.
    """

    def __init__(self, loader: DataLoader, seed: int, place_samples: bool = True) -> None:
        dataset = _NotedDataset(loader.dataset)
        batches = _PlacedBatches(loader.batch_sampler, seed if place_samples else None)
        options = {
            name: getattr(loader, name)
            for name in (
                'num_workers',
                'pin_memory',
                'timeout',
                'multiprocessing_context',
                'generator',
                'prefetch_factor',
                'persistent_workers',
                'pin_memory_device',
                'in_order',
            )
            if hasattr(loader, name)
        }
        super().__init__(
            dataset,
            batch_sampler=batches,
            collate_fn=_NotedCollate(loader.collate_fn),
            worker_init_fn=_WorkerStart(loader.worker_init_fn),
            **options,
        )
        self.notes: list[ImageNote] = []

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """Say where the next iteration begins.

        Args:
            epoch (int): From 0; decides the samples' seeds, not the sampler's order.
            batch (int): Number of batches to leave out, without loading them. Defaults to 0.
        """
        self.batch_sampler.epoch = epoch
        self.batch_sampler.skip = batch

    def __iter__(self) -> Iterator[object]:
        """Yield batches, and keep what was noted about their images in ``notes``."""
        for loaded in super().__iter__():
            self.notes += loaded.notes
            yield loaded.batch


def training_loader(loader: DataLoader, seed: int, place_samples: bool = True) -> DataLoader:
    """A :class:`TrainingLoader` in the place of ``loader``, where that is possible.

    Data sets without indices and loaders without batches are returned as they are.
    """
    if (
        isinstance(loader, TrainingLoader)
        or isinstance(loader.dataset, IterableDataset)
        or loader.batch_sampler is None
    ):
        return loader
    return TrainingLoader(loader, seed, place_samples)


class _Loaded(NamedTuple):
    batch: object
    notes: list[ImageNote]


class _PlacedBatches(Sampler):
    """Batches of (index, place) from batches of indices; leaves out the first ``skip``."""

    def __init__(self, batches: Sampler, seed: int | None) -> None:
        self.batches = batches
        self.seed = seed
        self.epoch = 0
        self.skip = 0

    @property
    def sampler(self) -> Sampler | None:
        """mmengine's DistSamplerSeedHook sets its epoch."""
        return getattr(self.batches, 'sampler', None)

    @property
    def batch_size(self) -> int | None:
        """Samples per batch."""
        return getattr(self.batches, 'batch_size', None)

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
            # Numbered over all processes: samplers deal samples out in turn.
            numbers = (n * processes + rank for n in range(first, sample))
            yield [(index, self._place(number)) for index, number in zip(batch, numbers)]

    def _place(self, number: int) -> tuple[int, ...] | None:
        return None if self.seed is None else (self.seed, _SAMPLE, self.epoch, number)


class _NotedDataset:
    """A data set whose samples are seeded, and come with the notes about their images.

    All else is the data set's own: hooks read and set attributes of ``train_dataloader.dataset``.
    """

    def __init__(self, dataset: object) -> None:
        object.__setattr__(self, '_dataset', dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, place: tuple[int, tuple[int, ...] | None]) -> tuple[object, list]:
        index, seed = place
        if seed is not None:
            seed_all(*seed)
        take_notes()  # of a sample that failed before
        return self._dataset[index], take_notes()

    def __getattr__(self, name: str) -> object:
        if name.startswith('__') or name == '_dataset':  # also while it is unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._dataset, name, value)

    def __reduce__(self) -> tuple:
        return _NotedDataset, (self._dataset,)


class _NotedCollate:
    def __init__(self, collate: Callable) -> None:
        self.collate = collate

    def __call__(self, samples: list[tuple[object, list]]) -> _Loaded:
        notes = [note for _, found in samples for note in found]
        return _Loaded(self.collate([sample for sample, _ in samples]), notes)


class _WorkerStart:
    """Workers leave signals to the training process: it needs them for its last iteration.

    Ctrl-C goes to all processes of a terminal, and a cluster's SIGTERM to all of a job. Only the
    training process itself ends its workers.
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
