#!/usr/bin/env python
"""Check the installation: versions, matching builds, mmcv's ops, GPU; print how to fix problems.

Needs nothing but Python: every part is imported in a process of its own, so that a broken one is
reported and hides no other.
"""

import argparse
import importlib.metadata
import re
import subprocess
import sys

PAIR = 'pip install --force-reinstall torch torchvision  (as a pair, from one index)'
MMCV = (
    "pip install 'setuptools>=80,<82' wheel ninja psutil && pip install --no-build-isolation "
    '--no-cache-dir --force-reinstall --no-deps onedl-mmcv  (torch first; about 7 minutes)'
)
NUMPY = "pip install 'numpy<2'  (torch before 2.3), or a newer torch"
#: How to fix what an error text means, for those seen with this stack; set-up uses them, too.
HINTS = (
    (
        r'lib(GL|gthread-2\.0|glib-2\.0|xcb|X11|SM|ICE)\.so',
        'pip install --force-reinstall --no-deps opencv-python-headless',
    ),
    (r'torchvision::nms does not exist', PAIR),
    (r'mmcv[./]_ext|undefined symbol.*(c10|torch)', MMCV),
    (r'MMCV==\S+ is used but incompatible', 'pip install the mmcv that the message names'),
    (r'/transformers/|NoneType takes no arguments', "pip install 'transformers<5'"),
    (r"No module named '(ftfy|regex)'", 'pip install ftfy regex'),
    (r'Numpy is not available|_ARRAY_API not found', NUMPY),
    (r"No module named 'pkg_resources'", "pip install 'setuptools<82'"),
    (r'No space left on device', 'make room: the environment needs 9 GB, a part of it in /tmp'),
    (
        r'No module named .?(venv|ensurepip)|ensurepip is not available',
        'on Debian or Ubuntu: apt install python3-venv, or that of your version: python3.12-venv',
    ),
    (
        r'(\+\+|cc1plus).*(Killed|out of memory)|Killed signal terminated program cc1plus',
        'the compiler ran out of memory: MAX_JOBS=1 make setup',
    ),
    (
        r'failure in name resolution|ConnectionError|Connection (refused|timed out)'
        r'|[Nn]o matching distribution',
        "check the network and pip config list: pip's index was not reached, or lacks a version of "
        'constraints.txt (PyPI has them all)',
    ),
)
TOOLBOX = (
    'import {0}, {0}.apis, {0}.datasets, {0}.engine, {0}.evaluation, {0}.models, '
    '{0}.visualization; print({0}.__version__)'
)
#: Each part with the code that is run, the extra that needs it, and the usual fix.
PARTS = {
    'torch': ('import torch; print(torch.__version__)', '', "pip install 'torch>=2.1'"),
    'torchvision': (
        'import torch, torchvision; torch.ops.torchvision.nms; print(torchvision.__version__)',
        '',
        PAIR,
    ),
    'numpy': ('import numpy, torch; torch.zeros(1).numpy(); print(numpy.__version__)', '', NUMPY),
    'mmengine': ('import mmengine; print(mmengine.__version__)', '', 'pip install onedl-mmengine'),
    'mmcv': ('import mmcv; print(mmcv.__version__)', 'det, seg, cls', MMCV),
    "mmcv's ops": (
        'import mmcv.ops as ops; cuda = ops.get_compiling_cuda_version(); '
        'print("CPU only" if "not" in str(cuda) else "with CUDA")',
        'det, seg',
        MMCV,
    ),
    'mmdet': (TOOLBOX.format('mmdet'), 'det', "pip install 'cyclemlp_mm[det]'"),
    'mmseg': (TOOLBOX.format('mmseg'), 'seg', "pip install 'cyclemlp_mm[seg]'"),
    'mmpretrain': (TOOLBOX.format('mmpretrain'), 'cls', "pip install 'cyclemlp_mm[cls]'"),
    'cyclemlp_mm': (
        'import cyclemlp_mm.engine, cyclemlp_mm.models; print(cyclemlp_mm.__version__)',
        '',
        'pip install -e .  (in a checkout)',
    ),
}
#: Distributions that put their files into the same folder: only one of each may be there.
SAME_FOLDER = (
    ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    ('onedl-mmcv', 'mmcv', 'mmcv-full', 'mmcv-lite'),
    ('onedl-mmdetection', 'mmdet'),
    ('onedl-mmsegmentation', 'mmsegmentation'),
    ('onedl-mmpretrain', 'mmpretrain'),
)


def ask(command, **options):
    """Run a command; returns its exit code (127: it cannot be started) and its output."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            **options,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout


def run_python(code, python=sys.executable, **options):
    """Run code in a new process; returns (exit code, last line of its output, all of it)."""
    failed, out = ask([python, '-W', 'ignore', '-c', code], **options)
    return failed, (out.strip().splitlines() or [''])[-1], out


def hint(text):
    """How to fix an error text, or '' where it is not known."""
    return next((fix for pattern, fix in HINTS if re.search(pattern, text)), '')


def has_gpu():
    """Whether the driver lists a GPU."""
    failed, listed = ask(['nvidia-smi', '-L'], timeout=60)
    return not failed and 'GPU' in listed


def check_parts():
    """Import every part; returns (lines, problems)."""
    lines, problems = [], []
    for name, (code, extra, fix) in PARTS.items():
        failed, last, out = run_python(code)
        if failed and extra and f"No module named '{name.split(chr(39))[0]}'" in last:
            last = f'not installed (needed for {extra}): {fix}'
        elif failed:
            last = f'BROKEN: {last[:200]}'
            problems.append((f'{name} does not import', hint(out) or fix))
        lines.append(f'{name:<13} {last}')
    return lines, problems


def check_gpu():
    """Compare torch with the machine's GPU; returns (lines, problems)."""
    failed, last, _ = run_python(
        'import torch; cuda = torch.cuda; print(torch.version.cuda, *(cuda.get_device_name(i) '
        'for i in range(cuda.device_count() * cuda.is_available())), sep="|")'
    )
    if failed:
        return [], []  # torch itself is broken, which was reported
    built, *names = last.split('|')
    if names:
        return [f'GPU           {", ".join(names)} (CUDA {built})'], []
    if not has_gpu():
        return ['GPU           none: everything runs on the CPU'], []
    driver = f'update the driver to one that supports CUDA {built}, or unset CUDA_VISIBLE_DEVICES'
    problem = ('torch does not see the GPU', PAIR if built == 'None' else driver)
    return ['GPU           there, but torch does not see it'], [problem]


def check_distributions(installed):
    """Find distributions that overwrite each other; returns problems."""
    problems = []
    for names in SAME_FOLDER:
        both = [name for name in names if name in installed]
        if len(both) > 1:
            what = f'{" and ".join(both)} are both installed, into the same folder'
            fix = f'pip uninstall -y {" ".join(both)} && pip install {both[0]}'
            problems.append((what, fix))
    return problems


def main(argv=None):
    """Print a line for each part; returns the exit code, 1 where something is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='examples:\n  tools/doctor.py',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    print(f'Python        {sys.version.split()[0]} ({sys.executable})')
    lines, problems = check_parts()
    gpu_lines, gpu_problems = check_gpu()
    installed = {d.metadata['Name'].lower() for d in importlib.metadata.distributions()}
    problems += gpu_problems + check_distributions(installed)
    print('\n'.join(lines + gpu_lines))
    for what, fix in problems:
        print(f'\nproblem: {what}\n   fix: {fix}')
    print(f'\ndoctor: {len(problems) or "no"} problem{"s" * (len(problems) != 1)}')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
