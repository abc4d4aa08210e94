"""CLI entry point of tools/convert_weights.py."""

from collections.abc import Sequence

from cyclemlp_mm.weights.convert import Conversion, convert

from .arguments import parse


def convert_weights(argv: Sequence[str] | None = None) -> Conversion:
    """Convert a checkpoint, and print what was recognised and written."""
    args = parse('convert_weights', argv)
    done = convert(args.source, args.target, args.to, args.force)
    print(f'read     {args.source}: {done.source} weights, CycleMLP {done.arch}')
    counts = f'{done.backbone} tensors of the backbone, {done.classifier} of the classifier'
    print(f'written  {args.target}: {counts}, {done.rest} of the rest of the model')
    if done.dropped:
        print(f'dropped  {done.dropped} tensors of the neck and heads: published files have none')
    print(f'sha256   {done.sha256}')
    return done
