"""From command-line arguments to a config that mmengine's Runner takes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from cyclemlp_mm.engine import (
    check_loaded_weights,
    load_config,
    prepare_launch,
    require_toolbox,
    skip_bad_images,
    use_own_data,
)
from cyclemlp_mm.engine.config_data import data_sets, names_of, take_class_order, trained_classes
from cyclemlp_mm.engine.config_files import merge_options
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.user_path import user_path
from cyclemlp_mm.weights import allow_unsafe_loading, install_safe_loading, read_before_loading


def prepare_config(args: argparse.Namespace, needed: Sequence[str] = ('train', 'val')) -> Config:
    """Read the config, apply ``--data`` and ``--cfg-options``, set work dir and launcher.

    The steps, in the order that they need:

    1. The config with ``--cfg-options``; its sections are checked, COCO data sets are replaced.
    2. The toolbox is imported: it registers what the next steps look up.
    3. ``--data``, then ``--cfg-options`` again, which win over it.
    4. The order of the classes, which both may have changed, is that of the training data.
    5. Work dir and launcher; without a GPU, the process group starts here.
    6. Safe loading, before anything reads a checkpoint.
    7. Hooks last: they are added where the config does not have them.

    A training adds, in this order: ``--amp``, ``--auto-scale-lr``, ``--vis``, resumable loops and
    hooks, and what it resumes, for which the checkpoint hook says where to look.

    Args:
        args (argparse.Namespace): Arguments of ``tools/train.py``, ``test.py`` or ``check.py``.
        needed (Sequence[str]): Parts that the folder of ``--data`` must have. Defaults to both.

    Raises:
        UserError: With what is wrong and how to fix it.
    """
    options = args.cfg_options
    if 'launcher' in options:
        raise UserError(f'--cfg-options launcher: give --launcher {options["launcher"]}')
    cfg = load_config(args.config, options)
    require_toolbox(cfg)
    if args.data is not None:
        use_own_data(cfg, args.data, args.classes, args.ignore_label, needed)
        # --cfg-options win over --data. Steps of pipelines are counted as in the config file:
        # --data adds one, and changes no other.
        merge_options(cfg, {k: v for k, v in options.items() if '.pipeline' not in k})
    elif args.classes is not None or args.ignore_label is not None:
        raise UserError('--classes and --ignore-label describe the folder of --data: give it too')
    train = next((dataset for _, dataset in data_sets(cfg, ['train'])), None)
    if train is not None:  # labels of all loaders are those of training
        take_class_order(cfg, names_of(train.get('metainfo')), 'train_dataloader')
    if args.work_dir is not None:
        cfg.work_dir = str(user_path(args.work_dir))
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    prepare_launch(cfg, args.launcher)
    # --unsafe-load is not written into the config, which goes into the work dir: the next run is
    # asked again.
    if cfg.get('unsafe_load'):
        allow_unsafe_loading()
    install_safe_loading()  # configs of earlier work dirs do not name it
    check_loaded_weights(cfg)
    skip_bad_images(cfg)  # also in evaluation: every tool loads images alike
    return cfg


def take_classes_of(cfg: Config) -> list[str]:
    """Sort a detector's data by the class order of ``cfg.load_from``; returns what to log.

    Raises:
        UserError: The file cannot be read.
    """
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
