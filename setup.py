"""Packaging: metadata, extras, and configs and tools shipped inside the wheel.

Tool settings live in ``pyproject.toml``, the tested versions in ``constraints.txt``.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# What goes into the package's ``.mim`` folder, where OpenMMLab's tools look for it.
MIM_ITEMS = ('configs', 'tools', 'model-index.yml')
# Left out: caches, and programs for work on the project itself.
MIM_IGNORE = shutil.ignore_patterns(
    '__pycache__', '*.py[co]', 'setup_env.py', 'benchmark*', 'model_zoo*', 'demo.py'
)

# onedl-* is the maintained continuation of OpenMMLab with the same import names. An environment of
# the original packages (mmengine, mmcv, ...) works as well, but a requirement can name only one
# distribution, and pip would lay onedl-mmengine over an installed mmengine: there, install with
# `pip install --no-deps cyclemlp_mm`.
MMENGINE = 'onedl-mmengine>=0.10.10'
# torchvision is used by mmengine's checkpoint loader, mmcv's ops and mmdet, and declared by none.
MMCV = ['onedl-mmcv>=2.3', 'torchvision']

DET = ['onedl-mmdetection>=3.5', *MMCV]
SEG = ['onedl-mmsegmentation>=1.4', 'ftfy', 'regex', *MMCV]
CLS = ['onedl-mmpretrain>=1.3', *MMCV]
EXPORT = ['onnx', 'onnxscript', 'onnxruntime']
WEB = ['gradio>=6', *DET, *SEG]
VIS = ['tensorboard']
DOCS = ['mkdocs-material', 'mkdocstrings[python]', 'pymdown-extensions<12']
DEV = ['build', 'hypothesis', 'mypy', 'pytest', 'pytest-timeout', 'pytest-xdist', 'ruff']
DEV += ['selenium', *VIS]


class BuildPyWithMim(build_py):
    """Also puts configs and tools into the built package, never into the source tree."""

    def run(self):
        super().run()
        if self.editable_mode:  # an editable install uses the checkout's own folders
            return
        target = Path(self.build_lib, 'cyclemlp_mm', '.mim')
        shutil.rmtree(target, ignore_errors=True)  # what an earlier build left behind
        target.mkdir(parents=True)
        for source in (ROOT / item for item in MIM_ITEMS):
            if source.is_dir():
                shutil.copytree(source, target / source.name, ignore=MIM_IGNORE)
            elif source.is_file():
                shutil.copy2(source, target)


def read(name):
    """The text of a file of the project, or nothing where there is none."""
    path = ROOT / name
    return path.read_text(encoding='utf-8') if path.is_file() else ''


setup(
    name='cyclemlp_mm',
    version=runpy.run_path(str(ROOT / 'cyclemlp_mm' / 'version.py'))['__version__'],
    description='CycleMLP and other MLP-like backbones for mmdet, mmseg and mmpretrain',
    long_description=read('README.md'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['cyclemlp_mm', 'cyclemlp_mm.*']),
    package_data={'cyclemlp_mm': ['py.typed']},
    cmdclass={'build_py': BuildPyWithMim},
    python_requires='>=3.10',
    install_requires=['torch>=2.1', 'numpy', 'safetensors', 'filelock>=4.1', MMENGINE],
    extras_require={
        'det': DET,
        'seg': SEG,
        'cls': CLS,
        'export': EXPORT,
        'web': sorted({*WEB}),
        'all': sorted({*DET, *SEG, *CLS, *EXPORT, *WEB}),
        'vis': VIS,
        'docs': DOCS,
        'dev': DEV,
    },
    zip_safe=False,
    keywords=['computer vision', 'object detection', 'semantic segmentation', 'MLP', 'OpenMMLab'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
