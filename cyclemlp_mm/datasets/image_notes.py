"""What loading steps note about single images, on its way from worker processes to the log.

A step keeps its notes until :class:`CollateWithNotes` puts them into the batch that it loaded; the
hook ``SkipBadImages`` takes them out before the model gets the batch.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mmengine.logging import print_log

from cyclemlp_mm.errors import UserError

from .image_files import BadImageError

SKIPPED, CONVERTED = 'skipped', 'converted'
#: Key of a batch under which its notes are.
NOTES = 'image_notes'
#: So many files in a row that cannot be read mean a wrong path or a lost disk.
MOST_IN_A_ROW = 50


class ImageNote(NamedTuple):
    """One image that was 'skipped' or 'converted', and why."""

    path: str
    outcome: str
    reason: str

    def __str__(self) -> str:
        return f'image {self.outcome}: {self.path}: {self.reason}'


def kind_of(reason: str) -> str:
    """A reason without the numbers and names of one file."""
    if 'but its annotations are for' in reason:
        return 'size differs from its annotations'
    return reason.split(' (')[0].split(':')[0].split(', but')[0]


class CheckedStep:
    """A loading step that notes what it skips or converts in ``notes``.

    What cannot be read is replaced by another sample in training (mmengine's data sets take one
    when a step returns None), and by a stand-in in evaluation, where every image counts.

    Args:
        transform (object): The step of the toolbox that it stands for.
        is_evaluation (bool): See above. Defaults to False.
    """

    def __init__(self, transform: object, is_evaluation: bool = False) -> None:
        self.transform = transform
        self.is_evaluation = is_evaluation
        self.notes: list[ImageNote] = []
        self._in_a_row = 0

    def __call__(self, results: dict) -> dict | None:
        """Load one file into ``results``; None where it is skipped, a UserError where it must not
        be.
        """
        path = str(results.get('img_path'))
        try:
            loaded, converted = self.read(results)
        except BadImageError as error:
            self.notes.append(ImageNote(path, SKIPPED, str(error).removeprefix(f'{path} ')))
            self._in_a_row += 1
            if self._in_a_row >= MOST_IN_A_ROW:
                raise UserError(
                    f'{MOST_IN_A_ROW} images in a row could not be read, the last one: {error}. '
                    'Is the data still there? tools/check.py CONFIG looks at it'
                ) from error
            return self.stand_in(results, error) if self.is_evaluation else None
        self._in_a_row = 0
        if converted:
            self.notes.append(ImageNote(path, CONVERTED, ', '.join(converted)))
        return self.put(results, loaded)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transform}, is_evaluation={self.is_evaluation})'


class CollateWithNotes:
    """A ``collate_fn`` that adds the notes of a data set's loading steps to the batch."""

    def __init__(self, collate: Callable, steps: Sequence[CheckedStep]) -> None:
        self.collate = collate
        self.steps = steps

    def __call__(self, samples: list) -> object:
        """Collate samples that this process has just loaded."""
        batch = self.collate(samples)
        notes = [note for step in self.steps for note in step.notes]
        for step in self.steps:
            step.notes.clear()
        if notes and isinstance(batch, dict):
            batch[NOTES] = notes
            return batch
        for note in notes:  # batches of a collate function of the user's own have no place for them
            print_log(str(note), 'current', logging.WARNING)
        return batch
