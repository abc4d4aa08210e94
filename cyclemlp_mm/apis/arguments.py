"""Command-line arguments that several tools share, with OpenMMLab's names."""

import argparse
import ast
import os
import re

from mmengine.config import DictAction

from cyclemlp_mm.weights import allow_unsafe_loading


def new_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser whose ``--help`` ends with examples."""
    return argparse.ArgumentParser(
        description=description,
        epilog=f'examples:\n{examples}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


class SettingsAction(DictAction):
    """mmengine's ``DictAction``, which also reads what a config's Python would hold.

    ``dict(type='X')``, dicts in braces, and texts with spaces or commas in quotes, in lists too.
    Its errors say which argument is wrong.
    """

    def __call__(self, parser, namespace, values, option_string=None):
        """Parse KEY=VALUE pairs."""
        options = dict(getattr(namespace, self.dest, None) or {})
        for pair in values:
            key, equals, text = pair.partition('=')
            if not key or not equals:
                parser.error(f'{option_string}: {values} are not all KEY=VALUE')
            try:
                options[key] = _value(text.strip())
            except (ValueError, AssertionError, IndexError, RecursionError) as error:
                parser.error(f'{option_string} {key}: {text} cannot be read ({error})')
        setattr(namespace, self.dest, options)


def _value(text: str) -> object:
    """A setting as typed: a Python literal or dict(…), or in mmengine's short form, [a,b] or a,b.

    Raises:
        ValueError: It begins like a dict, but is none of literals.
    """
    is_dict = re.match(r'dict\s*\(|\{', text)
    if is_dict or text[:1] in ('(', '[') or re.fullmatch(r'(["\'])[^[(].*\1', text):
        try:
            value = _literal(ast.parse(text, mode='eval').body)
            # (64) is a tuple to mmengine.
            return (value,) if text[0] == '(' and not isinstance(value, tuple) else value
        except (SyntaxError, ValueError) as error:
            if is_dict or 'dict(' in text:
                raise ValueError(
                    f'{error}; a shell needs quotes around all of it, e.g. '
                    '"KEY=dict(type=\'Pretrained\')"'
                ) from error
    if ',' not in text and text[:1] not in ('(', '['):
        return DictAction._parse_int_float_bool(text.strip('\'"'))
    return DictAction._parse_iterable(text)


def _literal(node: ast.expr) -> object:
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict' and not node.args:
        return {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict) and all(node.keys):
        return {ast.literal_eval(k): _literal(v) for k, v in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        parts = [_literal(part) for part in node.elts]
        return parts if isinstance(node, ast.List) else tuple(parts)
    return ast.literal_eval(node)


def add_config(parser: argparse.ArgumentParser) -> None:
    """CONFIG and what changes it."""
    parser.add_argument('config', help='config file, or the name of a shipped config')
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints (default: work_dirs/NAME-OF-CONFIG)'
    )
    add_cfg_options(parser, ', e.g. train_dataloader.batch_size=4')


def add_cfg_options(parser: argparse.ArgumentParser, example: str = '') -> None:
    """``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=SettingsAction,
        metavar='KEY=VALUE',
        help='override settings of the config, also those that --data sets; values as in a config, '
        f'in quotes where they have brackets or spaces{example}',
    )


class UnsafeLoadAction(argparse.Action):
    """Allows unsafe loading as soon as the option is read, so that no tool can ignore it."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Allow it."""
        setattr(namespace, self.dest, True)
        allow_unsafe_loading()


def add_unsafe_load(parser: argparse.ArgumentParser) -> None:
    """``--unsafe-load``, for every tool that reads checkpoints."""
    parser.add_argument(
        '--unsafe-load',
        action=UnsafeLoadAction,
        nargs=0,
        default=False,
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
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes were started',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)


def accept_local_rank(args: argparse.Namespace) -> None:
    """Hand ``--local-rank`` on as the variable that torchrun sets."""
    if args.local_rank is not None:
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
