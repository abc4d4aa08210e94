"""Training: the whole of ``tools/train.py`` but its first line."""

from __future__ import annotations

import argparse
import re
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from cyclemlp_mm.checks import check_writable
from cyclemlp_mm.datasets.coco_file import annotations_kept
from cyclemlp_mm.engine import finish_launch, is_first_process, make_robust, resume_training
from cyclemlp_mm.engine.progress_bar import progress_bar
from cyclemlp_mm.engine.resume import checkpoint_folder
from cyclemlp_mm.engine.stop_on_signal import TrainingStopped, stoppable
from cyclemlp_mm.engine.summary import run_summary
from cyclemlp_mm.engine.vis_backends import VIS_BACKENDS, add_vis_backends
from cyclemlp_mm.engine.work_dir_lock import work_dir_lock
from cyclemlp_mm.errors import CheckpointError, UserError
from cyclemlp_mm.preflight import run_preflight

from .arguments import (
    accept_local_rank,
    add_config,
    add_launcher,
    add_own_data,
    add_unsafe_load,
    new_parser,
)
from .prepare import prepare_config, take_classes_of

#: Names that a training gives its checkpoints.
_SAVED = re.compile(r'(?:(?:epoch|iter)_\d+.*|best_.*)\.pth$')

EXAMPLES = """\
  tools/train.py configs/retinanet_cyclemlp_b2_fpn_1x_coco.py
  tools/train.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py --data my_streets --ignore-label 11
  tools/train.py configs/retinanet_cyclemlp_b1_fpn_1x_coco.py --data my_cells --auto-scale-lr
  tools/train.py configs/mask_rcnn_cyclemlp_b1_fpn_1x_coco.py --resume
  tools/train.py configs/retinanet_cyclemlp_b1_fpn_1x_coco.py --vis tensorboard
"""


def parse_train_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of ``tools/train.py``; those of mmdet's and mmseg's, and ``--data``."""
    parser = new_parser('Train a detector, segmentor or classifier', EXAMPLES)
    add_config(parser)
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision: float16 on a GPU, bfloat16 on a CPU',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the real batch over the config's base_batch_size",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help="go on from a checkpoint; 'auto' or no value takes the latest in the work dir",
    )
    parser.add_argument(
        '--skip-check',
        action='store_true',
        help='train without looking at data and config first (see tools/check.py)',
    )
    parser.add_argument(
        '--vis',
        nargs='+',
        choices=list(VIS_BACKENDS),
        default=[],
        help='also log scalars and pictures to TensorBoard or Weights & Biases',
    )
    add_own_data(parser)
    add_unsafe_load(parser)
    add_launcher(parser)
    return parser.parse_args(argv)


def train(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says.

    Args:
        argv (Sequence[str], optional): Arguments. Defaults to the process's own.

    Raises:
        UserError: Before the first iteration, with what is wrong.
    """
    args = parse_train_args(argv)
    with stoppable():
        _train(args)


def _train(args: argparse.Namespace) -> None:
    accept_local_rank(args)
    with annotations_kept():
        cfg, start_from, said = _prepare_training(args)
    check_writable(cfg.work_dir, '--work-dir', is_folder=True)
    with work_dir_lock(cfg.work_dir) if is_first_process(cfg.launcher) else nullcontext():
        if is_first_process(cfg.launcher):
            said += _move_earlier_run(cfg)
        runner = _build_runner(cfg, start_from)
        for line in said:
            is_warning = line.startswith('warning: ')
            (runner.logger.warning if is_warning else runner.logger.info)(line)
        try:
            with progress_bar(runner):
                runner.train()
        except TrainingStopped:  # in all processes alike
            finish_launch()
            raise
        if is_main_process():
            print(run_summary(runner), flush=True)
        finish_launch()


def _prepare_training(args: argparse.Namespace) -> tuple[Config, str | None, list[str]]:
    """The config, ``load_from`` of a start at the beginning, and what the log shall say first."""
    cfg = prepare_config(args)
    if args.amp:
        _use_amp(cfg)
    if args.auto_scale_lr:
        _scale_learning_rate(cfg)
    add_vis_backends(cfg, args.vis)
    make_robust(cfg)
    start_from = cfg.get('load_from')  # of a start at the beginning
    source, said = args.resume, []
    if source is None and cfg.get('resume'):
        source, start_from = _resumed_by_config(cfg), None
        said.append(f'the config says resume=True: this training goes on as with --resume {source}')
    if source is not None:
        said += resume_training(cfg, source)
    else:
        said += take_classes_of(cfg)
    if not args.skip_check and is_first_process(cfg.launcher):
        report = run_preflight(cfg, weights=False)  # the training loads them itself
        report.raise_errors(more='tools/check.py CONFIG checks more; --skip-check trains anyway')
        said += [str(finding) for finding in report.findings]
    return cfg, start_from, said


def _move_earlier_run(cfg: Config) -> list[str]:
    """Move an earlier training's checkpoints out of the way of one that does not continue it.

    They would be overwritten one by one, and a later ``--resume`` would find those that are left.

    Returns:
        list[str]: What to log.

    Raises:
        UserError: The config names one of them.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if '://' in str(hook.get('out_dir')):
        return []
    folder = checkpoint_folder(cfg)
    files = [path for path in folder.glob('*.pth') if _SAVED.match(path.name)]
    resumed = Path(cfg.load_from).resolve() if cfg.get('resume') and cfg.load_from else None
    if not files or resumed in {path.resolve() for path in files}:
        return []
    for key, file in _paths(cfg, ''):
        if file in {path.resolve() for path in files}:
            raise UserError(
                f'{key} is {file}, a checkpoint of an earlier training in {folder}, where this '
                'training saves its own: give another --work-dir'
            )
    newest = max(path.stat().st_mtime for path in files)
    target = folder / f'earlier_{time.strftime("%Y%m%d_%H%M%S", time.localtime(newest))}'
    while target.exists():
        target = target.with_name(f'{target.name}_')
    target.mkdir()
    config = Path(cfg.work_dir) / Path(cfg.filename or 'config.py').name
    if config.is_file():  # a copy: it may be the file that this training was started with
        shutil.copy2(config, target)
    for path in [*files, *Path(cfg.work_dir).glob('last_checkpoint')]:
        path.rename(target / path.name)
    return [
        f'{folder} had {len(files)} checkpoints of an earlier training: they are in {target} now. '
        'To continue a training instead of starting a new one, give --resume'
    ]


def _paths(node: object, key: str) -> Iterator[tuple[str, Path]]:
    """Keys of a config whose values may be paths."""
    if isinstance(node, str) and node.endswith('.pth') and '://' not in node:
        yield key, Path(node).resolve()
    parts = (
        node.items()
        if isinstance(node, (dict, Config))
        else enumerate(node)
        if isinstance(node, (list, tuple))
        else ()
    )
    for name, part in parts:
        yield from _paths(part, f'{key}.{name}'.lstrip('.'))


def _resumed_by_config(cfg: Config) -> str:
    """What ``resume=True`` of a config means: mmengine's meaning, as a value of ``--resume``.

    Raises:
        UserError: It means a file of another folder, as the config of a resumed run may do: nobody
            who trains with that config into a new folder expects it.
    """
    file = cfg.get('load_from') or cfg.resume
    if not isinstance(file, str) or file == 'auto':
        return 'auto'
    if '://' in file or Path(file).resolve().parent != Path(cfg.work_dir).resolve():
        raise UserError(
            f'config {cfg.filename}: resume=True means {file}, which is not in the work dir '
            f'{cfg.work_dir}; the config of a resumed run may say so unwanted. To go on from that '
            f'file, give --resume {file}; to start again, --cfg-options resume=False load_from=None'
        )
    return file


def _build_runner(cfg: Config, start_from: str | None) -> Runner:
    """A runner whose work dir gets a config that starts again, also where this run is resumed.

    Args:
        cfg (Config): Changed in place where it resumes.
        start_from (str, optional): ``load_from`` of a start at the beginning.
    """
    resume, load_from = cfg.get('resume', False), cfg.get('load_from')
    if resume:
        cfg.resume, cfg.load_from = False, start_from
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if resume:
        runner._resume, runner._load_from = resume, load_from
        _guard_resume(runner)
    return runner


def _guard_resume(runner: Runner) -> None:
    """Let what a checkpoint's parts cause while they are read back name the file and the part."""
    resume = runner.resume

    def guarded(filename: str, *args: object, **kwargs: object) -> None:
        try:
            resume(filename, *args, **kwargs)
        except (UserError, OSError):
            raise
        except Exception as error:  # a state of another library may be wrong in any way
            lines = ' '.join(f.line or '' for f in traceback.extract_tb(error.__traceback__)[:6])
            names = dict(param_schedulers='sched', optimizer='optim', message_hub='message_hub')
            part = next((name for name, text in names.items() if text in lines), 'meta')
            raise CheckpointError(
                f'checkpoint {filename} cannot be resumed: its part {part!r} makes no sense '
                f'({type(error).__name__}: {error}). Resume another one; to start a new training '
                'from its weights, use --cfg-options load_from=FILE'
            ) from error

    runner.resume = guarded


def _use_amp(cfg: Config) -> None:
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(f'--amp works with OptimWrapper, but the config has {wrapper}')
    if torch.cuda.is_available():
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    else:
        cfg.optim_wrapper.type = 'CpuAmpOptimWrapper'
        for key in ('loss_scale', 'dtype'):  # a GPU's; bfloat16 is the CPU's only one
            cfg.optim_wrapper.pop(key, None)


def _scale_learning_rate(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UserError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
    cfg.auto_scale_lr.enable = True
