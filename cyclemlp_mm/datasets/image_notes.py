"""What was found out about single images while they were loaded, on its way to the log.

Images are loaded in worker processes, and the log is written by the training process. A transform
leaves a note here; the ``TrainingLoader`` takes the notes of each sample along with its data.
"""

from __future__ import annotations

from typing import NamedTuple

SKIPPED, CONVERTED = 'skipped', 'converted'
_notes: list[ImageNote] = []


class ImageNote(NamedTuple):
    """One image that was not as expected.

    Attributes:
        path (str): The file.
        outcome (str): 'skipped' or 'converted'.
        reason (str): What was wrong with it.
    """

    path: str
    outcome: str
    reason: str


def kind_of(reason: str) -> str:
    """A reason without the numbers and names of one file."""
    if 'but its annotations are for' in reason:
        return 'size differs from its annotations'
    return reason.split(' (')[0].split(':')[0].split(', but')[0]


def leave_note(path: str, outcome: str, reason: str) -> None:
    """Leave a note about an image that this process is loading."""
    _notes.append(ImageNote(path, outcome, reason))


def take_notes() -> list[ImageNote]:
    """Return and forget the notes left in this process."""
    taken = _notes[:]
    _notes.clear()
    return taken
