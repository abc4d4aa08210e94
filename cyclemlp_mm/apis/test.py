"""CLI entry point of tools/test.py."""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from cyclemlp_mm.checks import check_writable
from cyclemlp_mm.engine import DeployModel, DrawResults, finish_launch, is_first_process
from cyclemlp_mm.engine.config_data import evaluators, other_evaluated_files
from cyclemlp_mm.engine.hooks.logger import progress_bar
from cyclemlp_mm.engine.per_class import add_per_class_results
from cyclemlp_mm.engine.summary import LogSummary
from cyclemlp_mm.engine.test_series import CorruptionSeries, SizeSeries
from cyclemlp_mm.engine.test_time_augmentation import use_test_time_augmentation
from cyclemlp_mm.errors import MissingFileError, UserError
from cyclemlp_mm.preflight import Report, check_test_data
from cyclemlp_mm.preflight.settings import check_signatures

from .arguments import parse, require_boxes, style_of
from .prepare import log, prepare_config, take_classes_of


def test(argv: Sequence[str] | None = None) -> dict:
    """Evaluate a checkpoint; returns metrics by name, those of a series of tests by test."""
    args = parse('test', argv)
    style = style_of(args, args.show_dir is not None, 'Give --show-dir DIR')
    if 'load_from' in args.cfg_options:
        raise UserError('--cfg-options load_from: the checkpoint is the second argument')
    cfg = prepare_config(args, needed=('val',))
    require_boxes(args, cfg.default_scope)
    init_default_scope(cfg.default_scope)
    report = Report()
    # What an evaluation reads.
    sections = 'test_', 'default_hooks', 'custom_hooks', 'visualizer', 'log_processor', 'env_cfg'
    check_signatures(report, cfg, sections)
    report.raise_errors('the evaluation')
    if not Path(args.checkpoint).is_file() and '://' not in args.checkpoint:
        raise MissingFileError(f'checkpoint {args.checkpoint} does not exist')
    for key, what, fix in other_evaluated_files(cfg, ['test']):
        raise UserError(f'{key} {what}. {fix}')
    series = _series(args, cfg)
    cfg.load_from = args.checkpoint
    cfg.resume = False  # the config of a resumed run has True, which requires optimiser state
    if args.show_dir is not None:
        check_writable(args.show_dir, '--show-dir', is_folder=True)
    lines = take_classes_of(cfg)
    if is_first_process(cfg.launcher):
        check_test_data(report, cfg)
        report.raise_errors('the evaluation')
        lines += map(str, report.findings)
    if args.out is not None:
        if not args.out.endswith(('.pkl', '.pickle')):
            raise UserError(f'--out must end in .pkl or .pickle, but got {args.out}')
        check_writable(args.out, '--out')  # it is written last
        kind = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
        cfg.test_evaluator = [*evaluators(cfg, ['test']), dict(type=kind, out_file_path=args.out)]
    plain = copy.deepcopy(cfg)
    if args.tta:
        lines += use_test_time_augmentation(cfg)
    runner = Runner.from_cfg(cfg)
    if args.tta:  # the work dir's config stays the one to train and test with
        runner.cfg = plain
        runner.dump_config()
    log(runner, lines)
    # Hooks that are not in the config, which goes into the work dir: the next run is asked again.
    if args.deploy:
        runner.register_hook(DeployModel())
    if args.show_dir is not None:
        drawing = (cfg.get('default_hooks') or {}).get('visualization') or {}
        style.score_thr = drawing.get('score_thr', 0.3)
        runner.register_hook(DrawResults(str(Path(args.show_dir).absolute()), style))
    runner.register_hook(LogSummary())
    if series is None:
        add_per_class_results(runner)
    with progress_bar(runner):
        metrics = runner.test() if series is None else series.run(runner)
    if args.show_dir is not None and is_main_process():
        print(f'pictures {args.show_dir}', flush=True)
    finish_launch()
    return metrics


def _series(args: argparse.Namespace, cfg: Config) -> SizeSeries | CorruptionSeries | None:
    """The series of tests that is asked for; a UserError for options that do not go together."""
    corruptions = args.corruptions is not None or args.corrupted_data is not None
    if args.reference is not None and not corruptions:
        raise UserError('--reference is compared with the errors of --corruptions: give it too')
    if not corruptions and args.sizes is None:
        return None
    given = dict(vars(args), corruptions=corruptions or None)
    options = [key for key in ('sizes', 'corruptions', 'tta', 'out', 'show_dir') if given.get(key)]
    if len(options) > 1:
        listed = ' and '.join(f'--{key.replace("_", "-")}' for key in options)
        raise UserError(f'{listed} do not go together: run tools/test.py once for each')
    if args.sizes is not None:
        return SizeSeries(cfg, args.sizes)
    return CorruptionSeries(cfg, args.corruptions or (), args.corrupted_data, args.reference)
