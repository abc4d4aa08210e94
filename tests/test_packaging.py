"""The wheel: what is in it, and that it works away from the checkout.

It is installed into a folder of its own and put ahead of the environment's packages, so the heavy
ones need not be installed again; ``make prove-wheel`` does it in an empty environment.
"""

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cyclemlp_mm

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {'cyclemlp_mm': 'cyclemlp_mm'}  # in the checkout: in the wheel
FOLDERS |= {name: f'cyclemlp_mm/.mim/{name}' for name in ('configs', 'tools')}
FILES = ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'README.md', 'constraints.txt')
FILES += ('model-index.yml', 'Makefile')
REQUIRED = {'torch', 'filelock', 'matplotlib', 'numpy', 'rich', 'safetensors'}
# Versions that people have beside mmdet 3.3.0; torch is a stand-in.
ORIGINAL = ('mmengine==0.10.7', 'mmcv-lite==2.1.0', 'numpy==1.26.4', 'opencv-python==4.11.0.86')
ORIGINAL += ('filelock==3.13.1', 'rich==13.4.2', 'matplotlib==3.8.2')
ORIGINAL_TOOLBOXES = ('mmdet==3.3.0', 'mmsegmentation==1.2.2', 'mmpretrain==1.2.0')
FOR_A_CHECKOUT = re.compile('.*/tools/(setup_env|benchmark.*|demo|model_zoo.*)(/.*)?[.]py')


def test_a_folder_of_the_same_name_is_not_taken_for_the_package(tmp_path):
    """As the clone is, for a script next to it."""
    (tmp_path / 'cyclemlp_mm').mkdir()
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    command = [sys.executable, '-c', 'import cyclemlp_mm; print(cyclemlp_mm.__file__)']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip().endswith('__init__.py'), done


def run(*command, cwd, **env):
    """Runs a command in a folder; its output is shown where it fails."""
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, **streams)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the sources, so that building leaves nothing in the checkout."""
    target = tmp_path_factory.mktemp('source')
    for name in (*FOLDERS, 'tests'):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in FILES:
        shutil.copy2(ROOT / name, target)
    return target


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    """The wheel, built from the source package as for a release."""
    out = tmp_path_factory.mktemp('dist')
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, cwd=source)
    assert len(list(out.glob('*.tar.gz'))) == 1
    return next(out.glob('*.whl'))


def test_wheel_holds_everything(source, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert 'cyclemlp_mm/.mim/tools/train.py' in names
    assert 'cyclemlp_mm/.mim/configs/retinanet_cyclemlp_b1_fpn_1x_coco.py' in names
    for folder, place in FOLDERS.items():
        paths = [path for path in (source / folder).rglob('*') if path.is_file()]
        expected = {f'{place}/{path.relative_to(source / folder).as_posix()}' for path in paths}
        assert all(FOR_A_CHECKOUT.fullmatch(name) for name in expected - names)
    # Nothing but the package and its metadata: no tests or tools at the top of site-packages.
    tops = {name.split('/')[0] for name in names}
    assert {top for top in tops if not top.endswith('.dist-info')} == {'cyclemlp_mm'}
    assert not (source / 'cyclemlp_mm' / '.mim').exists()  # building leaves the sources clean


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith('.dist-info/METADATA'))
        metadata = email.message_from_bytes(archive.read(name))
        assert any(n.endswith('/LICENSE') for n in archive.namelist())
    assert metadata['Version'] == cyclemlp_mm.__version__
    assert metadata['Requires-Python'] == '>=3.10'
    original = {'openmmlab-det', 'openmmlab-seg', 'openmmlab-cls'}
    extras = {'det', 'seg', 'cls', 'export', 'web', 'corruptions', 'all', 'vis', 'docs', 'dev'}
    extras |= original
    assert set(metadata.get_all('Provides-Extra')) == extras
    required = {}
    for line in metadata.get_all('Requires-Dist'):
        name, extra = re.fullmatch(r"([\w-]+).*?(?:extra == ['\"](.*)['\"])?", line).groups()
        required.setdefault(extra, set()).add(name)
    assert required[None] == REQUIRED
    assert {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'} < required['det']
    for extra in extras - {'det', 'seg', 'cls', 'all'}:
        names = required[extra]
        assert not {n for n in names if n.startswith(('onedl', 'mmengine', 'mmcv'))}, extra
    # Links and images that only work in a checkout are not in the text of the package's page.
    text = metadata.get_payload()
    assert metadata['Author'] and 'CycleMLP' in text
    assert not re.search(r'\]\((?!https?:)|src="(?!https?:)', text)


def test_every_import_is_required_or_comes_with_a_toolbox():
    brought = {
        'mmengine': {'mmengine', 'yaml'},
        'mmcv': {'mmcv', 'cv2', 'PIL'},
        'extras': {'mmdet', 'mmseg', 'mmpretrain', 'pycocotools', 'torchvision'},
        'other extras': {
            'gradio',
            'starlette',
            'onnx',
            'onnxruntime',
            'tensorboard',
            'imagecorruptions',
        },
        'torch': {'triton'},
    }
    allowed = set(sys.stdlib_module_names) | REQUIRED | {'cyclemlp_mm'}
    allowed = allowed.union(*brought.values())
    for path in (ROOT / 'cyclemlp_mm').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert not {name.split('.')[0] for name in names} - allowed, path


def stand_in(folder, name, version):
    """A wheel with metadata only: torch is too large to install it for a test."""
    info = f'{name}-{version}.dist-info'
    path = folder / f'{name}-{version}-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'{info}/METADATA', f'Name: {name}\nVersion: {version}\n')
        archive.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nTag: py3-none-any\n')
        archive.writestr(f'{info}/RECORD', '')
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_beside_the_original_packages(wheel, tmp_path):
    """pip changes no installed package; one lineage over the other is noticed and can be fixed."""
    python = tmp_path / 'venv' / 'bin' / 'python'
    run(sys.executable, '-m', 'venv', tmp_path / 'venv', cwd=tmp_path)
    environment = dict(PYTHONPATH='', PYTHONWARNINGS='', PIP_DISABLE_PIP_VERSION_CHECK='1')

    def pip(command, *arguments):
        flags = ('-q', '--no-compile') if command == 'install' else ()
        return run(python, '-m', 'pip', command, *flags, *arguments, cwd=tmp_path, **environment)

    def versions():
        return dict(line.split('==') for line in pip('list', '--format=freeze').splitlines())

    def import_it():
        command = [python, '-c', 'import cyclemlp_mm']
        streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return subprocess.run(command, cwd=tmp_path, env={**os.environ, **environment}, **streams)

    torch = [stand_in(tmp_path, 'torch', '2.1.2'), stand_in(tmp_path, 'torchvision', '0.16.2')]
    try:
        pip('install', *torch, *ORIGINAL)
    except AssertionError as error:
        pytest.skip(f'pip cannot install the original packages here: {str(error)[-300:]}')
    pip('install', '--no-deps', *ORIGINAL_TOOLBOXES)  # pip adds theirs with our extras
    before = versions()
    assert before['mmengine'] == '0.10.7' and before['mmcv-lite'] == '2.1.0'
    for extra in ('', '[openmmlab-det]', '[openmmlab-seg]', '[openmmlab-cls]', '[export,vis]'):
        pip('install', f'{wheel}{extra}')
        after = versions()
        assert before.items() <= after.items(), extra
        added = after.keys() - before.keys()
        assert not [name for name in added if name.startswith(('onedl', 'mm'))], extra
        before = after
    assert import_it().stdout == ''

    pip('install', '--no-deps', 'onedl-mmengine==0.10.12')
    printed = import_it().stdout
    assert 'onedl-mmengine 0.10.12 and mmengine 0.10.7' in printed and 'pip uninstall' in printed
    pip('uninstall', '-y', 'onedl-mmengine')
    done = import_it()
    assert done.returncode == 1 and 'mmengine is installed (mmengine==0.10.7)' in done.stdout
    [fix] = re.findall('`pip (.*?)`', done.stdout)
    pip(*fix.split())
    assert import_it().stdout == '' and versions() == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_wheel_works_from_another_folder(wheel, tmp_path):
    """A model from the root registry, and two training iterations with a shipped config and tool.

    PYTHONPATH goes ahead of the environment's editable install; the script checks that it did.
    """
    site = tmp_path / 'site'
    pip = (sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index')
    run(*pip, '--target', site, wheel, cwd=tmp_path)
    script = ROOT / 'tests' / 'wheel_check.py'
    out = run(sys.executable, script, site, cwd=tmp_path, PYTHONPATH=str(site))
    assert 'WHEEL WORKS' in out
