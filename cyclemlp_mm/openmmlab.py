"""Which OpenMMLab packages are installed: the maintained ones (``onedl-*``) or the original ones.

Both install the same folders, so an environment can hold only one of each. This file needs the
standard library only: ``tools/doctor.py`` runs it where mmengine is missing or broken.
"""

import importlib.metadata
import os
import sys
import warnings

#: Folder: the distributions that install it, the maintained one first.
DISTRIBUTIONS = {
    'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'),
    'mmdet': ('onedl-mmdetection', 'mmdet'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
}


def installed(folder: str) -> list[tuple[str, str]]:
    """Distributions (name, version) that install a folder; the maintained one is the first."""
    found = {}
    for name in DISTRIBUTIONS[folder]:
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        place = os.path.realpath(str(package.locate_file('')))
        found.setdefault(place, []).append((name, package.version))
    # The first place only: a virtual environment hides the system's packages.
    return next((found[p] for p in map(os.path.realpath, sys.path) if p in found), [])


def lineage() -> str:
    """'maintained', 'original', 'mixed' or 'none'."""
    names = [name for folder in DISTRIBUTIONS for name, _ in installed(folder)]
    kinds = {'maintained' if name.startswith('onedl-') else 'original' for name in names}
    return 'mixed' if len(kinds) > 1 else next(iter(kinds), 'none')


def requirement(extra: str) -> str:
    """What to give to pip for a toolbox ('det', 'seg' or 'cls') of the installed lineage."""
    return f"'cyclemlp_mm[{'openmmlab-' if lineage() == 'original' else ''}{extra}]'"


def conflict() -> tuple[str, str] | None:
    """Distributions that have overwritten each other's files, and how to fix it."""
    clashes = [found for found in map(installed, DISTRIBUTIONS) if len(found) > 1]
    if not clashes:
        return None
    pairs = ', '.join(' and '.join(f'{n} {v}' for n, v in found) for found in clashes)
    names = ' '.join(name for found in clashes for name, _ in found)
    ways = []
    for kind, is_onedl in (('original', False), ('maintained', True)):
        kept = [[p for p in found if p[0].startswith('onedl-') is is_onedl] for found in clashes]
        pins = ' '.join('=='.join(found[0]) for found in kept if found)
        if pins:
            command = f'pip install --no-deps --no-build-isolation {pins}'
            ways.append(f'`{command}` (the {kind} packages)')
    return (
        f'installed over each other, into the same folders: {pairs}. Removing only one of two also '
        'removes files of the other',
        f'`pip uninstall -y {names}`, then {" or ".join(ways)}',
    )


def warn_of_conflict() -> None:
    """Warn where the packages of both lineages are installed over each other."""
    if found := conflict():
        warnings.warn('OpenMMLab packages are {}. To fix it: {}'.format(*found), stacklevel=3)


def how_to_get_mmengine(error: ImportError) -> str:
    """The message for a missing or incomplete mmengine."""
    if found := installed('mmengine'):
        pin = '=='.join(found[0])
        return (
            f'mmengine is installed ({pin}), but its files are incomplete ({error}), as after the '
            'removal of another package with the same files: '
            f'`pip install --force-reinstall --no-deps {pin}`'
        )
    return (
        "cyclemlp_mm needs mmengine, which is not installed: run `pip install 'cyclemlp_mm[det]'` "
        '(or seg, cls, all), or `pip install onedl-mmengine` for the backbones alone; beside the '
        'original OpenMMLab packages, run `pip install mmengine`'
    )
