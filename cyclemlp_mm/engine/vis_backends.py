"""``--vis``: where scalars and pictures of a run go, beside the work dir's own files."""

from __future__ import annotations

import importlib
from pathlib import Path

from mmengine.config import Config, ConfigDict

from cyclemlp_mm.errors import UserError

#: mmengine's backend for each name, the package it needs, and how to install it. wandb is not among
#: the tested versions.
VIS_BACKENDS = {
    'tensorboard': ('TensorboardVisBackend', 'tensorboard', "pip install 'cyclemlp_mm[vis]'"),
    'wandb': ('WandbVisBackend', 'wandb', 'pip install wandb'),
}


def add_vis_backends(cfg: Config, names: list[str]) -> None:
    """Let a run log to TensorBoard or Weights & Biases too.

    W&B files stay in the work dir; where there is no network, set ``WANDB_MODE=offline``.

    Args:
        cfg (Config): ``visualizer.vis_backends`` is extended in place; ``work_dir`` must be set.
        names (list[str]): Keys of :data:`VIS_BACKENDS`.

    Raises:
        UserError: The package is not installed, or the config has no visualizer.
    """
    if cfg.get('visualizer') is None:
        raise UserError('--vis needs a visualizer in the config')
    # A copy: the config's own list is shared with cfg.vis_backends.
    backends = list(cfg.visualizer.get('vis_backends') or [dict(type='LocalVisBackend')])
    for name in names:
        kind, package, install = VIS_BACKENDS[name]
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f'--vis {name} needs the package {package} ({error}): {install}'
            ) from error
        if any(backend['type'] == kind for backend in backends):
            continue
        settings = ConfigDict(type=kind)
        if name == 'wandb':
            run = Path(cfg.work_dir)
            settings.init_kwargs = dict(project='cyclemlp_mm', name=run.name)
        backends.append(settings)
    cfg.visualizer.vis_backends = backends
    cfg.vis_backends = backends
