"""What every training gets on top of its config: see the modules named here."""

from mmengine.config import Config, ConfigDict

LOOPS = {'EpochBasedTrainLoop': 'ResumableEpochLoop', 'IterBasedTrainLoop': 'ResumableIterLoop'}


def make_robust(cfg: Config) -> None:
    """Make a config's training resumable, stoppable, and patient with bad images and losses.

    Only mmengine's own loops, checkpoint and logger hooks are replaced; custom ones are unchanged.
    ``max_bad_fraction`` and ``max_non_finite`` of the config are the hooks' limits.

    Args:
        cfg (Config): Changed in place; doing it twice changes nothing.
    """
    loop = cfg.get('train_cfg')
    if loop:
        if 'type' not in loop:
            by_epoch = loop.pop('by_epoch', True)
            loop['type'] = 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
        loop['type'] = LOOPS.get(loop['type'], loop['type'])
    val = cfg.get('val_cfg')
    if val is not None and val.get('type', 'ValLoop') == 'ValLoop':
        val['type'] = 'PatientValLoop'
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
    if checkpoint is not None and checkpoint.get('type') == 'CheckpointHook':
        hooks['checkpoint'] = dict(checkpoint, type='AtomicCheckpointHook')
    logger = hooks.get('logger', dict(type='LoggerHook'))
    if logger is not None and logger.get('type') == 'LoggerHook':
        hooks['logger'] = dict(logger, type='PatientLoggerHook')
    add_hook(cfg, dict(type='StopOnSignal'))
    add_hook(cfg, dict(type='StopOnNonFiniteLoss', max_in_a_row=cfg.get('max_non_finite', 10)))
    skip_bad_images(cfg)


def skip_bad_images(cfg: Config) -> None:
    """Add :class:`.bad_images.SkipBadImages` for training and evaluation, if it is not there."""
    _add_if_missing(cfg, 'SkipBadImages')


def check_loaded_weights(cfg: Config) -> None:
    """Add :class:`.check_weights.CheckLoadedWeights`, if it is not there."""
    _add_if_missing(cfg, 'CheckLoadedWeights')


def _add_if_missing(cfg: Config, kind: str) -> None:
    """Shipped configs name these hooks, for the toolboxes' own tools."""
    hooks = [*cfg.setdefault('default_hooks', {}).values(), *(cfg.get('custom_hooks') or [])]
    if not any(h and h.get('type') == kind for h in hooks):
        add_hook(cfg, dict(type=kind))


def add_hook(cfg: Config, hook: dict) -> None:
    """Put a hook into a config's ``custom_hooks``, in the place of one of the same type."""
    others = [h for h in cfg.get('custom_hooks') or [] if h.get('type') != hook['type']]
    cfg.custom_hooks = [*others, hook]
