#!/usr/bin/env python3
"""Make ``.venv`` with the tested versions, from nothing; at once when that is already done.

Run by the system's Python, so it uses the standard library only::

    python3 tools/setup_env.py [--cpu-ops]

Versions come from ``constraints.txt``, dependencies from ``setup.py``. The full output of every
step is kept in ``.venv/setup.log``. Exit code 0: the environment is ready; 1: a step failed, and
the last lines say which, why, and what to do.
"""

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
LOG = VENV / 'setup.log'
STAMP = VENV / 'setup.stamp'
# Remembers that CPU-only ops were asked for on a machine with a GPU.
CPU_OPS = VENV / 'cpu-ops'
# Compiled wheels of mmcv, by what they depend on: a second checkout does not compile again.
WHEELS = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'cyclemlp_mm' / 'wheels'

# The Python versions for which every pin has wheels (mmcv and the toolboxes are source packages).
OLDEST, NEWEST = (3, 10), (3, 13)

# What the finished environment must be able to import. The toolboxes' apis pull in most of them.
MODULES = (
    'torch',
    'torchvision',
    'mmcv.ops',
    'mmdet.apis',
    'mmseg.apis',
    'mmpretrain.apis',
    'cyclemlp_mm',
)

# What an error text means, for those seen with this stack: (pattern, what to do).
HINTS = (
    (
        r'lib(GL|gthread-2\.0|glib-2\.0|xcb|X11|SM|ICE)\.so',
        'OpenCV lacks system libraries; on Debian or Ubuntu: apt install libgl1 libglib2.0-0',
    ),
    (
        r'torchvision::nms does not exist',
        'torch and torchvision do not match: rm -rf .venv, then make setup',
    ),
    (
        r"No module named 'mmcv\._ext'|mmcv/_ext\S*: undefined symbol",
        "mmcv's ops are missing or compiled for another torch: rm -rf .venv, then make setup",
    ),
    (
        r'No space left on device',
        'the disk is full; the environment needs about 9 GB, a part of it in the temporary folder',
    ),
    (
        r'Python\.h: No such file',
        "Python's headers are missing; on Debian or Ubuntu: apt install python3-dev",
    ),
    (
        r'(c\+\+|g\+\+|cc1plus).*(Killed|out of memory)|Killed signal terminated program cc1plus',
        'the compiler ran out of memory: MAX_JOBS=1 make setup',
    ),
    (
        r'Temporary failure in name resolution|NewConnectionError|Connection (refused|timed out)'
        r'|[Nn]o matching distribution',
        "pip's index was not reached, or lacks a version of constraints.txt (PyPI has them all): "
        'check the network and pip config list',
    ),
)


class SetupError(Exception):
    """A step that failed: what, and what to do about it."""

    def __init__(self, what, fix=''):
        super().__init__(what)
        self.what, self.fix = what, fix


# Decisions: no side effects, tested one by one.


def python_problem(version, has_venv=True):
    """Why this Python (major, minor) cannot make the environment, as a SetupError, or None."""
    name = '.'.join(map(str, version[:2]))
    if not OLDEST <= version[:2] <= NEWEST:
        span = f'{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}'
        return SetupError(
            f'Python {name} cannot be used: the pinned versions have wheels for {span}',
            'name another one: make setup PYTHON=python3.12',
        )
    if not has_venv:
        return SetupError(
            f'Python {name} lacks the venv or the ensurepip module',
            f'on Debian or Ubuntu: apt install python{name}-venv (or python3-venv)',
        )
    return None


def compile_problem(compiler, headers):
    """What is missing to compile mmcv's ops, as a SetupError, or None.

    Args:
        compiler (str | None): The C++ compiler's path.
        headers (bool): Whether Python's C headers are there.
    """
    if not compiler:
        return SetupError(
            "no C++ compiler ($CXX, c++ or g++) to compile mmcv's ops with",
            'on Debian or Ubuntu: apt install build-essential',
        )
    if not headers:
        return SetupError(
            "Python's C headers (Python.h) are missing; mmcv's ops are compiled against them",
            'on Debian or Ubuntu: apt install python3-dev',
        )
    return None


def gpu_problem(driver_sees, torch_sees, torch_cuda, nvcc, nvcc_release):
    """Why ops for this machine's GPU cannot be compiled, or None (also without a GPU).

    Args:
        driver_sees (bool): Whether nvidia-smi lists a GPU.
        torch_sees (bool): ``torch.cuda.is_available()``, which mmcv's build goes by.
        torch_cuda (str | None): ``torch.version.cuda``.
        nvcc (str | None): nvcc's path.
        nvcc_release (str | None): Its version, such as '13.0'.
    """
    if not (driver_sees or torch_sees):
        return None
    cpu = 'or go without the GPU in mmcv (torch still uses it): make setup SETUP_FLAGS=--cpu-ops'
    if not torch_cuda:
        return SetupError(
            'there is a GPU, but the installed torch is a CPU-only build',
            f'point pip at an index with the CUDA builds of torch, rm -rf .venv, make setup; {cpu}',
        )
    major = torch_cuda.split('.')[0]
    install = (
        f'install the CUDA toolkit {major}.x (any {major}.x; torch here is built for {torch_cuda}) '
        f'and put its nvcc on PATH, or set CUDA_HOME to its folder; {cpu}'
    )
    if not nvcc:
        return SetupError("there is a GPU, but no nvcc to compile mmcv's CUDA ops with", install)
    if nvcc_release is None:
        return SetupError(f'{nvcc} --version does not print its version', install)
    if nvcc_release.split('.')[0] != major:
        return SetupError(
            f'{nvcc} is CUDA {nvcc_release}, but torch is built for CUDA {torch_cuda}', install
        )
    if not torch_sees:
        return SetupError(
            f'nvidia-smi lists a GPU, but torch (CUDA {torch_cuda}) cannot use it; '
            'mostly the driver is too old',
            f'install a driver for CUDA {major}; {cpu}',
        )
    return None


def nvcc_release(text):
    """The version in nvcc's ``--version`` text ('13.0'), or None."""
    found = re.search(r'release (\d+\.\d+)', text)
    return found.group(1) if found else None


def hint_for(text):
    """What to do about an error text, or '' where nothing is known about it."""
    return next((fix for pattern, fix in HINTS if re.search(pattern, text)), '')


def fingerprint(parts):
    """A hash over texts or bytes; the order and the borders between them count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(b'%d:' % len(data) + data)
    return digest.hexdigest()


def tail(text, lines=15):
    """The last lines of a text that are not blank."""
    return '\n'.join([line for line in text.splitlines() if line.strip()][-lines:])


def merge_sources(source):
    """Make one translation unit of mmcv's 58 files that bind its ops to PyTorch.

    Each of them reads all of PyTorch's headers, 7 s of CPU before its first own line; read once,
    they compile in a sixth of the time. Their contents are unchanged. The files of
    ``pytorch/cpu`` define the same names, so they stay apart.

    Args:
        source (Path): mmcv's unpacked source package.
    """
    folder = source / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    names = sorted(path.name for path in folder.glob('*.cpp'))
    parts = folder / 'parts'
    parts.mkdir()
    for name in names:
        (folder / name).rename(parts / f'{name}.inc')
    includes = ''.join(f'#include "parts/{name}.inc"\n' for name in names)
    (folder / 'all_ops.cpp').write_text(includes)


# Looking at the machine and the environment.


def environment():
    """The variables for pip and the build: nothing from outside leaks into the environment."""
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
    env.update(PIP_DISABLE_PIP_VERSION_CHECK='1', PIP_NO_INPUT='1', PIP_USER='0')
    # ninja and others come from the environment; the rest of PATH follows.
    env['PATH'] = f'{PYTHON.parent}{os.pathsep}{env.get("PATH", os.defpath)}'
    # One compiler per core, but no more than memory serves (2 GB each).
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    jobs = max(1, min(len(os.sched_getaffinity(0)), memory // 2**31))
    env.setdefault('MAX_JOBS', str(jobs))
    return env


def ask(command, timeout=None):
    """Run a command quietly; returns its exit code (127: cannot be started) and its output."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            env=environment(),
            cwd=VENV if VENV.is_dir() else None,  # so that no folder of the project is imported
            timeout=timeout,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout


def current_stamp():
    """The hash of all that decides what the environment holds, its place included (a moved
    checkout needs its editable install renewed)."""
    files = [ROOT / 'constraints.txt', ROOT / 'setup.py', Path(__file__), VENV / 'pyvenv.cfg']
    contents = [path.read_bytes() for path in files if path.is_file()]
    return fingerprint([str(ROOT), str(CPU_OPS.exists()), *contents])


def is_ready():
    """Whether an earlier run finished and nothing has changed since."""
    return PYTHON.exists() and STAMP.is_file() and STAMP.read_text() == current_stamp()


def find_nvcc():
    """nvcc's path where torch's build would look for it, or None."""
    homes = [os.environ.get('CUDA_HOME'), os.environ.get('CUDA_PATH')]
    for home in filter(None, homes):
        return shutil.which('nvcc', path=os.path.join(home, 'bin'))
    return shutil.which('nvcc') or shutil.which('nvcc', path='/usr/local/cuda/bin')


def find_compiler():
    """The C++ compiler's path, or None."""
    names = os.environ.get('CXX', 'c++ g++').split()
    return next(filter(None, map(shutil.which, names)), None)


def torch_state():
    """The environment's torch: its version, the CUDA version it is built for or None, and whether
    it can use a GPU."""
    code = 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())'
    failed, out = ask([PYTHON, '-W', 'ignore', '-c', code])
    if failed:
        raise SetupError(f'torch does not import:\n{tail(out)}', hint_for(out))
    version, cuda, sees = out.split()[-3:]
    return version, (None if cuda == 'None' else cuda), sees == 'True'


def check_gpu():
    """Whether there is a GPU to compile mmcv's ops for; raises where that cannot be done."""
    code, listed = ask(['nvidia-smi', '-L'], timeout=60)
    _, cuda, torch_sees = torch_state()
    nvcc = find_nvcc()
    release = nvcc_release(ask([nvcc, '--version'])[1]) if nvcc else None
    problem = gpu_problem(code == 0 and 'GPU' in listed, torch_sees, cuda, nvcc, release)
    if problem:
        raise problem
    return torch_sees


def ops_state():
    """What mmcv's ops are in the environment: 'none', 'cpu' or 'cuda'."""
    code = 'import mmcv.ops as ops; print(ops.get_compiling_cuda_version())'
    failed, out = ask([PYTHON, '-c', code])
    if failed:
        return 'none'
    return 'cpu' if out.split()[-2:] == ['not', 'available'] else 'cuda'


def pin(name):
    """The version of a distribution in constraints.txt."""
    text = (ROOT / 'constraints.txt').read_text()
    return re.search(rf'^{re.escape(name)}==(\S+)', text, re.MULTILINE).group(1)


def venv_version():
    """Major and minor version of the environment's Python, as texts; zeros where it is broken."""
    failed, out = ask([PYTHON, '-c', 'import sys; print(*sys.version_info[:2])'])
    return ['0', '0'] if failed else out.split()


# Steps.


class Steps:
    """Runs the steps one by one, and prints what is going on and for how long."""

    def __init__(self, total):
        self.total, self.number = total, 0

    def start(self, title):
        """Begin a step: its line on the screen."""
        self.number += 1
        self.begun = time.time()
        print(f'[{self.number}/{self.total}] {title} ...', flush=True)

    def done(self, word='done in'):
        """End the step with the time it took."""
        print(f'      {word} {time.time() - self.begun:.0f} s', flush=True)

    def run(self, command, what, env=None, folder=None):
        """Run a command with its output in the log.

        Args:
            command (list): The command.
            what (str): What it does, for the error message.
            env (dict, optional): More variables. Defaults to None.
            folder (Path, optional): Where it runs. Defaults to ``.venv``.
        """
        command = [str(part) for part in command]
        with LOG.open('a+', encoding='utf-8', errors='replace') as log:
            log.write(f'\n$ {" ".join(command)}\n')
            log.flush()
            begin, announced = log.tell(), time.time()
            process = subprocess.Popen(
                command,
                cwd=folder or VENV,
                env={**environment(), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    if time.time() - announced > 60:
                        announced = time.time()
                        elapsed = announced - self.begun
                        print(f'      still running after {elapsed:.0f} s', flush=True)
            finally:
                if process.poll() is None:  # interrupted: no compiler stays behind
                    process.terminate()
                    process.wait()
            log.seek(begin)
            output = log.read()
        if process.returncode:
            raise SetupError(
                f'{what} failed (exit code {process.returncode}):\n{tail(output)}', hint_for(output)
            )

    def pip(self, *arguments, what, command='install', **options):
        """Run the environment's pip under the constraints."""
        pip = [PYTHON, '-m', 'pip', command, '-c', ROOT / 'constraints.txt']
        self.run([*pip, *arguments], what, **options)


def make_venv(steps):
    """Create ``.venv``; again where its Python does not run or is one the pins do not serve."""
    steps.start('make .venv')
    if PYTHON.exists() and python_problem(tuple(map(int, venv_version()))) is None:
        return steps.done('kept, after')
    has_venv = all(map(importlib.util.find_spec, ('venv', 'ensurepip')))
    problem = python_problem(sys.version_info[:2], has_venv)
    if problem:
        raise problem
    code, out = ask([sys.executable, '-m', 'venv', '--clear', VENV])
    if code:
        raise SetupError(f'python -m venv failed:\n{tail(out)}', hint_for(out))
    steps.done()


def install_build_tools(steps):
    """pip and what builds mmcv: a new environment's setuptools is too old for its pyproject."""
    steps.start('install pip and the build tools')
    steps.pip('--upgrade', 'pip', what='updating pip')
    steps.pip('setuptools', 'wheel', 'packaging', 'ninja', 'psutil', what='installing build tools')
    steps.done()


def install_torch(steps):
    """torch first: mmcv compiles against it, and without it silently leaves its ops out."""
    steps.start('install torch and torchvision (about 1 minute)')
    steps.pip('torch', 'torchvision', 'numpy', what='installing torch')
    steps.done()


def install_opencv(steps):
    """Both packages of OpenCV, the one without a window system last.

    mmcv and mmseg require opencv-python, and imaug (through mmdet) opencv-python-headless as well;
    both write the same ``cv2`` folder, and whichever comes last wins. opencv-python's loads Qt and
    so libGL, libglib and libxcb, which a bare machine or container lacks; nothing here opens a
    window but mmcv's ``imshow``. Both stay registered at one version, so ``pip check`` is content
    and no later step touches them.
    """
    steps.start('install OpenCV, the build that needs no display libraries')
    steps.pip('opencv-python', 'opencv-python-headless', what='installing OpenCV')
    _, headless = ask([PYTHON, '-c', 'import cv2.version; print(cv2.version.headless)'])
    if headless.strip() != 'True':
        again = ('--force-reinstall', '--no-deps', 'opencv-python-headless')
        steps.pip(*again, what='installing OpenCV')
    steps.done()


def install_mmcv(steps, cpu_ops):
    """mmcv with its ops, from the kept wheel of an earlier compilation where there is one.

    What counts is what can be imported: a wheel whose ops do not load is compiled again.
    """
    steps.start('install mmcv and compile its ops (about 2 minutes on 2 cores, once)')
    state = ops_state()
    gpu = state != 'cuda' and not cpu_ops and check_gpu()
    wanted = ('cuda',) if gpu else ('cpu', 'cuda')
    if state in wanted:
        return steps.done('already there, after')
    kept = wheel_folder(gpu)
    for wheel in kept.glob('*.whl'):
        if install_wheel(steps, wheel) in wanted:
            return steps.done('from the wheel of an earlier set-up, after')
    compile_mmcv(steps, kept, gpu)
    if install_wheel(steps, next(kept.glob('*.whl'))) not in wanted:
        shutil.rmtree(kept)
        _, out = ask([PYTHON, '-c', 'import mmcv.ops'])
        raise SetupError(
            f'mmcv was built, but not with {"CUDA " if gpu else ""}ops that load:\n{tail(out)}',
            hint_for(out),
        )
    steps.done()


def wheel_folder(gpu):
    """Where mmcv's wheel is kept for this Python, torch and kind of ops."""
    python, (torch, cuda, _) = ''.join(venv_version()), torch_state()
    kind = f'cuda{cuda}' if gpu else 'cpu'
    return WHEELS / f'mmcv{pin("onedl-mmcv")}-cp{python}-torch{torch}-{kind}'


def install_wheel(steps, wheel):
    """Install mmcv from a wheel; returns :func:`ops_state` after it."""
    steps.pip('--force-reinstall', '--no-deps', wheel, what='installing mmcv')
    steps.pip(wheel, what='installing what mmcv needs')
    return ops_state()


def compile_mmcv(steps, kept, gpu):
    """Compile mmcv's source package into a wheel, and put it into ``kept``."""
    name = 'onedl-mmcv'
    # Without debug symbols (-g of Python's own flags) the library is a fortieth of the size.
    env = {flags: f'{os.environ.get(flags, "")} -g0'.strip() for flags in ('CFLAGS', 'CXXFLAGS')}
    if not gpu:  # mmcv compiles CUDA ops when torch sees a GPU: hide it where they are not wanted
        env.update(CUDA_VISIBLE_DEVICES='', FORCE_CUDA='0')
    options = dict(what="compiling mmcv's ops", env=env)
    build = ('--no-deps', '--no-build-isolation')
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        steps.pip(*build, '--no-binary', name, '-d', folder, name, command='download', **options)
        with tarfile.open(next(folder.glob('*.tar.gz'))) as package:
            package.extractall(folder / 'source')
        [source] = (folder / 'source').iterdir()
        if not gpu:
            merge_sources(source)
        steps.pip(*build, '-w', folder / 'wheel', source, command='wheel', **options)
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for wheel in (folder / 'wheel').glob('*.whl'):
            shutil.copy(wheel, kept / f'{wheel.name}.part')
            (kept / f'{wheel.name}.part').rename(kept / wheel.name)


def install_project(steps):
    """The toolboxes, the development tools, and this package from its folder."""
    steps.start('install mmdet, mmseg, mmpretrain, the test tools and this package')
    extras = f'{ROOT}[all,dev,docs]'
    steps.pip('--no-build-isolation', '-e', extras, what='installing the toolboxes')
    steps.done()


def check_imports(steps):
    """Import every part in a process of its own, so that one failure hides no other."""
    steps.start('import check')
    broken = []
    for module in MODULES:
        top = module.split('.')[0]
        code = f'import {module}, {top}; print({top}.__version__)'
        failed, out = ask([PYTHON, '-W', 'ignore', '-c', code])
        last = tail(out, 1)
        print(f'      {module:<16} {"BROKEN: " + last if failed else last}', flush=True)
        if failed:
            broken.append((module, out))
    if broken:
        names = ', '.join(module for module, _ in broken)
        text = '\n'.join(tail(out) for _, out in broken)
        raise SetupError(f'the environment does not import {names}:\n{text}', hint_for(text))
    steps.done()


def check_machine():
    """Raise at once for what would stop the set-up only after the downloads."""
    if ops_state() != 'none':
        return
    headers = Path(sysconfig.get_path('include'), 'Python.h').is_file()
    problem = compile_problem(find_compiler(), headers)
    if problem:
        raise problem


def set_up(cpu_ops):
    """Run all the steps, and leave the stamp when every one of them worked."""
    STAMP.unlink(missing_ok=True)
    steps = Steps(total=7)
    make_venv(steps)
    LOG.write_text('')
    check_machine()
    if cpu_ops:
        CPU_OPS.touch()
    install_build_tools(steps)
    install_torch(steps)
    install_opencv(steps)
    install_mmcv(steps, CPU_OPS.exists())
    install_project(steps)
    check_imports(steps)
    STAMP.write_text(current_stamp())


def main(arguments=None):
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='examples:\n'
        '  python3.12 tools/setup_env.py\n'
        '  tools/setup_env.py --cpu-ops     # although there is a GPU\n',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--cpu-ops',
        action='store_true',
        help="compile mmcv's ops for the CPU only, although there is a GPU (kept for later runs; "
        'undone by removing .venv/cpu-ops)',
    )
    options = parser.parse_args(arguments)
    begun = time.time()
    try:
        if not is_ready():
            set_up(options.cpu_ops)
    except SetupError as error:
        print(f'\nSet-up stopped: {error.what}', file=sys.stderr)
        print(f'What to do: {error.fix or "see the log, then make setup again"}', file=sys.stderr)
        if LOG.is_file():
            print(f'Full log: {LOG.relative_to(ROOT)}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nSet-up interrupted; make setup continues from here.', file=sys.stderr)
        return 130
    print(f'environment ready ({time.time() - begun:.1f} s)')
    return 0


if __name__ == '__main__':
    sys.exit(main())
