#!/usr/bin/env python
"""Look at the installation: versions, matching builds, mmcv's ops, GPU; say what fixes it.

Needs nothing but Python: every part is imported in a process of its own, so that a broken one is
reported and hides no other.
"""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys

# Each with the code that is run, the extra that needs it, and what fixes it.
PARTS = {
    'torch': ('import torch; print(torch.__version__)', '', "pip install 'torch>=2.1'"),
    'torchvision': (
        'import torch, torchvision; torch.ops.torchvision.nms; print(torchvision.__version__)',
        '',
        'pip install --force-reinstall torch torchvision  (as a pair, from one index)',
    ),
    'numpy': (
        'import numpy, torch; torch.zeros(1).numpy(); print(numpy.__version__)',
        '',
        "pip install 'numpy<2'  (torch before 2.3), or a newer torch",
    ),
    'mmengine': ('import mmengine; print(mmengine.__version__)', '', 'pip install onedl-mmengine'),
    'mmcv': ('import mmcv; print(mmcv.__version__)', 'det, seg, cls', 'MMCV'),
    "mmcv's ops": (
        'import mmcv.ops as o; print("with CUDA" if "not" not in '
        'str(o.get_compiling_cuda_version()) else "CPU only")',
        'det, seg',
        'MMCV',
    ),
    **{
        name: (
            f'import {name}, {name}.apis, {name}.datasets, {name}.engine, {name}.evaluation, '
            f'{name}.models, {name}.visualization; print({name}.__version__)',
            extra,
            f"pip install 'cyclemlp_mm[{extra}]'",
        )
        for name, extra in (('mmdet', 'det'), ('mmseg', 'seg'), ('mmpretrain', 'cls'))
    },
    'cyclemlp_mm': (
        'import cyclemlp_mm.engine, cyclemlp_mm.models; print(cyclemlp_mm.__version__)',
        '',
        'pip install -e .  (in a checkout)',
    ),
}
BUILD_MMCV = (
    "pip install 'setuptools>=80,<82' wheel ninja psutil && pip install --no-build-isolation "
    '--no-cache-dir --force-reinstall --no-deps onedl-mmcv  (torch first; about 7 minutes)'
)
GPU = (
    'import torch; print(json.dumps(dict(built=torch.version.cuda, sees=torch.cuda.is_available(), '
    'names=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())])))'
)
# Distributions that put their files into the same folder: only one of each may be there.
SAME_FOLDER = (
    ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    ('onedl-mmcv', 'mmcv', 'mmcv-full', 'mmcv-lite'),
    ('onedl-mmdetection', 'mmdet'),
    ('onedl-mmsegmentation', 'mmsegmentation'),
    ('onedl-mmpretrain', 'mmpretrain'),
)


def run_python(code):
    """Run code in a new process; returns (exit code, last line of its output, all of it)."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', f'import json; {code}'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
        env={**os.environ, 'PYTHONWARNINGS': 'ignore'},
    )
    lines = done.stdout.strip().splitlines() or ['']
    return done.returncode, lines[-1], done.stdout


def check_parts():
    """Import every part; returns (lines, problems)."""
    lines, problems = [], []
    for name, (code, extra, fix) in PARTS.items():
        failed, last, out = run_python(code)
        fix = BUILD_MMCV if fix == 'MMCV' else fix
        if not failed:
            lines.append(f'{name:<13} {last}')
            continue
        if 'No module named' in last and extra and f"'{name.split(chr(39))[0]}'" in last:
            lines.append(f'{name:<13} not installed (needed for {extra}): {fix}')
            continue
        reason = last if len(last) < 200 else last[:200] + '…'
        lines.append(f'{name:<13} BROKEN: {reason}')
        problems.append((f'{name} does not import', hint(out) or fix))
    return lines, problems


def hint(output):
    """What fixes an error that is known, or None."""
    for pattern, fix in (
        (
            r'operator torchvision::nms does not exist',
            'pip install --force-reinstall torch torchvision  (as a pair, from one index)',
        ),
        (r'mmcv\._ext|undefined symbol.*(?:c10|torch)', BUILD_MMCV),
        (r'MMCV==(\S+) is used but incompatible', 'pip install the mmcv that the message names'),
        (r'/transformers/|NoneType takes no arguments', "pip install 'transformers<5'"),
        (r"No module named '(ftfy|regex)'", 'pip install ftfy regex'),
        (r'libGL\.so', 'pip install --force-reinstall --no-deps opencv-python-headless'),
        (r'Numpy is not available|_ARRAY_API not found', "pip install 'numpy<2'"),
        (r"No module named 'pkg_resources'", "pip install 'setuptools<82'"),
    ):
        if re.search(pattern, output):
            return fix
    return None


def check_gpu():
    """torch against the machine's GPU; returns (lines, problems)."""
    failed, last, _ = run_python(GPU)
    if failed:
        return [], []  # torch itself is broken, which was said
    state = json.loads(last)
    try:
        listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, timeout=60)
        has_gpu = listed.returncode == 0 and 'GPU' in listed.stdout
    except (OSError, subprocess.TimeoutExpired):
        has_gpu = False
    if state['sees']:
        return [f'GPU           {", ".join(state["names"])} (CUDA {state["built"]})'], []
    if not has_gpu:
        return ['GPU           none: everything runs on the CPU'], []
    fix = (
        'pip install --force-reinstall torch torchvision'
        if state['built'] is None
        else f'update the driver to one that supports CUDA {state["built"]}, or unset '
        'CUDA_VISIBLE_DEVICES'
    )
    problem = ('torch does not see the GPU', fix)
    return ['GPU           there, but torch does not see it'], [problem]


def check_distributions(installed):
    """Distributions that overwrite each other; returns problems."""
    problems = []
    for names in SAME_FOLDER:
        both = [name for name in names if name in installed]
        if len(both) > 1:
            problems.append(
                (
                    f'{" and ".join(both)} are both installed, into the same folder',
                    f'pip uninstall -y {" ".join(both)} && pip install {both[0]}',
                )
            )
    return problems


def main(argv=None):
    """The command; returns the exit code: 0, or 1 where something is broken."""
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
