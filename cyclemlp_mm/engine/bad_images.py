"""Broken and unusual images in the middle of a training: counted, named, and limited."""

from __future__ import annotations

from collections import Counter, defaultdict

from mmengine.config import Config
from mmengine.dist import all_gather_object, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from cyclemlp_mm.datasets.image_notes import SKIPPED, kind_of
from cyclemlp_mm.datasets.load_image import check_images
from cyclemlp_mm.datasets.training_loader import TrainingLoader, training_loader
from cyclemlp_mm.errors import UserError

from .config_data import ignore_index

#: So many files are named in the log for each reason; the others are counted.
MOST_NAMED = 5


class TooManyBadImagesError(UserError):
    """More of the data cannot be read than ``max_bad_fraction`` allows."""


@HOOKS.register_module()
class SkipBadImages(Hook):
    """Skips images that cannot be read, converts unusual ones, and says which.

    Each kind of trouble names its first five files in the log, and all are counted at the end of
    every epoch and validation. See :class:`cyclemlp_mm.datasets.load_image.LoadCheckedImage` for
    what is skipped and what is converted.

    Shipped configs name it, so that every tool, the toolboxes' own ones too, loads images alike.

    Args:
        max_bad_fraction (float): The training stops when more than this part of a data set's images
            were skipped (but always allows one), in [0, 1]. ``max_bad_fraction`` of the config wins
            over it, if it is there. Defaults to 0.05.
    """

    priority = 'VERY_HIGH'

    def __init__(self, max_bad_fraction: float = 0.05) -> None:
        self._set_limit(max_bad_fraction)
        self.max_value: float | None = None
        self._files: dict[str, dict[tuple, set]] = defaultdict(lambda: defaultdict(set))

    def _set_limit(self, max_bad_fraction: float) -> None:
        if not isinstance(max_bad_fraction, (int, float)) or not 0 <= max_bad_fraction <= 1:
            raise UserError(
                f'max_bad_fraction is {max_bad_fraction!r}; it must be a number in [0, 1]'
            )
        self.max_bad_fraction = max_bad_fraction

    def before_run(self, runner: Runner) -> None:
        """Read the config's ``max_bad_fraction`` and ``image_max_value``."""
        self._set_limit(runner.cfg.get('max_bad_fraction', self.max_bad_fraction))
        self.max_value = check_max_value(runner.cfg)

    def before_train(self, runner: Runner) -> None:
        """Check images of the training data."""
        ignored = ignore_index(runner.cfg, 'train')
        check_images(runner.train_dataloader.dataset, False, self.max_value, ignored)

    def before_val(self, runner: Runner) -> None:
        """Check images of the validation data."""
        runner.val_loop.dataloader = self._checked(runner, 'val')

    def before_test(self, runner: Runner) -> None:
        """Check images of the test data."""
        runner.test_loop.dataloader = self._checked(runner, 'test')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Log what is new, and count.

        Raises:
            TooManyBadImagesError: More than ``max_bad_fraction``.
        """
        self._take(runner, 'train', runner.train_dataloader)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """As in training."""
        self._take(runner, 'val', runner.val_loop.dataloader)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """As in training."""
        self._take(runner, 'test', runner.test_loop.dataloader)

    def after_train_epoch(self, runner: Runner) -> None:
        """Say the counts."""
        self._summarise(runner, 'train')

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Say the counts."""
        self._summarise(runner, 'val')

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Say the counts."""
        self._summarise(runner, 'test')

    def _take(self, runner: Runner, phase: str, loader: DataLoader) -> None:
        if not isinstance(loader, TrainingLoader) or not loader.notes:
            return
        notes, loader.notes = loader.notes, []
        found = self._files[phase]
        for note in notes:
            files = found[note.outcome, kind_of(note.reason)]
            if note.path in files:
                continue
            files.add(note.path)
            if len(files) <= MOST_NAMED:
                runner.logger.warning(f'image {note.outcome}: {note.path}: {note.reason}')
        self._limit(phase, len(loader.dataset))

    def _limit(self, phase: str, images: int) -> None:
        bad = set().union(*(f for (what, _), f in self._files[phase].items() if what == SKIPPED))
        if len(bad) > max(1, self.max_bad_fraction * images):
            raise TooManyBadImagesError(
                f'{len(bad)} of {images} images of the {phase} data could not be read, more than '
                f'max_bad_fraction={self.max_bad_fraction} allows, e.g. '
                f'{", ".join(sorted(bad)[:MOST_NAMED])}. Mend or remove them (tools/check.py '
                'CONFIG --full lists all), or allow more with --cfg-options max_bad_fraction=…'
            )

    def _summarise(self, runner: Runner, phase: str) -> None:
        counts = Counter({key: len(files) for key, files in self._files[phase].items()})
        if get_dist_info()[1] > 1:
            counts = sum((Counter(c) for c in all_gather_object(dict(counts))), Counter())
        if counts and is_main_process():
            said = '; '.join(f'{n} {what} ({why})' for (what, why), n in sorted(counts.items()))
            runner.logger.warning(f'images of the {phase} data so far: {said}')

    def _checked(self, runner: Runner, phase: str) -> DataLoader:
        loader = getattr(runner, f'{phase}_loop').dataloader
        check_images(loader.dataset, True, self.max_value, ignore_index(runner.cfg, phase))
        return training_loader(loader, runner.seed, place_samples=False)


def check_max_value(cfg: Config) -> float | None:
    """``image_max_value`` of a config: what becomes 255 in images of more than 8 bits.

    Raises:
        UserError: It is not a number above 0.
    """
    value = cfg.get('image_max_value')
    if value is not None and not (isinstance(value, (int, float)) and 0 < value < float('inf')):
        raise UserError(f'image_max_value is {value!r}; it must be a number above 0, such as 4095')
    return value
