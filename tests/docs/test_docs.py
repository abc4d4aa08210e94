"""The documentation builds without a warning, its links lead somewhere, its commands are real.

A command in ``docs/`` either runs here, literally, or is marked: the lines under ``# needs …`` or
``# takes …`` in its block, up to an empty line. Marked ones, and the README's, are read by their
tool's own parser: every flag and every shipped config that they name must be there.
"""

import argparse
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from cyclemlp_mm.engine import find_config

PAGES = [*sorted((ROOT / 'docs').rglob('*.md')), *sorted(ROOT.glob('*.md'))]
#: Pages whose unmarked commands run here, in this order, in one folder.
RUN = ('get_started.md', 'logging.md')
#: What no test can run as it stands, and what else covers it.
ELSEWHERE = {
    'make': 'the Makefile has the target',
    'source': 'a shell builtin',
    'pip': 'tests/test_packaging.py',
    'pre-commit': '.pre-commit-config.yaml',
}
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
IDS = [f'{page.name}: {command[:60]}' for page, command, _ in ALL]


def words_of(command):
    """Without comment and variables: ``A=1 tool x  # why`` gives ['tool', 'x']."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
        words.pop(0)
    return words


def test_there_are_commands():
    assert len(ALL) > 40
    assert sum(not marked for _, _, marked in ALL) > 5


@pytest.mark.parametrize('page, command, marked', ALL, ids=IDS)
def test_every_command_runs_or_is_marked(page, command, marked):
    words = words_of(command)
    if words[0] in ELSEWHERE:
        if words[0] == 'make':
            assert re.search(rf'^{words[1]}:', (ROOT / 'Makefile').read_text(), re.MULTILINE)
        return
    in_docs = page.parent != ROOT or page.name == 'CONTRIBUTING.md'
    if in_docs and not marked:
        assert page.name in RUN, f'mark it "# needs …" or "# takes …", or run it: {command}'


class Parsed(Exception):
    """A tool's parser took the command line."""


@pytest.mark.parametrize('page, command, marked', ALL, ids=IDS)
def test_every_command_is_one_that_its_tool_takes(page, command, marked, monkeypatch):
    words = words_of(command)
    if words[0] == 'python' and words[1].startswith('tools/'):
        tool, arguments = words[1], words[2:]
    elif words[0].startswith('tools/') and words[0].endswith('.sh'):
        kind = 'train' if 'train' in words[0] else 'test'
        arguments = words[3:] if 'slurm' in words[0] else words[1:]
        if 'slurm' not in words[0]:  # CONFIG [CHECKPOINT] NUM_PROCESSES …
            number = 1 if kind == 'train' else 2
            assert int(arguments.pop(number)) > 0
        assert (ROOT / words[0]).is_file()
        tool = f'tools/{kind}.py'
    else:
        return
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


@pytest.mark.slow
def test_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec('mkdocs') is None or importlib.util.find_spec('material') is None:
        pytest.skip('the documentation tools are not installed (extra docs)')
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path / 'site')],
        cwd=ROOT,
        env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    assert 'WARNING' not in done.stdout
    api = (tmp_path / 'site' / 'api' / 'models.html').read_text()
    assert 'drop_path_rate' in api and 'Stochastic depth of the last block' in api
    for page in (tmp_path / 'site').rglob('*.html'):
        fetched = re.findall(
            r'<(?:link|script|img)[^>]+(?:href|src)="?(https?://[^"> ]+)', page.read_text()
        )
        assert fetched == [], f'{page.name} fetches from elsewhere'


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_unmarked_commands_run(tmp_path):
    """Literally, as a reader types them in a checkout."""
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'python').symlink_to(sys.executable)
    paths = [str(tmp_path / 'bin'), str(Path(sys.executable).parent), os.environ['PATH']]
    env = {**os.environ, 'PATH': os.pathsep.join(paths), 'PYTHON': sys.executable}
    ran = []
    for name in RUN:
        for command, marked in commands(ROOT / 'docs' / name):
            if marked or words_of(command)[0] in ELSEWHERE:
                continue
            if '--vis tensorboard' in command and not importlib.util.find_spec('tensorboard'):
                continue
            words = words_of(command)
            if words[0] == 'python':
                words[0] = sys.executable
            done = subprocess.run(
                words,
                cwd=tmp_path,
                env=env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            assert done.returncode == 0, f'{command}\n{done.stdout[-4000:]}'
            ran.append(command)
    assert len(ran) >= 3
    assert (tmp_path / 'work_dirs' / 'first' / 'epoch_6.pth').is_file()


def test_python_examples(capsys):
    text = (ROOT / 'docs' / 'get_started.md').read_text()
    [example] = re.findall(r'^```python\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    exec(compile(example, 'get_started.md', 'exec'), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == '4 (1, 64, 120, 160)' and printed[-1] == '32 (1, 512, 15, 20)'
    assert printed[0] in example and printed[-1] in example
