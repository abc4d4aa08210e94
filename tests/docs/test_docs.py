"""The documentation builds without a warning, its links lead somewhere, its commands are real.

A command in ``docs/`` either runs here, literally, or is marked: the lines under ``# needs …`` or
``# takes …`` in its block, up to an empty line. Marked ones, and the README's, are read by their
tool's own parser: every flag and every shipped config that they name must be there.
"""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from toy_runs import TINY_BACKBONE, TINY_DETECTOR

from cyclemlp_mm.apis.train import train
from cyclemlp_mm.datasets import shapes
from cyclemlp_mm.engine import find_config

PAGES = [*sorted((ROOT / 'docs').rglob('*.md')), *sorted(ROOT.glob('*.md'))]
#: Pages whose unmarked commands run here, in this order, in one folder.
RUN = ('get_started.md', 'logging.md')
#: Programs that no test can run as the pages do.
ELSEWHERE = ('make', 'source', 'pip', 'pre-commit')
MARK = re.compile(r'#\s+(needs|takes)\b')


def commands(page):
    """(command, marked) of a page's bash blocks; continued lines joined."""
    for block in re.findall(r'^```bash\n(.*?)^```', page.read_text(), re.MULTILINE | re.DOTALL):
        marked = False
        for line in block.replace('\\\n', ' ').splitlines():
            if not line.strip():
                marked = False
            elif line.lstrip().startswith('#'):
                marked = bool(MARK.match(line.lstrip()))
            else:
                yield line.strip(), marked or bool(MARK.search(line))


ALL = [(page, *found) for page in PAGES for found in commands(page)]


def words_of(command):
    """Without comment and variables: ``A=1 tool x  # why`` gives ['tool', 'x']."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
        words.pop(0)
    return words


def test_every_command_runs_or_is_marked():
    assert len(ALL) > 40
    targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    for page, command, marked in ALL:
        words = words_of(command)
        if words[0] == 'make':
            assert words[1] in targets, command
        elif words[0] not in ELSEWHERE and not marked:
            in_docs = page.parent != ROOT or page.name == 'CONTRIBUTING.md'
            what = f'mark it "# needs …" or "# takes …", or run it: {command}'
            assert page.name in RUN or not in_docs, what


class Parsed(Exception):
    """A tool's parser took the command line."""


def tool_of(words):
    """The tool that a command runs, and its arguments; None for other commands."""
    if words[0] == 'python' and words[1].startswith('tools/'):
        return words[1], words[2:]
    if not (words[0].startswith('tools/') and words[0].endswith('.sh')):
        return None
    assert (ROOT / words[0]).is_file()
    kind = 'train' if 'train' in words[0] else 'test'
    arguments = words[3:] if 'slurm' in words[0] else words[1:]
    if 'slurm' not in words[0]:  # CONFIG [CHECKPOINT] NUM_PROCESSES …
        assert int(arguments.pop(1 if kind == 'train' else 2)) > 0
    return f'tools/{kind}.py', arguments


TOOLS = {command: found for _, command, _ in ALL if (found := tool_of(words_of(command)))}


@pytest.mark.parametrize('command', TOOLS)
def test_every_command_is_one_that_its_tool_takes(command, monkeypatch):
    tool, arguments = TOOLS[command]
    arguments = [a for a in arguments if not re.fullmatch(r'\[.*|.*\]', a)]  # [--optional]
    real = argparse.ArgumentParser.parse_args

    def parse(self, args=None, namespace=None):
        raise Parsed(real(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse)
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    with pytest.raises(Parsed) as caught:
        runpy.run_path(str(ROOT / tool), run_name='__main__')
    config = getattr(caught.value.args[0], 'config', None)
    for name in [config] if isinstance(config, str) else config or []:
        if not name.isupper() and not name.startswith('work_dirs/'):
            find_config(str(ROOT / name) if name.startswith('configs/') else name)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'https?://[\w.-]+(/|$)', target):
            continue  # others' pages are not asked
        name, _, anchor = target.partition('#')
        file = page.parent / name if name else page
        assert file.exists(), f'{page.name} links to {target}'
        if anchor:
            heads = re.findall(r'^#+ (.+)$', file.read_text(), re.MULTILINE)
            slugs = {re.sub(r'[^\w\- ]', '', h).strip().lower().replace(' ', '-') for h in heads}
            assert anchor in slugs, f'{page.name} links to {target}, which has {sorted(slugs)}'


def run(command, cwd, **env):
    """Run a command; returns what it printed."""
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, **streams)
    assert done.returncode == 0, f'{command}\n{done.stdout[-4000:]}'
    return done.stdout


@pytest.mark.slow
def test_builds_without_a_warning(tmp_path):
    pytest.importorskip('material')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path)]
    assert 'WARNING' not in run(command, ROOT, NO_MKDOCS_2_WARNING='1')
    assert 'Stochastic depth of the last block' in (tmp_path / 'api/models.html').read_text()
    fetches = re.compile(r'<(?:link|script|img)[^>]+(?:href|src)="?https?://')
    for page in tmp_path.rglob('*.html'):
        assert not fetches.search(page.read_text()), f'{page.name} fetches from elsewhere'


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_unmarked_commands_run(tmp_path):
    """Literally, as a reader types them in a checkout."""
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    folder = Path(sys.executable).parent
    unmarked = [c for n in RUN for c, marked in commands(ROOT / 'docs' / n) if not marked]
    todo = [command for command in unmarked if words_of(command)[0] not in ELSEWHERE]
    assert len(todo) >= 3
    for command in todo:
        words = [sys.executable if w == 'python' else w for w in words_of(command)]
        run(words, tmp_path, PATH=f'{folder}{os.pathsep}{os.environ["PATH"]}')
    assert (tmp_path / 'work_dirs' / 'first' / 'epoch_5.pth').is_file()


@pytest.mark.slow
def test_training_options_train(tmp_path, monkeypatch):
    """Each block of the page, with ``--data``."""
    pytest.importorskip('mmdet')
    text = (ROOT / 'docs' / 'training_options.md').read_text()
    _, *options = re.findall(r'^```python\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    assert len(options) == 6
    data = shapes.write_coco(tmp_path / 'data', 4, 2, (64, 64))
    monkeypatch.chdir(tmp_path)
    base = ROOT / 'configs' / 'retinanet_cyclemlp_demo.py'
    for number, lines in enumerate(options):
        config = tmp_path / f'option{number}.py'
        config.write_text(f"_base_ = '{base}'\n{lines}")
        small = ['--cfg-options', *TINY_DETECTOR, *TINY_BACKBONE]
        train([str(config), '--data', str(data), '--work-dir', f'wd{number}', *small])
        assert (tmp_path / f'wd{number}' / 'epoch_1.pth').is_file()


def test_python_examples(capsys):
    text = (ROOT / 'docs' / 'get_started.md').read_text()
    [example] = re.findall(r'^```python\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    exec(compile(example, 'get_started.md', 'exec'), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == '4 (1, 64, 120, 160)' and printed[-1] == '32 (1, 512, 15, 20)'
    assert printed[0] in example and printed[-1] in example
