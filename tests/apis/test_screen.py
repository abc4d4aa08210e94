"""What the tools print cannot control the terminal, and a full disk below it does not end them."""

import errno
import io
import logging
import os
import sys
from contextlib import nullcontext

import pytest

from cyclemlp_mm.apis.run_tool import run_tool
from cyclemlp_mm.apis.screen import guard_screen, show
from cyclemlp_mm.errors import UserError

HOSTILE = ['\x1b[2J', '\x1b]0;a\x07', '\x9b31m', 'a\rb', '\x08', '\u202egpj.exe', '\udcff', '\0']


@pytest.fixture(autouse=True)
def as_before():
    before = logging.getLogRecordFactory(), sys.stdout, sys.stderr
    yield
    logging.setLogRecordFactory(before[0])
    sys.stdout, sys.stderr = before[1:]


@pytest.mark.parametrize('text', HOSTILE, ids=ascii)
def test_names_are_shown_with_their_control_characters_escaped(text, capsys):
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
    printed = ''.join(capsys.readouterr())
    assert printed.count(show(text)) == 4 and show(text).isascii()
    assert not any(c in printed for c in '\x1b\x9b\x07\x08\0\r\u202e')


def test_what_is_no_control_character_stays(capsys):
    guard_screen()
    text = 'Größe 图像 🙂 é a\tb\nc'
    bar, tag = '\r 10%|#\r', '\x1b[4m\x1b[37mINFO\x1b[0m'  # a progress bar, mmengine's level
    print(text, bar, tag, sep='\n')
    assert capsys.readouterr().out == f'{text}\n{bar}\n{tag}\n'
    assert show(text) == text


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EIO])
def test_a_full_disk_below_the_output(number):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(number, os.strerror(number))

    sys.stdout = Full()
    guard_screen()
    expected = pytest.raises(OSError) if number == errno.EIO else nullcontext()
    with expected:
        print('lost')
