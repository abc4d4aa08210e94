"""What the imports of the package do, and what they leave as it was."""

import subprocess
import sys
from pathlib import Path

import cyclemlp_mm

PACKAGE = Path(cyclemlp_mm.__file__).parent


def run(code):
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_registers_names_and_changes_nothing_else():
    run(
        'import sys, warnings\n'
        'import torch\n'
        'import mmengine.fileio, mmengine.infer, mmengine.registry, mmengine.runner\n'
        'from mmengine.fileio import backends\n'
        'from mmengine.registry import DATASETS, HOOKS, LOOPS, METRICS, MODELS, TRANSFORMS\n'
        'from mmengine.runner import CheckpointLoader\n'
        'HOOKS.get("LoggerHook"), LOOPS.get("ValLoop")\n'  # their locations are imported
        'registries = DATASETS, HOOKS, LOOPS, METRICS, TRANSFORMS\n'
        'def state():\n'
        '    return (dict(CheckpointLoader._schemes), dict(vars(mmengine.infer.BaseInferencer)),\n'
        '            list(warnings.filters), dict(backends.registry_utils.backends),\n'
        '            [set(r.module_dict) for r in registries])\n'
        'before, names = state(), set(MODELS.module_dict)\n'
        'import cyclemlp_mm\n'
        'assert state() == before\n'
        "new = {'CycleMLP', 'MPViT', 'DenseRepMLPNet', 'RepMLPNet', 'SyncBNOrBN'}\n"
        'assert set(MODELS.module_dict) - names == new\n'
    )


def test_the_import_brings_in_mmengines_registry_only():
    heavy = 'torch', 'cv2', 'PIL', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmengine.runner'
    run(
        'import sys, mmengine.registry\n'
        'before = set(sys.modules)\n'
        'import cyclemlp_mm\n'
        f'new = (set(sys.modules) - before) & set({heavy})\n'
        'assert not new, new\n'
    )


def test_a_backbone_needs_torch_and_mmengine_only():
    run(
        'import sys\n'
        "for name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision'):\n"
        '    sys.modules[name] = None\n'
        'import cyclemlp_mm\n'
        'from mmengine.registry import MODELS\n'
        "model = MODELS.build(dict(type='CycleMLP', arch='b1'))\n"
        "assert type(model) is MODELS.get('CycleMLP')\n"
        'import cyclemlp_mm.models\n'
        'assert type(model) is cyclemlp_mm.models.CycleMLP\n'
    )


def test_mmpretrain_is_imported_when_a_repmlp_is_built():
    run(
        'import sys, cyclemlp_mm\n'
        'from mmengine.registry import MODELS\n'
        "assert 'mmpretrain' not in sys.modules\n"
        'arch = dict(channels=[8], depths=[1], sharesets_nums=[1])\n'
        "model = MODELS.build(dict(type='DenseRepMLPNet', arch=arch, out_indices=(0,)))\n"
        "assert type(model) is MODELS.get('DenseRepMLPNet')\n"
    )


def test_without_mmpretrain_a_repmlp_says_what_to_install():
    run(
        "import sys\nsys.modules['mmpretrain'] = None\nimport cyclemlp_mm\n"
        'from mmengine.registry import MODELS\n'
        "try:\n    MODELS.build(dict(type='DenseRepMLPNet'))\n"
        "except ImportError as error:\n    assert 'cyclemlp_mm[cls]' in str(error), error\n"
        "else:\n    raise SystemExit('built')\n"
    )


def test_every_module_can_be_the_first_one_imported():
    """In a process of its own each, forked from one that has imported what we depend on."""
    modules = [
        '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts)
        for path in sorted(PACKAGE.rglob('*.py'))
        if path.name != '__init__.py'  # importing a module imports its package first
    ]
    assert len(modules) > 50
    run(
        'import os, sys, traceback\n'
        'import torch, mmengine.runner, mmdet.apis, mmseg.apis, mmpretrain.apis\n'
        'failed = []\n'
        f'for name in {modules}:\n'
        '    child = os.fork()\n'
        '    if child == 0:\n'
        '        try:\n'
        "            assert 'cyclemlp_mm' not in sys.modules\n"
        '            __import__(name)\n'
        '            os._exit(0)\n'
        '        except BaseException:\n'
        '            traceback.print_exc()\n'
        '            sys.stderr.flush()\n'
        '            os._exit(1)\n'
        '    if os.waitpid(child, 0)[1]:\n'
        '        failed.append(name)\n'
        'sys.exit(f"cannot be imported alone: {failed}" if failed else 0)\n'
    )
