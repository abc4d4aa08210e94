"""Packaging: metadata, extras, and configs and tools shipped inside the wheel.

Tool settings live in ``pyproject.toml``, the tested versions in ``constraints.txt``.
"""

import re
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

# OpenMMLab has two lineages with the same import names: the maintained packages (onedl-*) and the
# original ones. pip would install one over the other, so the package itself requires neither, and
# each lineage has its extras. torchvision is used by mmcv and mmdet, and declared by none.
# filelock 3 works, but is a little worse (engine/work_dir.py): kept beside the original packages.
MAINTAINED = ['onedl-mmengine>=0.10.10', 'onedl-mmcv>=2.3', 'torchvision', 'filelock>=4.1']
DET = ['onedl-mmdetection>=3.5', *MAINTAINED]
SEG = ['onedl-mmsegmentation>=1.4', 'ftfy', 'regex', *MAINTAINED]
CLS = ['onedl-mmpretrain>=1.3', *MAINTAINED]
# Without mmengine and mmcv, like mmdet's own requirements: they may be mmengine-lite or mmcv-lite,
# and mmcv has to be built for the installed torch (mim does it).
ORIGINAL = {
    'openmmlab-det': ['mmdet>=3.3', 'torchvision'],
    'openmmlab-seg': ['mmsegmentation>=1.2.2', 'ftfy', 'regex', 'torchvision'],
    'openmmlab-cls': ['mmpretrain>=1.2', 'torchvision'],
}
EXPORT = ['onnx', 'onnxscript', 'onnxruntime']
WEB = ['gradio>=6']
VIS = ['tensorboard']
# The module of mmdet's own corruptions. imagecorruptions, without -imaug, has it too, but no seeds.
CORRUPTIONS = ['imagecorruptions-imaug>=1.1.5']
DOCS = ['mkdocs-material', 'mkdocstrings[python]', 'pymdown-extensions<12']
DEV = ['build', 'hypothesis', 'mypy', 'pre-commit', 'pytest', 'pytest-timeout', 'pytest-xdist']
DEV += ['ruff', 'selenium', *VIS]


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


def long_description():
    """The README without images and links that only work inside a checkout."""
    text = re.sub(r'<img src="(?!http)[^>]*>', '', read('README.md'))
    return re.sub(r'!?\[([^][]*)\]\((?!https?:)[^)]*\)', r'\1', text)


setup(
    name='cyclemlp_mm',
    version=runpy.run_path(str(ROOT / 'cyclemlp_mm' / 'version.py'))['__version__'],
    description='CycleMLP and other MLP-like backbones for mmdet, mmseg and mmpretrain',
    long_description=long_description(),
    long_description_content_type='text/markdown',
    author='cyclemlp_mm contributors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    # So that an editable install is a path: beside a finder, Python takes the checkout's folder, of
    # the same name, for the package.
    package_dir={'': '.'},
    packages=find_packages(include=['cyclemlp_mm', 'cyclemlp_mm.*']),
    package_data={'cyclemlp_mm': ['py.typed']},
    cmdclass={'build_py': BuildPyWithMim},
    python_requires='>=3.10',
    # mmengine is imported as well, and brings PyYAML and more: `import cyclemlp_mm` asks for it.
    install_requires=['torch>=2.1', 'filelock', 'matplotlib', 'numpy', 'rich', 'safetensors'],
    extras_require={
        'det': DET,
        'seg': SEG,
        'cls': CLS,
        **ORIGINAL,
        'export': EXPORT,
        'web': WEB,
        'corruptions': CORRUPTIONS,
        'all': sorted({*DET, *SEG, *CLS, *EXPORT, *WEB, *CORRUPTIONS}),
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
