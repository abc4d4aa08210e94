"""Evaluation: the whole of ``tools/test.py`` but its first line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from cyclemlp_mm.checks import check_writable
from cyclemlp_mm.engine import DeployModel, DrawResults, finish_launch, is_first_process
from cyclemlp_mm.engine.config_data import other_evaluated_files
from cyclemlp_mm.engine.progress_bar import progress_bar
from cyclemlp_mm.errors import MissingFileError, UserError
from cyclemlp_mm.preflight import Report, check_test_data
from cyclemlp_mm.preflight.settings import check_signatures

from .arguments import (
    accept_local_rank,
    add_config,
    add_deploy,
    add_launcher,
    add_own_data,
    add_unsafe_load,
    new_parser,
)
from .prepare import prepare_config, take_classes_of

EXAMPLES = """\
  tools/test.py configs/retinanet_cyclemlp_b1_fpn_1x_coco.py work_dirs/RUN/epoch_12.pth
  tools/test.py configs/fpn_cyclemlp_b1_512x512_40k_ade20k.py CHECKPOINT --show-dir drawn
"""


def parse_test_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of ``tools/test.py``; those of mmdet's and mmseg's, and ``--data``."""
    parser = new_parser('Evaluate a checkpoint', EXAMPLES)
    add_config(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='FILE.pkl', help='write the predictions to a file')
    parser.add_argument('--show-dir', metavar='DIR', help='draw predictions beside ground truth')
    add_deploy(parser)
    add_own_data(parser)
    add_unsafe_load(parser)
    add_launcher(parser)
    return parser.parse_args(argv)


def test(argv: Sequence[str] | None = None) -> dict:
    """Evaluate as the command line says.

    Args:
        argv (Sequence[str], optional): Arguments. Defaults to the process's own.

    Returns:
        dict: Metrics by name.

    Raises:
        UserError: With what is wrong and how to fix it.
    """
    args = parse_test_args(argv)
    accept_local_rank(args)
    cfg = prepare_config(args, needed=('val',))
    _check_settings(cfg)
    if not Path(args.checkpoint).is_file() and '://' not in args.checkpoint:
        raise MissingFileError(f'checkpoint {args.checkpoint} does not exist')
    for key, what, fix in other_evaluated_files(cfg, ['test']):
        raise UserError(f'{key} {what}. {fix}')
    cfg.load_from = args.checkpoint
    cfg.resume = False  # a resumed run leaves True in its config, which wants optimiser state
    if args.show_dir is not None:
        check_writable(args.show_dir, '--show-dir', is_folder=True)
    said = take_classes_of(cfg)
    if is_first_process(cfg.launcher):
        said += _check_data(cfg)
    if args.out is not None:
        _dump_into(cfg, args.out)
    runner = Runner.from_cfg(cfg)
    for line in said:
        is_warning = line.startswith('warning: ')
        (runner.logger.warning if is_warning else runner.logger.info)(line)
    if args.deploy:  # not by the config, which goes into the work dir: the next run is asked again
        runner.register_hook(DeployModel())
    if args.show_dir is not None:
        runner.register_hook(_drawing_hook(cfg, args.show_dir))
    with progress_bar(runner):
        metrics = runner.test()
    if args.show_dir is not None and is_main_process():
        print(f'pictures {args.show_dir}', flush=True)
    finish_launch()
    return metrics


def _check_settings(cfg: Config) -> None:
    init_default_scope(cfg.default_scope)
    report = Report()
    read = ('test_', 'default_hooks', 'custom_hooks', 'visualizer', 'log_processor', 'env_cfg')
    check_signatures(report, cfg, read)
    report.raise_errors('the evaluation')


def _check_data(cfg: Config) -> list[str]:
    """What to log of the data; raises a UserError where the figures would be wrong."""
    report = Report()
    check_test_data(report, cfg)
    report.raise_errors('the evaluation')
    return [str(finding) for finding in report.findings]


def _drawing_hook(cfg: Config, folder: str) -> DrawResults:
    hook = (cfg.get('default_hooks') or {}).get('visualization') or {}
    return DrawResults(str(Path(folder).absolute()), hook.get('score_thr', 0.3))


def _dump_into(cfg: Config, file: str) -> None:
    if not file.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out must end in .pkl or .pickle, but got {file}')
    check_writable(file, '--out')  # it is written last
    dump = dict(
        type='DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults', out_file_path=file
    )
    evaluators = cfg.test_evaluator
    cfg.test_evaluator = [*evaluators, dump] if isinstance(evaluators, list) else [evaluators, dump]
