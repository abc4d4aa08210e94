"""Which OpenMMLab toolbox a config is for, and whether it is there."""

import importlib

from mmengine.config import Config

from cyclemlp_mm.errors import MissingToolboxError, UserError

#: Toolbox by ``default_scope``, with the extra of this package that installs it.
EXTRAS = {'mmdet': 'det', 'mmseg': 'seg', 'mmpretrain': 'cls'}


def require_toolbox(cfg: Config) -> str:
    """Import the toolbox that ``cfg.default_scope`` names, only this one.

    Returns:
        str: 'mmdet', 'mmseg' or 'mmpretrain'.

    Raises:
        UserError: The config names no toolbox that we know.
        MissingToolboxError: It cannot be imported; says why and how to fix it.
    """
    scope = cfg.get('default_scope')
    if scope not in EXTRAS:
        raise UserError(
            f'the config says default_scope={scope!r}; expected one of {", ".join(EXTRAS)}'
        )
    try:
        importlib.import_module(f'{scope}.models')  # where imports break
    except Exception as error:  # a package beside it, of a version that it was not written for
        raise MissingToolboxError(
            f'the config needs {scope}, which cannot be imported '
            f'({type(error).__name__}: {error}). '
            'tools/doctor.py finds the cause. In a checkout, run '
            f"`make setup`; elsewhere, `pip install 'cyclemlp_mm[{EXTRAS[scope]}]'` (see the "
            "README on mmcv's compiled ops)"
        ) from error
    if scope == 'mmdet':
        import cyclemlp_mm.datasets.checked_coco  # noqa: F401 - registers classes that need mmdet
    return scope
