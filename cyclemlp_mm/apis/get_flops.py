"""CLI entry point of tools/get_flops.py."""

import json
from collections.abc import Sequence

import torch
from mmengine.registry import MODELS

from cyclemlp_mm import analysis
from cyclemlp_mm.checks import model_errors
from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.errors import UserError

from .arguments import parse


def get_flops(argv: Sequence[str] | None = None) -> dict:
    """Count parameters and multiply-adds, and print them; raises a UserError where it cannot.

    Returns:
        dict: What was printed: 'model', 'size', 'parameters', 'multiply_adds' and their 'parts'.
    """
    args = parse('get_flops', argv)
    if (args.config is None) == (args.arch is None):
        raise UserError('give either CONFIG or --arch')
    if args.arch is not None and args.cfg_options:
        raise UserError('--cfg-options override settings of CONFIG, and --arch has none')
    if args.config is not None:
        name = args.config
        cfg = load_config(name, args.cfg_options)
        size = tuple(args.size or analysis.SIZES[require_toolbox(cfg)])
        with model_errors(name):
            model = analysis.build_on_meta(cfg)
        parts = analysis.count_parts(model, size)
    else:
        name = f'CycleMLP {args.arch}'
        size = tuple(args.size or analysis.SIZES['mmpretrain'])
        try:
            with torch.device('meta'):
                model = MODELS.build(dict(type='CycleMLP', arch=args.arch)).eval()
        except ValueError as error:  # lists the archs of the family
            raise UserError(f'--arch {args.arch}: {error}') from error
        parts = dict(backbone=analysis.backbone_multiply_adds(model, (1, 3, *size)))
    found = dict(model=name, size=list(size), parameters=analysis.count_parameters(model))
    found |= dict(multiply_adds=sum(parts.values()), parts=parts)
    if args.json:
        print(json.dumps(found, indent=1))
        return found
    print(f'{name} at {size[0]} x {size[1]}')
    print(f'  parameters           {found["parameters"] / 1e6:8.2f} M')
    for part, count in {'multiply-adds': found['multiply_adds'], **parts}.items():
        print(f'  {"  " * (part in parts)}{part:<20} {count / 1e9:8.2f} G')
    return found
