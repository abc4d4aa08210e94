import subprocess
import sys


def test_the_package_needs_torch_and_mmengine_only():
    code = (
        'import sys\n'
        "for name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision'):\n"
        '    sys.modules[name] = None\n'
        'import cyclemlp_mm\n'
        'from mmengine.registry import MODELS\n'
        "MODELS.build(dict(type='CycleMLP', arch='b1'))\n"
    )
    subprocess.run([sys.executable, '-c', code], check=True)
