"""What the tools print: names of files and classes cannot control the terminal."""

from __future__ import annotations

import errno
import logging
import re
import sys
from typing import TextIO

# Control characters but newline and tab, marks that reverse the order of text, and bytes of file
# names that are no characters. mmengine's own coloured levels are left out.
_LEVEL = r'(?:\x1b\[\d+m)+(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\x1b\[0m'
_CONTROL = r'[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]'
_ESCAPED = re.compile(f'({_LEVEL})|{_CONTROL}')
_IN_NAMES = re.compile(_CONTROL)


def show(text: str) -> str:
    r"""Text with control characters as ``\x1b`` and the like."""
    return _IN_NAMES.sub(_escape, text)


def guard_screen() -> None:
    """Escape control characters in all that this process prints or logs from here on."""
    logging.setLogRecordFactory(_Record)
    sys.stdout, sys.stderr = _Screen(sys.stdout), _Screen(sys.stderr)


def _escape(match: re.Match) -> str:
    return match[0].encode('unicode_escape', 'surrogatepass').decode()


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return show(super().getMessage())


class _Screen:
    """A stream that escapes; on a full disk it drops text, as there is nowhere to report it."""

    def __init__(self, stream: TextIO | _Screen) -> None:
        #: What is below, for progress bars: they move the cursor.
        self.raw = stream.raw if isinstance(stream, _Screen) else stream

    def write(self, text: str) -> int:
        """Write; a carriage return at either end is a progress bar's."""
        body = text.strip('\r')
        start = text[: len(text) - len(text.lstrip('\r'))]
        end = text[len(start) + len(body) :]
        escaped = _ESCAPED.sub(lambda m: m[1] or _escape(m), body.replace('\r\n', '\n'))
        self._try(self.raw.write, start + escaped + end)
        return len(text)

    def flush(self) -> None:
        """Flush."""
        self._try(self.raw.flush)

    def _try(self, method: object, *arguments: str) -> None:
        try:
            method(*arguments)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def __getattr__(self, name: str) -> object:
        return getattr(self.raw, name)
