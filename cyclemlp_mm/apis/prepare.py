"""From command-line arguments to a config that mmengine's Runner takes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from cyclemlp_mm import engine
from cyclemlp_mm.engine.config_data import data_sets, names_of, take_class_order, trained_classes
from cyclemlp_mm.engine.config_files import load_config, merge_options, require_toolbox
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.user_path import user_path
from cyclemlp_mm.weights import allow_unsafe_loading, install_safe_loading, read_before_loading


def prepare_config(args: argparse.Namespace, needed: Sequence[str] = ('train', 'val')) -> Config:
    """Read the config, apply ``--data`` and ``--cfg-options``, set work dir, launcher and hooks.

    The order of the steps matters: see docs/architecture.md. ``needed`` are the parts that the
    folder of ``--data`` must have.
    """
    options = args.cfg_options
    if 'launcher' in options:
        raise UserError(f'--cfg-options launcher: give --launcher {options["launcher"]}')
    if 'work_dir' in options and args.work_dir is not None:
        raise UserError('--work-dir and --cfg-options work_dir: give one of them')
    cfg = load_config(args.config, options)
    require_toolbox(cfg)
    if args.data is not None:
        engine.use_own_data(cfg, args.data, args.classes, args.ignore_label, needed)
        # They win over --data, which adds a step to pipelines: steps count as in the config file.
        merge_options(cfg, {k: v for k, v in options.items() if 'pipeline' not in k})
    elif args.classes is not None or args.ignore_label is not None:
        raise UserError('--classes and --ignore-label describe the folder of --data: give it too')
    train = next((dataset for _, dataset in data_sets(cfg, ['train'])), None)
    if train is not None:  # labels of all loaders are those of training
        take_class_order(cfg, names_of(train.get('metainfo')), 'train_dataloader')
    if args.work_dir is not None:
        cfg.work_dir = str(user_path(args.work_dir))
    elif cfg.get('work_dir') is None:
        cfg.work_dir = f'work_dirs/{Path(args.config).stem}'
    engine.prepare_launch(cfg, args.launcher)
    if cfg.get('unsafe_load'):  # --unsafe-load is not in the config, which goes into the work dir
        allow_unsafe_loading()
    install_safe_loading()  # configs of earlier work dirs do not name it
    engine.check_loaded_weights(cfg)
    engine.skip_bad_images(cfg)  # also in evaluation: every tool loads images alike
    return cfg


def take_classes_of(cfg: Config) -> list[str]:
    """Sort a detector's data by the class order of ``cfg.load_from``; returns what to log."""
    if cfg.get('load_from') is None or cfg.default_scope != 'mmdet':
        return []  # labels of the others are numbers without names: the hook compares them
    ours = '://' not in cfg.load_from or cfg.load_from.startswith('http')
    read = read_before_loading if ours else CheckpointLoader.load_checkpoint
    return take_class_order(cfg, trained_classes(read(cfg.load_from)), cfg.load_from)


def log(runner: object, lines: list[str]) -> None:
    """Log lines; those that begin with 'warning: ' as warnings."""
    for line in lines:
        is_warning = line.startswith('warning: ')
        (runner.logger.warning if is_warning else runner.logger.info)(line)
