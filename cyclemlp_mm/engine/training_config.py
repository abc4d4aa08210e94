"""What the tools add to every config: hooks, loops, and where figures go."""

import importlib
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import VISBACKENDS

from cyclemlp_mm.errors import UserError

#: For mmengine's classes, ours with the same arguments; custom classes are unchanged.
_OURS = {
    'EpochBasedTrainLoop': 'ResumableEpochLoop',
    'IterBasedTrainLoop': 'ResumableIterLoop',
    'ValLoop': 'PatientValLoop',
    'CheckpointHook': 'AtomicCheckpointHook',
    'LoggerHook': 'PatientLoggerHook',
    'SingleDeviceStrategy': 'AtomicSingleDeviceStrategy',
    'DDPStrategy': 'AtomicDDPStrategy',
}


def make_robust(cfg: Config) -> None:
    """Make a config's training resumable, stoppable, and patient with bad images and losses.

    Only mmengine's own loops, hooks and strategies are replaced; custom ones are unchanged.
    ``max_bad_fraction`` and ``max_non_finite`` of the config are the hooks' limits.

    Args:
        cfg (Config): Changed in place; doing it twice changes nothing.
    """
    loop = cfg.get('train_cfg')
    if loop and 'type' not in loop:
        by_epoch = loop.pop('by_epoch', True)
        loop['type'] = 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
    if cfg.get('val_cfg') is not None:
        cfg.val_cfg.setdefault('type', 'ValLoop')
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    hooks.setdefault('logger', dict(type='LoggerHook'))
    if cfg.get('runner_type') == 'FlexibleRunner' and not cfg.get('strategy'):
        alone = cfg.get('launcher', 'none') == 'none'
        cfg.strategy = dict(type='SingleDeviceStrategy' if alone else 'DDPStrategy')
    for part in (loop, cfg.get('val_cfg'), hooks.checkpoint, hooks.logger, cfg.get('strategy')):
        if part and part.get('type') in _OURS:
            part['type'] = _OURS[part['type']]
    add_hook(cfg, dict(type='StopOnSignal'))
    add_hook(cfg, dict(type='StopOnNonFiniteLoss', max_in_a_row=cfg.get('max_non_finite', 10)))
    skip_bad_images(cfg)


def skip_bad_images(cfg: Config) -> None:
    """Add :class:`.SkipBadImages` for training and evaluation, if the config does not have it."""
    add_hook(cfg, dict(type='SkipBadImages'), replace=False)


def check_loaded_weights(cfg: Config) -> None:
    """Add :class:`.CheckLoadedWeights`, if the config does not have it."""
    add_hook(cfg, dict(type='CheckLoadedWeights'), replace=False)


def add_hook(cfg: Config, hook: dict, replace: bool = True) -> None:
    """Add a hook to ``custom_hooks``, in place of one of its type.

    Without ``replace``, only where neither the custom nor the default hooks have one.
    """
    custom = list(cfg.get('custom_hooks') or [])
    kinds = [h and h.get('type') for h in (*cfg.setdefault('default_hooks', {}).values(), *custom)]
    if replace or hook['type'] not in kinds:
        cfg.custom_hooks = [*(h for h in custom if h.get('type') != hook['type']), hook]


def add_vis_backends(cfg: Config, names: list[str]) -> None:
    """Let a run also log to mmengine's backends of these packages, such as wandb.

    W&B files stay in the work dir; where there is no network, set ``WANDB_MODE=offline``.
    """
    if cfg.get('visualizer') is None:
        raise UserError('--vis needs a visualizer in the config')
    # A copy: the config's own list is shared with cfg.vis_backends.
    backends = list(cfg.visualizer.get('vis_backends') or [dict(type='LocalVisBackend')])
    kinds = {kind.removesuffix('VisBackend').lower(): kind for kind in VISBACKENDS.module_dict}
    for name in names:
        kind = kinds[name]
        try:
            importlib.import_module(name)
        except ImportError as error:  # tensorboard is among the tested versions
            package = "'cyclemlp_mm[vis]'" if name == 'tensorboard' else name
            raise UserError(
                f'--vis {name} needs the package {name} ({error}): pip install {package}'
            ) from error
        settings = ConfigDict(type=kind)
        if name == 'wandb':
            settings.init_kwargs = dict(project='cyclemlp_mm', name=Path(cfg.work_dir).name)
        if kind not in [backend['type'] for backend in backends]:
            backends.append(settings)
    cfg.visualizer.vis_backends = backends
    cfg.vis_backends = backends
