"""What the tools print cannot control the terminal, and a full disk below it does not end them."""

import errno
import io
import logging
import os
import sys

import pytest

from cyclemlp_mm.apis.run_tool import guard_screen, run_tool, show
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.preflight.files import in_parallel

HOSTILE = ['\x1b[2J', '\x1b]0;a\x07', '\x9b31m', 'a\rb', '\x08', '\u202egpj.exe', '\udcff', '\0']


@pytest.fixture
def screen(capsys):
    """All that is printed; the process is as before afterwards."""
    before = logging.getLogRecordFactory(), sys.stdout, sys.stderr
    yield lambda: ''.join(capsys.readouterr())
    logging.setLogRecordFactory(before[0])
    sys.stdout, sys.stderr = before[1:]


@pytest.mark.parametrize('text', HOSTILE, ids=ascii)
def test_names_are_shown_with_their_control_characters_escaped(screen, text):
    """By print, by the log, by warnings, and in what an error says."""

    def tool():
        print(f'wrote {text}.png')
        print('error:', text, file=sys.stderr)
        logger = logging.Logger('names')
        logger.addHandler(logging.StreamHandler(sys.stdout))
        logger.warning('image skipped: %s', text)
        raise UserError(f'{text} is not there')

    with pytest.raises(SystemExit):
        run_tool(tool)
    printed = screen()
    assert printed.count(show(text)) == 4 and show(text).isascii()
    assert not any(c in printed for c in '\x1b\x9b\x07\x08\0\r\u202e')


def test_what_is_no_control_character_stays(screen):
    guard_screen()
    text = 'Größe 图像 🙂 é a\tb\nc'
    print(text)
    print('\r 10%|#', end='\r')  # a progress bar
    tag = '\x1b[4m\x1b[37mINFO\x1b[0m'  # mmengine's
    print(tag)
    assert screen() == f'{text}\n\r 10%|#\r{tag}\n'
    assert show(text) == text


def test_a_progress_bar_moves_the_cursor(screen, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setattr(sys, 'stderr', Terminal())
    guard_screen()
    assert in_parallel(str, [1, 2], 'Images') == ['1', '2']
    drawn = sys.stderr.raw.getvalue()
    assert '\x1b[' in drawn and r'\x1b' not in drawn


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_below_the_output(monkeypatch, number):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sys, 'stdout', Full())
    monkeypatch.setattr(sys, 'stderr', sys.stderr)
    factory = logging.getLogRecordFactory()
    guard_screen()
    logging.setLogRecordFactory(factory)
    if number == errno.EIO:
        with pytest.raises(OSError, match='Input/output'):
            print('lost')
    else:
        print('lost')
