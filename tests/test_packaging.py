"""The wheel: what is in it, and that it works away from the checkout.

It is installed into a folder of its own and put ahead of the environment's packages, so the heavy
ones need not be installed again; ``make prove-wheel`` does it in an empty environment.
"""

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('cyclemlp_mm', 'configs', 'tools', 'tests')
SOURCES += ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'README.md', 'constraints.txt')
SOURCES += ('model-index.yml', 'Makefile')


def run(*command, cwd, **env):
    """Runs a command in a folder; its output is shown where it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the sources, so that building leaves nothing in the checkout."""
    target = tmp_path_factory.mktemp('source')
    for path in (ROOT / name for name in SOURCES):
        if path.is_dir():
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns('__pycache__'))
        elif path.is_file():
            shutil.copy2(path, target)
    return target


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    """The wheel, built from the source package as for a release."""
    out = tmp_path_factory.mktemp('dist')
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, cwd=source)
    assert len(list(out.glob('*.tar.gz'))) == 1
    return next(out.glob('*.whl'))


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory):
    """A folder with the wheel installed."""
    target = tmp_path_factory.mktemp('site')
    pip = (sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index')
    run(*pip, '--target', target, wheel, cwd=target)
    return target


def names_under(folder):
    """The files below a folder, as names relative to it, without caches."""
    files = (path for path in folder.rglob('*') if path.is_file())
    names = {path.relative_to(folder).as_posix() for path in files}
    return {name for name in names if '__pycache__' not in name}


def test_wheel_holds_everything(source, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert 'cyclemlp_mm/.mim/tools/train.py' in names
    assert 'cyclemlp_mm/.mim/configs/retinanet_cyclemlp_b1_fpn_1x_coco.py' in names
    for folder, place in (
        ('cyclemlp_mm', 'cyclemlp_mm'),
        ('configs', 'cyclemlp_mm/.mim/configs'),
        ('tools', 'cyclemlp_mm/.mim/tools'),
    ):
        expected = {f'{place}/{name}' for name in names_under(source / folder)}
        for_a_checkout = re.compile('.*/tools/(setup_env|benchmark.*|demo|model_zoo.*)(/.*)?[.]py')
        assert all(for_a_checkout.fullmatch(name) for name in expected - names)
    # Nothing but the package and its metadata: no tests or tools at the top of site-packages.
    tops = {name.split('/')[0] for name in names}
    assert {top for top in tops if not top.endswith('.dist-info')} == {'cyclemlp_mm'}


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith('.dist-info/METADATA'))
        metadata = email.message_from_bytes(archive.read(name))
        assert any(n.endswith('/LICENSE') for n in archive.namelist())
    scope = {}
    exec((ROOT / 'cyclemlp_mm' / 'version.py').read_text(), scope)
    assert metadata['Version'] == scope['__version__']
    assert metadata['Requires-Python'] == '>=3.10'
    extras = {'det', 'seg', 'cls', 'export', 'web', 'all', 'vis', 'docs', 'dev'}
    assert set(metadata.get_all('Provides-Extra')) == extras
    bare = [r for r in metadata.get_all('Requires-Dist') if 'extra ==' not in r]
    names = {''.join(c if c.isalnum() or c == '-' else ' ' for c in r).split()[0] for r in bare}
    assert names == {'torch', 'numpy', 'safetensors', 'filelock', 'onedl-mmengine'}


def test_building_leaves_the_sources_clean(source, wheel):
    assert not (source / 'cyclemlp_mm' / '.mim').exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wheel_works_from_another_folder(site, tmp_path):
    """A model from the root registry, and two training iterations with a shipped config and tool.

    PYTHONPATH goes ahead of the environment's editable install; the script checks that it did.
    """
    script = ROOT / 'tests' / 'wheel_check.py'
    out = run(sys.executable, script, site, cwd=tmp_path, PYTHONPATH=str(site))
    assert 'WHEEL WORKS' in out
