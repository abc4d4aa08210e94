#!/usr/bin/env python3
"""Make ``.venv`` with the tested versions; if that is already done, do nothing.

Run by the system's Python, so it uses the standard library only. Versions come from
``constraints.txt``, dependencies from ``setup.py``, and every step's output goes to
``.venv/setup.log``. Exit code 0: the environment is ready; 1: a step failed, and the last lines
name the step, the cause and how to fix it.
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import doctor

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
LOG = VENV / 'setup.log'
STAMP = VENV / 'setup.stamp'
# Remembers that CPU-only ops were asked for on a machine with a GPU.
CPU_OPS = VENV / 'cpu-ops'
# Remembers that what the tests and the documentation need is there, too.
DEV = VENV / 'dev'
# Compiled wheels of mmcv, by what they depend on: a second checkout does not compile again.
WHEELS = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'cyclemlp_mm' / 'wheels'
# The Python versions for which every pin has wheels (mmcv and the toolboxes are source packages).
OLDEST, NEWEST = (3, 10), (3, 13)


class SetupError(Exception):
    """A step failed: what, the last lines of its output, and how to fix it."""

    def __init__(self, what, fix='', output=''):
        lines = [line for line in output.splitlines() if line.strip()]
        super().__init__('\n'.join([what, *lines[-15:]]))
        self.fix = fix or doctor.hint(output) or 'see the log'


def check_compiler():
    """Raise SetupError if there is no C++ compiler or no Python.h."""
    has_compiler = any(map(shutil.which, os.environ.get('CXX', 'c++ g++').split()))
    if not (has_compiler and Path(sysconfig.get_path('include'), 'Python.h').is_file()):
        what = "mmcv's ops cannot be compiled: no C++ compiler ($CXX, c++ or g++) or no Python.h"
        raise SetupError(what, 'on Debian or Ubuntu: apt install build-essential python3-dev')


def takes_gpu():
    """Whether there is a GPU to compile mmcv's ops for; SetupError where that cannot be done.

    FORCE_CUDA=1, a variable of mmcv's build, stands for a GPU: an image is built without one.
    """
    _, _, cuda, torch_sees, home = torch_state()
    torch_sees |= os.environ.get('FORCE_CUDA') == '1'
    if not (torch_sees or doctor.has_gpu()):
        return False
    major = cuda.split('.')[0]
    _, out = doctor.ask([Path(home, 'bin', 'nvcc'), '--version'])
    release = (re.search(r'release (\d+)\.', out) or ['', ''])[1]
    toolkit = f'install the CUDA toolkit {major}.x and put nvcc on PATH, or set CUDA_HOME'
    builds = 'point pip at an index with the CUDA builds of torch, rm -rf .venv'
    for wrong, what, fix in (
        (cuda == 'None', 'the installed torch is a CPU-only build', builds),
        (not release, f'there is no nvcc that runs (CUDA_HOME: {home})', toolkit),
        (release != major, f'nvcc is CUDA {release}, and torch is built for CUDA {cuda}', toolkit),
        (not torch_sees, 'torch cannot use it', f'install a driver for CUDA {major}'),
    ):
        if wrong:
            fix += "; or compile mmcv's ops without CUDA: make setup SETUP_FLAGS=--cpu-ops"
            raise SetupError(f'there is a GPU, but {what}', fix)
    return True


#: Names that several files of ``pytorch/cpu`` define, each for itself.
SHARED_NAMES = (
    'add',
    'bilinear_interpolate',
    'bilinear_interpolate_gradient',
    'pre_calc_for_bilinear_interpolate',
    'PreCalc',
)


def merge_sources(source):
    """Make two translation units, one per folder, of the 78 files of mmcv's ops.

    Each file reads all of PyTorch's headers, 7 s of CPU before its first own line.
    """
    folder = source / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    merge_folder(folder, ())
    merge_folder(folder / 'cpu', SHARED_NAMES)


def merge_folder(folder, names):
    """Make one translation unit of a folder's files; in each, ``names`` get the file's own."""
    parts = folder / 'parts'
    parts.mkdir()
    # First the headers, which neither the names nor the macros of a file may change.
    lines = ['#include "pytorch_cpp_helper.hpp"', '#include "pytorch_device_registry.hpp"']
    for path in sorted(folder.glob('*.cpp')):
        macros = re.findall(r'(?m)^#define (\w+)', path.read_text())
        path.rename(parts / f'{path.name}.inc')
        lines += [f'#define {name} {name}_{path.stem}' for name in names]
        lines += [f'#include "parts/{path.name}.inc"']
        lines += [f'#undef {name}' for name in [*names, *macros]]
    (folder / 'all_ops.cpp').write_text('\n'.join(lines) + '\n')


def environment():
    """The variables for pip and the build: nothing from outside leaks into the environment."""
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
    env.update(PIP_DISABLE_PIP_VERSION_CHECK='1', PIP_NO_INPUT='1', PIP_USER='0')
    # ninja and others come from the environment; the rest of PATH follows.
    env['PATH'] = f'{PYTHON.parent}{os.pathsep}{env.get("PATH", os.defpath)}'
    # One compiler per core, but no more than memory serves (2 GB each).
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    env.setdefault('MAX_JOBS', str(max(1, min(len(os.sched_getaffinity(0)), memory // 2**31))))
    return env


def run_python(code):
    """Run code with the environment's Python, away from the project; see doctor.run_python."""
    return doctor.run_python(code, PYTHON, env=environment(), cwd=VENV if VENV.is_dir() else None)


def ops_state():
    """mmcv's ops in the environment: 'none', 'CPU only' or 'with CUDA'."""
    failed, last, _ = run_python(doctor.OPS)
    return 'none' if failed else last


def torch_state():
    """The environment's Python, torch, CUDA; whether torch sees a GPU; the folder of CUDA."""
    failed, last, out = run_python(
        'import sys, torch; from torch.utils.cpp_extension import CUDA_HOME as home; '
        'print("cp%d%d" % sys.version_info[:2], torch.__version__, torch.version.cuda, '
        'torch.cuda.is_available(), home)'
    )
    if failed:
        raise SetupError('torch does not import:', output=out)
    python, version, cuda, sees, home = last.split(maxsplit=4)
    return python, version, cuda, sees == 'True', home


def current_stamp():
    """The hash of all that decides what the environment holds and where it is."""
    files = [ROOT / 'constraints.txt', ROOT / 'setup.py', Path(__file__), VENV / 'pyvenv.cfg']
    asked = CPU_OPS.exists(), DEV.exists()
    parts = [str(ROOT), *asked, *(p.read_bytes() for p in files if p.is_file())]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@contextmanager
def step(title):
    """Print what is going on, and then how long it took."""
    print(f'[{title} ...', flush=True)
    start = time.time()
    yield
    print(f'      done in {time.time() - start:.0f} s', flush=True)


def run(*command, **env):
    """Run a command in ``.venv``, its output in the log; SetupError if it fails."""
    text = shlex.join(map(str, command))
    output = deque(maxlen=100)  # its own: another command may write to the log at the same time
    settings = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    settings.update(cwd=VENV, encoding='utf-8', errors='replace', env={**environment(), **env})
    with (
        LOG.open('a', encoding='utf-8', errors='replace', buffering=1) as log,
        subprocess.Popen(command, **settings) as process,
    ):
        print(f'\n$ {text}', file=log)
        for line in process.stdout:
            log.write(line)
            output.append(line)
    if process.returncode:
        what = f'{text} failed (exit code {process.returncode}):'
        raise SetupError(what, output=''.join(output))


def pip(*arguments, command='install', **env):
    """Run the environment's pip under the constraints."""
    run(PYTHON, '-m', 'pip', command, '-c', ROOT / 'constraints.txt', *arguments, **env)


def make_venv():
    """Create ``.venv``; again where its Python does not run or is one the pins do not serve."""
    is_served = f'import sys; sys.exit(not {OLDEST} <= sys.version_info[:2] <= {NEWEST})'
    if PYTHON.exists() and not run_python(is_served)[0]:
        return
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        what = 'Python {}.{} cannot be used: the pinned versions have wheels for {}.{} to {}.{}'
        fix = 'name another one: make setup PYTHON=python3.12'
        raise SetupError(what.format(*sys.version_info[:2], *OLDEST, *NEWEST), fix)
    failed, out = doctor.ask([sys.executable, '-m', 'venv', '--clear', VENV], env=environment())
    if failed:
        raise SetupError('python -m venv failed:', output=out)


def install_mmcv(cpu_ops, install_others):
    """Install mmcv with its ops, from the kept wheel of an earlier compilation where there is one.

    What counts is what can be imported: a wheel whose ops do not load is compiled again. The
    other packages are installed during the compilation, which happens in a folder of its own.
    """
    state = ops_state()
    gpu = state != 'with CUDA' and not cpu_ops and takes_gpu()
    wanted = ('with CUDA',) if gpu else ('CPU only', 'with CUDA')
    kept = wheel_folder(gpu)
    if state in wanted or any(install_wheel(wheel) in wanted for wheel in kept.glob('*.whl')):
        return install_others()
    with ThreadPoolExecutor(1) as pool:
        compilation = pool.submit(compile_mmcv, kept, gpu)
        install_others()
        compilation.result()
    if install_wheel(next(kept.glob('*.whl'))) not in wanted:
        shutil.rmtree(kept)
        _, _, out = run_python('import mmcv.ops')
        raise SetupError(f'mmcv was built, but its ops do not load (CUDA: {gpu}):', output=out)


def install_required(extras):
    """Install this package, and what it requires with its extras; mmcv is compiled elsewhere."""
    pip('--no-build-isolation', '--no-deps', '-e', ROOT)
    code = 'import importlib.metadata as m; print(*m.requires("cyclemlp_mm"), sep="|")'
    _, required, _ = run_python(code)
    names = []
    for name, _, condition in (line.partition(';') for line in required.split('|')):
        extra = re.search('extra == ["\'](.+)["\']', condition)
        if (not extra or extra[1] in extras) and not name.startswith('onedl-mmcv'):
            names.append(name)
    pip('--no-build-isolation', *names)


def wheel_folder(gpu):
    """Where mmcv's wheel is kept for this Python, torch and kind of ops."""
    mmcv = re.search(r'(?m)^onedl-mmcv==(\S+)', (ROOT / 'constraints.txt').read_text())[1]
    python, torch, cuda, _, _ = torch_state()
    return WHEELS / f'mmcv{mmcv}-{python}-torch{torch}-{f"cuda{cuda}" if gpu else "cpu"}'


def install_wheel(wheel):
    """Install mmcv from a wheel, then what it needs; returns :func:`ops_state` after it."""
    pip('--force-reinstall', '--no-deps', wheel)
    pip(wheel)
    return ops_state()


def compile_mmcv(kept, gpu):
    """Compile mmcv's source package into a wheel, and put it into ``kept``."""
    # Without debug symbols (-g of Python's own flags) the library is a fortieth of the size.
    env = {flags: f'{os.environ.get(flags, "")} -g0'.strip() for flags in ('CFLAGS', 'CXXFLAGS')}
    if not gpu:  # mmcv compiles CUDA ops when torch sees a GPU: hide it where they are not wanted
        env.update(CUDA_VISIBLE_DEVICES='', FORCE_CUDA='0')
    build = ('--no-deps', '--no-build-isolation')
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        package = ('--no-binary', 'onedl-mmcv', '-d', folder, 'onedl-mmcv')
        pip(*build, *package, command='download', **env)
        with tarfile.open(next(folder.glob('*.tar.gz'))) as archive:
            archive.extractall(folder / 'source')
        [source] = (folder / 'source').iterdir()
        if not gpu:
            merge_sources(source)
        pip(*build, '-w', folder / 'wheel', source, command='wheel', **env)
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for wheel in (folder / 'wheel').glob('*.whl'):
            shutil.copy(wheel, kept / f'{wheel.name}.part')
            (kept / f'{wheel.name}.part').rename(kept / wheel.name)


def set_up(cpu_ops, dev):
    """Run all the steps, and leave the stamp when every one of them worked."""
    STAMP.unlink(missing_ok=True)
    with step('1/6] make .venv'):
        make_venv()
    LOG.write_text('')
    if ops_state() == 'none':  # stop now rather than after the downloads
        check_compiler()
    if cpu_ops:
        CPU_OPS.touch()
    if dev:
        DEV.touch()
    with step('2/6] install pip and the build tools'):  # venv's setuptools is too old for mmcv
        pip('--upgrade', 'pip', 'setuptools', 'wheel', 'packaging', 'ninja', 'psutil')
    # torch first: mmcv compiles against it, and without it silently leaves its ops out.
    with step('3/6] install torch and torchvision (about 1 minute)'):
        pip('torch', 'torchvision', 'numpy')
    # Both OpenCV packages are required, write one folder and stay registered. The one without a
    # window system comes last: the other needs libGL and libxcb, which bare machines lack.
    with step('4/6] install OpenCV, the build that needs no display libraries'):
        pip('opencv-python')
        pip('--force-reinstall', '--no-deps', 'opencv-python-headless')
    extras = ['all', *(['dev', 'docs'] if DEV.exists() else [])]
    what = "install mmdet, mmseg, mmpretrain and others; compile mmcv's ops"
    with step(f'5/6] {what} (about 2 minutes on 2 cores, once)'):
        install_mmcv(CPU_OPS.exists(), lambda: install_required(extras))
        pip('--no-build-isolation', '-e', f'{ROOT}[{",".join(extras)}]')  # all of it, with mmcv
    with step('6/6] import everything'):
        # At once, which is quick; where that fails, doctor.py imports part by part and names it.
        if run_python('\n'.join(code for code, *_ in doctor.PARTS.values()))[0]:
            run(PYTHON, ROOT / 'tools' / 'doctor.py')
    STAMP.write_text(current_stamp())


def main(argv=None):
    """Make the environment unless it is ready; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0].replace('`', ''),
        epilog='examples:\n  python3.12 tools/setup_env.py --dev\n  tools/setup_env.py --cpu-ops',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = (
        "compile mmcv's ops for the CPU only, also on a machine with a GPU; to undo it: "
        'rm .venv/cpu-ops'
    )
    parser.add_argument('--cpu-ops', action='store_true', help=text)
    text = 'also install what the tests, the checks of style and the documentation need'
    parser.add_argument('--dev', action='store_true', help=text)
    options = parser.parse_args(argv)
    start = time.time()
    try:
        is_ready = PYTHON.exists() and STAMP.is_file() and STAMP.read_text() == current_stamp()
        if not is_ready or (options.dev and not DEV.exists()):
            set_up(options.cpu_ops, options.dev)
    except SetupError as error:
        print(f'\nSet-up stopped: {error}\nWhat to do: {error.fix}', file=sys.stderr)
        print('Then make setup continues; after rm -rf .venv, from nothing.', file=sys.stderr)
        if LOG.is_file():
            print(f'Full log: {LOG.relative_to(ROOT)}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nSet-up interrupted; make setup continues from here.', file=sys.stderr)
        return 130
    print(f'environment ready ({time.time() - start:.1f} s)')
    return 0


if __name__ == '__main__':
    sys.exit(main())
