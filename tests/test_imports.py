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


def test_all_families_are_registered_and_mmpretrain_is_imported_when_it_is_built():
    code = (
        'import sys, cyclemlp_mm\n'
        'from mmengine.registry import MODELS\n'
        "for name in ('CycleMLP', 'MPViT', 'DenseRepMLPNet', 'RepMLPNet'):\n"
        '    assert MODELS.get(name), name\n'
        "assert 'mmpretrain' not in sys.modules\n"
        'arch = dict(channels=[8], depths=[1], sharesets_nums=[1])\n'
        "model = MODELS.build(dict(type='DenseRepMLPNet', arch=arch, out_indices=(0,)))\n"
        "assert type(model) is MODELS.get('DenseRepMLPNet')\n"
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_without_mmpretrain_a_repmlp_says_what_to_install():
    code = (
        "import sys\nsys.modules['mmpretrain'] = None\nimport cyclemlp_mm\n"
        'from mmengine.registry import MODELS\n'
        "try:\n    MODELS.build(dict(type='DenseRepMLPNet'))\n"
        "except ImportError as error:\n    assert 'cyclemlp_mm[cls]' in str(error), error\n"
        "else:\n    raise SystemExit('built')\n"
    )
    subprocess.run([sys.executable, '-c', code], check=True)
