"""What tools print: no control characters of names, and no lines that tell the user nothing."""

import errno
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Control characters but newline, tab and mmengine's colours; marks that reverse text; surrogates.
_CONTROL = re.compile(
    r'(?!\x1b\[(?:0|4|3\d)m)[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]'
)
#: What other packages print that tells the user nothing, or what our own lines tell in short.
#: Of their log, it stays in the log file.
_FOREIGN = (
    # mmengine: environment, config and hooks of a run; settings of each parameter
    '-{60}\nSystem environment:',
    'Config:\n',
    'Hooks will be executed in the following order',
    'paramwise_options -- ',
    'Distributed training is not used, all SyncBatchNorm',
    'Checkpoints will be saved to',
    'Setting (?:OMP|MKL)_NUM_THREADS environment variable for each process',
    'Exp name: ',
    'Loads checkpoint by ',
    'Load checkpoint from ',
    'Failed to search registry with scope',
    "Failed to add <class '",
    'Warning: The (?:bbox|polygon) is out of bounds',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    'The prefix is not set in metric class',
    # mmdet and mmseg
    'Could not import OneDL',
    'faster_coco_eval is not installed',
    'The testing results of the whole dataset is empty',
    'The draw is False, it means that the hook',
    'Default ``avg_non_ignore`` is False',
    'bbox_mAP_copypaste: ',
    'segm_mAP_copypaste: ',
    'Evaluating (?:bbox|segm)',
    # pycocotools
    'loading annotations into memory',
    'Loading and preparing results',
    '(?:Done|DONE) \\(t=',
    'creating index',
    'index created!',
    'Running per image evaluation',
    'Evaluate annotation type ',
    'Accumulating evaluation results',
    # torch: of a buffer that nobody writes to; of steps that gradient accumulation leaves out
    'The given buffer is not writable',
    r'Detected call of `(?:lr_)?scheduler\.step\(\)` before',
)
#: Before the text: mmengine's time, logger and level (of an error, the place in its code), or file,
#: line and kind of a warning.
_BEFORE = (
    r'(?:\d\d/\d\d [\d:]{8} - \S+ - \S+ - (?:[^\n]+ - \w+ - \d+ - )?'
    r'|[^\n]+:\d+: \w*Warning: )?\s*'
)
_HIDDEN = re.compile(f'{_BEFORE}(?:{"|".join(_FOREIGN)})')


def show(text: str) -> str:
    r"""Text with control characters as ``\x1b`` and the like."""
    return _CONTROL.sub(lambda m: m[0].encode('unicode_escape', 'surrogatepass').decode(), text)


def guard_screen() -> None:
    """Escape control characters in all that this process prints or logs from here on.

    Lines of other packages that tell the user nothing are not printed.
    """
    logging.setLogRecordFactory(_Record)
    sys.stdout, sys.stderr = _Screen(sys.stdout), _Screen(sys.stderr)


@contextmanager
def track(items: Iterable, text: str, total: int | None = None) -> Iterator[Iterable]:
    """``items`` with a progress bar on the stream below the guarded one: it moves the cursor."""
    from rich import progress
    from rich.console import Console

    console = Console(file=getattr(sys.stderr, 'raw', sys.stderr))
    columns = *progress.Progress.get_default_columns(), progress.MofNCompleteColumn()
    with progress.Progress(*columns, console=console) as bar:
        yield bar.track(items, total, description=text)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return show(super().getMessage())


class _Screen:
    """A stream that escapes; on a full disk it drops text, as there is nowhere to report it."""

    def __init__(self, stream: TextIO) -> None:
        #: The stream below, for progress bars: they move the cursor.
        self.raw = stream.raw if isinstance(stream, _Screen) else stream
        self._is_hidden = False  # whether the line that goes on is not printed

    def write(self, text: str) -> int:
        """Write; a carriage return at either end is a progress bar's."""
        if self._is_hidden and text == '\n':  # print() writes it by itself
            self._is_hidden = False
            return len(text)
        self._is_hidden = bool(_HIDDEN.match(text))
        if self._is_hidden:
            self._is_hidden = not text.endswith('\n')
            return len(text)
        body = text.strip('\r')
        start, _, end = text.partition(body) if body else (text, '', '')
        self._try(self.raw.write, start + show(body.replace('\r\n', '\n')) + end)
        return len(text)

    def flush(self) -> None:
        self._try(self.raw.flush)

    def _try(self, method: Callable, *arguments: str) -> None:
        try:
            method(*arguments)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise

    def __getattr__(self, name: str) -> object:
        return getattr(self.raw, name)
