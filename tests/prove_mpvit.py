"""``make prove-mpvit``: MPViT against its plain transcription in time, memory and what is kept.

Ends with 1 where a ratio is above 0.8 or memory is not linear in pixels. Times need a quiet
machine.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch
from plain_mpvit import PlainMPViT, randomise_norms

from cyclemlp_mm.models import MPViT

sys.path.insert(0, str(Path(__file__).parents[1] / 'tools'))

from benchmarking.measure import describe, peak_memory, saved_for_backward, timed

LIMIT = 0.8


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--arch', default='small', choices=list(MPViT.arch_zoo))
    parser.add_argument('--size', nargs=2, type=int, default=(800, 1216), metavar=('H', 'W'))
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--threads', type=int, help='default: as PyTorch has it')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    cpu = torch.device('cpu')
    print(*(f'{key}: {value}' for key, value in describe(cpu).items()), sep='\n')
    torch.manual_seed(0)
    plain = randomise_norms(PlainMPViT(MPViT.arch_zoo[args.arch]))
    ours = MPViT(args.arch)
    ours.load_state_dict(MPViT.published_format.to_ours(plain.state_dict()))
    models = dict(ours=ours.eval(), plain=plain.eval())
    image = torch.randn(1, 3, *args.size)
    half = torch.randn(1, 3, args.size[0] // 2, args.size[1])
    seconds = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(args.rounds + 1):  # in turns, so that a slow spell hits both
            for name, model in models.items():
                taken = timed(lambda m=model: m(image), cpu)
                seconds[name] += [taken] if turn else []
        peak = {name: peak_memory(lambda m=m: m(image), cpu) for name, m in models.items()}
        half_peak = peak_memory(lambda: ours(half), cpu)
    saved = {n: saved_for_backward(lambda m=m: m(image), m.train()) for n, m in models.items()}
    measured = {
        'seconds': {name: statistics.median(taken) for name, taken in seconds.items()},
        'peak memory, bytes': peak,
        'kept in training, bytes': saved,
    }
    ratios = {}
    for what, values in measured.items():
        print(what, ', '.join(f'{name} {value:.4g}' for name, value in values.items() if value))
        if None not in values.values():
            ratios[what] = values['ours'] / values['plain']
    if half_peak is not None:
        # 5 % over twice is the limit.
        ratios['peak memory per pixel'] = LIMIT * peak['ours'] / (2.1 * half_peak)
    for what, ratio in ratios.items():
        print(f'{what}: {ratio:.3f} of {LIMIT} allowed')
    sys.exit(any(ratio > LIMIT for ratio in ratios.values()))


if __name__ == '__main__':
    main()
