#!/usr/bin/env python
"""Check the installation: versions, matching builds, mmcv's ops, GPU; print how to fix problems.

Every part is imported in its own process, so that a broken one does not hide others.
"""

import argparse
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HEADLESS = 'pip install --force-reinstall --no-deps opencv-python-headless'
PAIR = 'pip install --force-reinstall torch torchvision  (as a pair, from one index)'
MMCV = (
    "pip install 'setuptools>=80,<82' wheel ninja psutil && pip install --no-build-isolation "
    '--no-cache-dir --force-reinstall --no-deps onedl-mmcv  (torch first; about 7 minutes)'
)
MMENGINE = 'pip install onedl-mmengine  (beside the original mmcv or mmdet: pip install mmengine)'
NUMPY = "pip install 'numpy<2'  (torch before 2.3), or a newer torch"
MEMORY = 'the compiler ran out of memory: MAX_JOBS=1 make setup'
VENV = 'on Debian or Ubuntu: apt install python3-venv, or python3.12-venv for Python 3.12'
NETWORK = "check the network and pip config list: pip's index lacks a pinned version or is down"
OFFLINE = (
    r'failure in name resolution|ConnectionError|Connection (refused|timed out)'
    r'|[Nn]o matching distribution'
)
#: How to fix what a pattern of the error text means, also for set-up.
HINTS = {
    r'lib(GL|gthread-2\.0|glib-2\.0|xcb|X11|SM|ICE)\.so': HEADLESS,
    r'torchvision::nms does not exist': PAIR,
    r'mmcv[./]_ext|undefined symbol.*(c10|torch)': MMCV,
    r'MMCV==\S+ is used but incompatible': 'pip install the mmcv that the message names',
    r'/transformers/|NoneType takes no arguments': "pip install 'transformers<5'",
    r"No module named '(ftfy|regex)'": 'pip install ftfy regex',
    r'Numpy is not available|_ARRAY_API not found': NUMPY,
    r"No module named 'pkg_resources'": "pip install 'setuptools<82'",
    r'No space left on device': 'make room: the environment needs 9 GB, a part of it in /tmp',
    r'No module named .?(venv|ensurepip)|ensurepip is not available': VENV,
    r'(\+\+|cc1plus).*(Killed|out of memory)|Killed signal terminated program cc1plus': MEMORY,
    OFFLINE: NETWORK,
}
OPS = (
    'from mmcv.ops import get_compiling_cuda_version as cuda; '
    'v = "CPU only" if "not" in str(cuda()) else "with CUDA"; print(v)'
)
PACKAGE = 'from {0} import __version__ as v; print(v)'
TOOLBOX = 'from {0} import apis, datasets, engine, evaluation, models, visualization; ' + PACKAGE
#: Each part with the code that is run, the extra that needs it, and the usual fix; without one,
#: pip installs that extra.
PARTS = {
    'torch': (PACKAGE, '', "pip install 'torch>=2.1'"),
    'torchvision': ('import {0}, torch; torch.ops.{0}.nms; ' + PACKAGE, '', PAIR),
    'numpy': ('import torch; torch.zeros(1).numpy(); ' + PACKAGE, '', NUMPY),
    'mmengine': (PACKAGE, '', MMENGINE),
    'mmcv': (PACKAGE, 'det, seg, cls', MMCV),
    "mmcv's ops": (OPS, 'det, seg', MMCV),
    'mmdet': (TOOLBOX, 'det', ''),
    'mmseg': (TOOLBOX, 'seg', ''),
    'mmpretrain': (TOOLBOX, 'cls', ''),
    'cyclemlp_mm': (
        'import {0}.engine, {0}.models; ' + PACKAGE,
        '',
        'pip install -e .  (in a checkout)',
    ),
}
PARTS = {name: (code.format(name), *rest) for name, (code, *rest) in PARTS.items()}
LINEAGES = {
    'maintained': 'the maintained packages (onedl-*)',
    'original': 'the original packages (mmengine, mmcv, ...)',
    'mixed': 'packages of both lineages: onedl-* and the original ones',
    'none': 'not installed',
}


def ask(command, **options):
    """Run a command; returns its exit code (127: it cannot be started) and its output."""
    settings = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
    try:
        done = subprocess.run(command, **settings, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout


def run_python(code, python=sys.executable, **options):
    """Run code in a new process; returns (exit code, last line of its output, all of it)."""
    failed, out = ask([python, '-W', 'ignore', '-c', code], **options)
    return failed, (out.strip().splitlines() or [''])[-1], out


def hint(text):
    """How to fix an error text, or '' where it is not known."""
    return next((fix for pattern, fix in HINTS.items() if re.search(pattern, text)), '')


def has_gpu():
    """Whether the driver lists a GPU."""
    failed, listed = ask(['nvidia-smi', '-L'], timeout=60)
    return not failed and 'GPU' in listed


def check_parts(requirement):
    """Import every part, two at a time, and print a line for each; returns problems."""
    problems = []
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(run_python, [code for code, *_ in PARTS.values()])
        for (name, (_, extra, fix)), (failed, last, out) in zip(PARTS.items(), results):
            fix = fix or f'pip install {requirement(extra)}'
            module = name.partition("'")[0]
            if failed and extra and f"No module named '{module}'" in last:
                last = f'not installed (needed for {extra}): {fix}'
            elif failed:
                last = f'BROKEN: {last[:200]}'
                problems.append((f'{name} does not import', hint(out) or fix))
            print(f'{name:<13} {last}', flush=True)
    return problems


def check_gpu():
    """Compare torch with the machine's GPU and print a line; returns problems."""
    failed, last, _ = run_python(
        'import torch; cuda = torch.cuda; print(torch.version.cuda, *(cuda.get_device_name(i) '
        'for i in range(cuda.device_count() * cuda.is_available())), sep="|")'
    )
    if failed:
        return []  # torch itself is broken, which was reported
    built, *names = last.split('|')
    if names:
        print(f'GPU           {", ".join(names)} (CUDA {built})')
    elif not has_gpu():
        print('GPU           none: everything runs on the CPU')
    else:
        print('GPU           there, but torch does not see it')
        driver = f'update the driver to one for CUDA {built}, or unset CUDA_VISIBLE_DEVICES'
        return [('torch does not see the GPU', PAIR if built == 'None' else driver)]
    return []


def read_openmmlab():
    """The content of ``cyclemlp_mm/openmmlab.py``; importing the package needs mmengine."""
    here = Path(__file__).resolve().parents[1]  # a checkout, or .mim in an installed package
    places = here / 'cyclemlp_mm' / 'openmmlab.py', here.parent / 'openmmlab.py'
    return runpy.run_path(str(next(path for path in places if path.is_file())))


def main(argv=None):
    """Print a line for each part; returns the exit code, 1 where something is broken."""
    settings = dict(epilog='examples:\n  tools/doctor.py', description=__doc__)
    form = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(formatter_class=form, **settings).parse_args(argv)
    print(f'Python        {sys.version.split()[0]} ({sys.executable})')
    openmmlab = read_openmmlab()
    print(f'OpenMMLab     {LINEAGES[openmmlab["lineage"]()]}', flush=True)
    problems = [found] if (found := openmmlab['conflict']()) else []
    problems += check_parts(openmmlab['requirement']) + check_gpu()
    for what, fix in problems:
        print(f'\nproblem: {what}\n   fix: {fix}')
    print(f'\ndoctor: {len(problems) or "no"} problem{"s" * (len(problems) != 1)}')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
