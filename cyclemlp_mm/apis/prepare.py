"""From command-line arguments to a config that mmengine's Runner takes."""

import argparse
from pathlib import Path

from mmengine.config import Config

from cyclemlp_mm.engine import load_config, prepare_launch, require_toolbox, use_own_data
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.weights import allow_unsafe_loading


def prepare_config(args: argparse.Namespace) -> Config:
    """Read the config, apply ``--cfg-options`` and ``--data``, settle work dir and launcher.

    Args:
        args (argparse.Namespace): What :mod:`cyclemlp_mm.apis.arguments` adds.

    Raises:
        UserError: With what is wrong and how to mend it.
    """
    cfg = load_config(args.config, args.cfg_options)
    require_toolbox(cfg)
    if args.data is not None:
        use_own_data(cfg, args.data, args.classes, args.ignore_label)
    elif args.classes is not None or args.ignore_label is not None:
        raise UserError('--classes and --ignore-label describe the folder of --data: give it too')
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    prepare_launch(cfg, args.launcher)
    # Not written into the config, which goes into the work dir: the next run is asked anew.
    if args.unsafe_load or cfg.get('unsafe_load'):
        allow_unsafe_loading()
    _check_weights(cfg)
    return cfg


def _check_weights(cfg: Config) -> None:
    hooks = [h for h in cfg.get('custom_hooks') or [] if h.get('type') != 'CheckLoadedWeights']
    cfg.custom_hooks = [*hooks, dict(type='CheckLoadedWeights')]
