"""Broken and unusual images during training and evaluation: counted, named, and limited."""

from collections import Counter, defaultdict

from mmengine.config import Config
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from cyclemlp_mm.datasets.image_notes import NOTES, SKIPPED, kind_of
from cyclemlp_mm.datasets.load_image import check_loader
from cyclemlp_mm.errors import UserError, some

from .config_data import ignore_index


@HOOKS.register_module()
class SkipBadImages(Hook):
    """Skips images that cannot be read, converts unusual ones, and logs which.

    Of each kind, the first five files are named in the log, and all are counted at the end of
    every epoch and validation. See :class:`cyclemlp_mm.datasets.load_image.LoadCheckedImage` for
    what is skipped and what is converted.

    Args:
        max_bad_fraction (float): The training stops when more than this part of a data set's images
            were skipped (but always allows one), in [0, 1]. ``max_bad_fraction`` of the config wins
            over it, if it is there. Defaults to 0.05.
    """

    priority = 'VERY_HIGH'

    def __init__(self, max_bad_fraction: float = 0.05) -> None:
        self.max_bad_fraction = _fraction(max_bad_fraction)
        self.max_value: float | None = None
        self._files: dict[str, dict[tuple, set]] = defaultdict(lambda: defaultdict(set))

    def before_run(self, runner: Runner) -> None:
        """Read the config's ``max_bad_fraction`` and ``image_max_value``."""
        self.max_bad_fraction = _fraction(runner.cfg.get('max_bad_fraction', self.max_bad_fraction))
        self.max_value = check_max_value(runner.cfg)

    def _before_epoch(self, runner: Runner, mode: str = 'train') -> None:
        """Have the images of training, validation or test checked as they are loaded."""
        ignored = ignore_index(runner.cfg, mode)
        loader = getattr(runner, f'{mode}_loop').dataloader
        check_loader(loader, mode != 'train', self.max_value, ignored)

    def _before_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, mode: str = 'train'
    ) -> None:
        """Take the notes out of a batch; log the first ones of each kind, and count all."""
        notes = data_batch.pop(NOTES, ()) if isinstance(data_batch, dict) else ()
        if not notes:
            return
        for note in notes:
            files = self._files[mode][note.outcome, kind_of(note.reason)]
            if note.path not in files and len(files) < 5:
                runner.logger.warning(str(note))
            files.add(note.path)
        images = len(getattr(runner, f'{mode}_loop').dataloader.dataset)
        bad = set().union(*(f for (what, _), f in self._files[mode].items() if what == SKIPPED))
        if len(bad) > max(1, self.max_bad_fraction * images):
            raise UserError(
                f'{len(bad)} of {images} images of the {mode} data could not be read, more than '
                f'max_bad_fraction={self.max_bad_fraction} allows: {some(sorted(bad))}. Fix or '
                'remove them (tools/check.py CONFIG --full lists all), or allow more with '
                '--cfg-options max_bad_fraction=…'
            )

    def _after_epoch(self, runner: Runner, mode: str = 'train') -> None:
        """Log the counts, of all processes together."""
        counts = {key: len(files) for key, files in self._files[mode].items()}
        total = sum(map(Counter, all_gather_object(counts)), Counter())
        if total and is_main_process():
            found = '; '.join(f'{n} {what} ({why})' for (what, why), n in sorted(total.items()))
            runner.logger.warning(f'images of the {mode} data so far: {found}')


def _fraction(value: object) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f'max_bad_fraction is {value!r}; it must be a number in [0, 1]')
    return value


def check_max_value(cfg: Config) -> float | None:
    """``image_max_value`` of a config: what becomes 255 in images of more than 8 bits."""
    value = cfg.get('image_max_value')
    if value is not None and not (isinstance(value, (int, float)) and 0 < value < float('inf')):
        raise UserError(f'image_max_value is {value!r}; it must be a number above 0, such as 4095')
    return value
