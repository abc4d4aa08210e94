"""CLI entry point of tools/estimate.py."""

from collections.abc import Callable, Sequence

from mmengine.config import Config

from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.engine.config_files import walk
from cyclemlp_mm.errors import UserError
from cyclemlp_mm.step_memory import StepMemory, measure_step

from .arguments import parse

GIB = 2**30
#: Part of a GPU's memory that a batch must leave, as estimates may be wrong by as much.
RESERVE = 0.1


def estimate(argv: Sequence[str] | None = None) -> dict:
    """Estimate the memory of a training step on one GPU, and print it; no GPU is needed.

    Returns:
        dict: Bytes of 'weights', 'gradients', 'optimizer', 'activations' and their 'total', the
        'batch_size', the 'size' of an image, and with ``--gpu-memory`` the 'largest_batch'.

    Raises:
        UserError: The config gives no image size, not even one image fits, or the model cannot be
            estimated.
    """
    args = parse('estimate', argv)
    cfg = load_config(args.config, args.cfg_options)
    require_toolbox(cfg)
    if args.with_cp:
        cfg.model.backbone.with_cp = True
    size = tuple(args.size) if args.size else image_size(cfg)
    batch_size = args.batch_size or (cfg.get('train_dataloader') or {}).get('batch_size', 1)

    def measure(number: int) -> StepMemory:
        return measure_step(cfg, number, size, args.amp, args.device)

    memory = measure(batch_size)
    found = dict(config=args.config, batch_size=batch_size, size=list(size), **memory._asdict())
    found['total'] = memory.total
    what = f'{batch_size} image{"s" * (batch_size > 1)} of {size[0]} x {size[1]}'
    print(f'{args.config}, {what} per step on one {args.device.replace("cuda", "GPU")}, estimated')
    for name in (*memory._fields, 'total'):
        print(f'  {name:<14} {found[name] / GIB:7.2f} GiB')
    if args.gpu_memory is not None:
        limit = (1 - RESERVE) * args.gpu_memory * GIB
        known = {batch_size: memory.total}
        found['largest_batch'] = largest_batch(lambda n: measure(n).total, limit, known)
        of = f'{args.gpu_memory:g} GiB, {RESERVE:.0%} of them left free'
        print(f'  largest batch  {found["largest_batch"]:7} ({of})')
    return found


def largest_batch(
    measure: Callable[[int], int], limit: float, known: dict[int, int] | None = None
) -> int:
    """The largest batch whose memory is within ``limit`` bytes, found by measuring a few.

    ``measure`` gives the bytes of a batch, which grow with it; ``known`` are those known already.
    Raises a UserError if not even one image fits.
    """
    known = dict(known or {})
    if 1 not in known:
        known[1] = measure(1)
    if known[1] > limit:
        what = f'one image takes {known[1] / GIB:.2f} GiB of the {limit / GIB:.2f} that may be used'
        raise UserError(f'{what}: try --amp, --with-cp, smaller images or a larger --gpu-memory')
    low = max(n for n, size in known.items() if size <= limit)
    high = min((n for n, size in known.items() if size > limit), default=0)
    guess = low + 1
    while high == 0 or high - low > 1:
        known[guess] = measure(guess)
        low, high = (guess, high) if known[guess] <= limit else (low, guess)
        other = high or min(known)  # a line through two batches, on both sides where possible
        growth = max((known[other] - known[low]) / (other - low), 1)
        guess = low + int((limit - known[low]) / growth)
        guess = max(low + 1, min(guess, high - 1 if high else 16 * low))
    return low


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the largest images that a config trains on: the last size that its
    training pipeline names; raises a UserError if there is none."""
    found = None
    parts = (part for _, part in walk(cfg.get('train_dataloader')))
    for step in (part for part in parts if isinstance(part, dict) and 'type' in part):
        if step.get('crop_size') is not None:
            found = _pair(step['crop_size'])
            continue
        scales = [step[key] for key in ('scale', 'scales', 'img_scale') if step.get(key)]
        if scales and not isinstance(scales[0], float):
            if not isinstance(scales[0], int) and not isinstance(scales[0][0], int):
                scales = scales[0]  # several to choose from
            width, height = max((_pair(s) for s in scales), key=lambda s: s[0] * s[1])
            if step.get('keep_ratio'):  # mmcv takes the larger number for the longer side
                height, width = sorted((width, height))
            most = max(step.get('ratio_range') or [1])
            found = round(most * height), round(most * width)
    if found is None:
        raise UserError(
            f'{cfg.filename}: train_dataloader names no size of images: give --size HEIGHT WIDTH'
        )
    return found


def _pair(value: object) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
