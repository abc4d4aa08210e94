"""What the imports of the package do, and what they leave as it was."""

import subprocess
import sys
from pathlib import Path

import pytest

import cyclemlp_mm

PACKAGE = Path(cyclemlp_mm.__file__).parent
MODULES = [
    '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts)
    for path in sorted(PACKAGE.rglob('*.py'))
    if path.name != '__init__.py'  # importing a module imports its package first
]
EVERY = 'every module can be the first one imported'  # a minute
CODE = {
    'registers names and changes nothing else': """
import sys, warnings
import torch
import mmengine.fileio, mmengine.infer, mmengine.registry, mmengine.runner
from mmengine.fileio import backends
from mmengine.registry import DATASETS, HOOKS, LOOPS, METRICS, MODELS, TRANSFORMS
from mmengine.runner import CheckpointLoader
HOOKS.get('LoggerHook'), LOOPS.get('ValLoop')  # their locations are imported
registries = DATASETS, HOOKS, LOOPS, METRICS, TRANSFORMS
def state():
    return (dict(CheckpointLoader._schemes), dict(vars(mmengine.infer.BaseInferencer)),
            list(warnings.filters), dict(backends.registry_utils.backends),
            [set(r.module_dict) for r in registries])
before, names = state(), set(MODELS.module_dict)
import cyclemlp_mm
assert state() == before
new = {'CycleMLP', 'MPViT', 'DenseRepMLPNet', 'RepMLPNet', 'SyncBNOrBN'}
assert set(MODELS.module_dict) - names == new
""",
    "imports mmengine's registry only": """
import sys, mmengine.registry
before = set(sys.modules)
import cyclemlp_mm
heavy = {'torch', 'cv2', 'PIL', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmengine.runner'}
assert not heavy & (set(sys.modules) - before)
""",
    'a backbone needs torch and mmengine only': """
import sys
for name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision', 'safetensors'):
    sys.modules[name] = None
import cyclemlp_mm
from mmengine.registry import MODELS
model = MODELS.build(dict(type='CycleMLP', arch='b1'))
import cyclemlp_mm.models
assert type(model) is MODELS.get('CycleMLP') is cyclemlp_mm.models.CycleMLP
""",
    'without mmengine it names the fix': """
import sys
sys.modules['mmengine'] = None
try:
    import cyclemlp_mm
except ImportError as error:
    assert 'pip install --force-reinstall --no-deps' in str(error), error
else:
    raise SystemExit('imported')
""",
    'without mmpretrain a RepMLP names the extra': """
import sys
sys.modules['mmpretrain'] = None
import cyclemlp_mm
from mmengine.registry import MODELS
try:
    MODELS.build(dict(type='DenseRepMLPNet'))
except ImportError as error:
    assert 'cyclemlp_mm[cls]' in str(error), error
else:
    raise SystemExit('built')
""",
    EVERY: f"""
import os, sys, traceback
import torch, mmengine.runner, mmdet.apis, mmseg.apis, mmpretrain.apis
for name in {MODULES}:
    child = os.fork()
    if child == 0:
        try:
            assert 'cyclemlp_mm' not in sys.modules
            __import__(name)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        sys.exit('cannot be imported alone: ' + name)
""",
}


@pytest.mark.parametrize(
    'promise', [pytest.param(p, marks=[pytest.mark.slow] * (p == EVERY)) for p in CODE]
)
def test_in_a_new_process(promise):
    """The last one forks: each module in a process of its own, with our dependencies imported."""
    assert len(MODULES) > 50
    done = subprocess.run([sys.executable, '-c', CODE[promise]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
