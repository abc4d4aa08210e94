"""Command-line arguments that several tools share, with OpenMMLab's names."""

import argparse
import os

from mmengine.config import DictAction


def new_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` ends with examples."""
    return argparse.ArgumentParser(
        description=description,
        epilog=f'examples:\n{examples}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


class SettingsAction(DictAction):
    """mmengine's ``DictAction`` whose errors say which argument is wrong."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Parse KEY=VALUE pairs."""
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, IndexError) as error:
            parser.error(f'{option_string}: {values} are not all KEY=VALUE ({error})')


def add_config(parser: argparse.ArgumentParser) -> None:
    """CONFIG and what changes it."""
    parser.add_argument('config', help='config file, or the name of a shipped config')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints '
                        '(default: work_dirs/NAME-OF-CONFIG)')  # fmt: skip
    add_cfg_options(parser, ', e.g. train_dataloader.batch_size=4')


def add_cfg_options(parser: argparse.ArgumentParser, example: str = '') -> None:
    """``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=SettingsAction,
        metavar='KEY=VALUE',
        help=f'override settings of the config{example}',
    )


def add_unsafe_load(parser: argparse.ArgumentParser) -> None:
    """``--unsafe-load``."""
    parser.add_argument(
        '--unsafe-load',
        action='store_true',
        help='unpickle checkpoints that safe loading refuses: they can run any code, so only for '
        'files that you trust like a program',
    )


def add_deploy(parser: argparse.ArgumentParser) -> None:
    """``--deploy``."""
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='fold what can be folded (norms, RepMLP branches) once the checkpoint is loaded',
    )


def add_own_data(parser: argparse.ArgumentParser) -> None:
    """``--data`` and what it needs to know."""
    group = parser.add_argument_group('your own data')
    group.add_argument(
        '--data',
        metavar='DIR',
        help="folder in COCO 2017's layout (detection), ADE20K's (segmentation), or of images "
        'sorted by class (classification); paths, class names and num_classes follow from it',
    )
    group.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='segmentation: class names in the order of the labels (default: DIR/classes.txt); '
        'detection: which of the annotated classes to use (default: all)',
    )
    group.add_argument(
        '--ignore-label',
        type=int,
        metavar='K',
        help='segmentation: labels count from 0, and K is ignored (default: they count from 1, '
        'and 0 is ignored)',
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """``--launcher``; ``--local-rank`` is what older launchers pass."""
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
        help='how the processes were started',
    )  # fmt: skip
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)


def accept_local_rank(args: argparse.Namespace) -> None:
    """Hand ``--local-rank`` on as the variable that torchrun sets."""
    if args.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
