"""CLI entry point of tools/train.py."""

import argparse
import re
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process

from cyclemlp_mm.checks import check_writable
from cyclemlp_mm.datasets.coco_file import annotations_kept
from cyclemlp_mm.engine import finish_launch, is_first_process, make_robust, resume_training
from cyclemlp_mm.engine.config_files import walk
from cyclemlp_mm.engine.hooks.logger import progress_bar
from cyclemlp_mm.engine.hooks.stop import TrainingStopped, stoppable
from cyclemlp_mm.engine.runner.resume import build_runner, checkpoint_folder, run_training
from cyclemlp_mm.engine.summary import LogSummary, run_summary
from cyclemlp_mm.engine.training_config import add_vis_backends
from cyclemlp_mm.engine.work_dir import work_dir_lock
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.preflight import run_preflight

from .arguments import parse
from .prepare import log, prepare_config, take_classes_of

#: Names that a training gives its checkpoints.
_SAVED = re.compile(r'(?:(?:epoch|iter)_\d+.*|best_.*)\.pth$')


@stoppable()
def train(argv: Sequence[str] | None = None) -> None:
    """Train a model."""
    with annotations_kept():
        cfg, start_from, lines = _prepare_training(parse('train', argv))
    check_writable(cfg.work_dir, '--work-dir', is_folder=True)
    is_first = is_first_process(cfg.launcher)
    with work_dir_lock(cfg.work_dir) if is_first else nullcontext():
        if is_first:
            lines += _move_earlier_run(cfg)
        runner = build_runner(cfg, start_from)
        log(runner, lines)
        try:
            with progress_bar(runner):
                runner.register_hook(LogSummary())
                run_training(runner)
        except TrainingStopped:  # in all processes alike
            finish_launch()
            raise
        if is_main_process():
            print(run_summary(runner), flush=True)
        finish_launch()


def _prepare_training(args: argparse.Namespace) -> tuple[Config, str | None, list[str]]:
    """The config, ``load_from`` of a new training, and the first lines of the log."""
    if args.resume is not None and 'load_from' in args.cfg_options:
        what = '--resume takes the weights of its checkpoint'
        raise UserError(f'--cfg-options load_from: {what}. Give one of them')
    cfg = prepare_config(args)
    if args.amp:
        _use_amp(cfg, args.cfg_options)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UserError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
        cfg.auto_scale_lr.enable = True
    add_vis_backends(cfg, args.vis)
    make_robust(cfg)
    start_from, source, lines = cfg.get('load_from'), args.resume, []
    if source is None and cfg.get('resume'):
        source, start_from = _resumed_by_config(cfg), None
        lines.append(f'the config has resume=True: this training continues, as --resume {source}')
    if source is not None:
        lines += resume_training(cfg, source)
    else:
        lines += take_classes_of(cfg)
    if not args.skip_check and is_first_process(cfg.launcher):
        report = run_preflight(cfg, weights=False)  # the training loads them itself
        report.raise_errors(more='tools/check.py CONFIG checks more; --skip-check trains anyway')
        lines += map(str, report.findings)
    return cfg, start_from, lines


def _move_earlier_run(cfg: Config) -> list[str]:
    """Move an earlier training's checkpoints out of the way of one that does not continue it.

    They would be overwritten one by one, and a later ``--resume`` would find those that are left.
    Returns what to log; raises a UserError if the config names one of them.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if '://' in str(hook.get('out_dir')):
        return []
    folder = checkpoint_folder(cfg)
    files = {p.resolve(): p for p in folder.glob('*.pth') if _SAVED.match(p.name)}
    resumed = Path(cfg.load_from).resolve() if cfg.get('resume') and cfg.load_from else None
    if not files or resumed in files:
        return []
    for key, value in walk(cfg.to_dict()):
        if isinstance(value, str) and value.endswith('.pth') and '://' not in value:
            file = Path(value).resolve()
            if file in files:
                raise UserError(f'{key} is {file}, of an earlier training: give another --work-dir')
    newest = time.localtime(max(path.stat().st_mtime for path in files))
    target = folder / time.strftime('earlier_%Y%m%d_%H%M%S', newest)
    while target.exists():
        target = target.with_name(f'{target.name}_')
    target.mkdir()
    config = Path(cfg.work_dir) / Path(cfg.filename or 'config.py').name
    if config.is_file():  # a copy: it may be the file that this training was started with
        shutil.copy2(config, target)
    for path in [*files.values(), *Path(cfg.work_dir).glob('last_checkpoint')]:
        path.rename(target / path.name)
    number = f'{len(files)} checkpoints of an earlier training'
    return [f'{folder} had {number}: they are in {target} now. To continue it, give --resume']


def _resumed_by_config(cfg: Config) -> str:
    """What ``resume=True`` of a config means to mmengine, as a value of ``--resume``.

    A file of another folder, as in the config of a resumed run, is a UserError: nobody who trains
    with that config into a new folder expects it.
    """
    file = cfg.get('load_from') or cfg.resume
    if not isinstance(file, str) or file == 'auto':
        return 'auto'
    if '://' in file or Path(file).resolve().parent != Path(cfg.work_dir).resolve():
        raise UserError(
            f'config {cfg.filename}: resume=True means {file} of another folder. Give --resume '
            f'{file}; to start again, --cfg-options resume=False load_from=None'
        )
    return file


def _use_amp(cfg: Config, options: dict) -> None:
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(f'--amp works with OptimWrapper, but the config has {wrapper}')
    if torch.cuda.is_available():
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    else:
        cfg.optim_wrapper.type = 'CpuAmpOptimWrapper'
        for key in ('loss_scale', 'dtype'):  # a GPU's; bfloat16 is the CPU's only one
            if f'optim_wrapper.{key}' in options:
                what = 'without a GPU, --amp is bfloat16 without a loss scale'
                raise UserError(f'--cfg-options optim_wrapper.{key}: {what}. Leave it out')
            cfg.optim_wrapper.pop(key, None)
