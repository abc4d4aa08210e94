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
    for key, value in describe(cpu).items():
        print(f'{key}: {value}')
    torch.manual_seed(0)
    plain = randomise_norms(PlainMPViT(MPViT.arch_zoo[args.arch]))
    ours = MPViT(args.arch)
    ours.load_state_dict(MPViT.published_format.to_ours(plain.state_dict()))
    models = dict(ours=ours, plain=plain)
    image = torch.randn(1, 3, *args.size)
    half = torch.randn(1, 3, args.size[0] // 2, args.size[1])
    ratios = {}

    seconds = {name: [] for name in models}
    for turn in range(args.rounds + 1):  # in turns, so that a slow spell hits both
        for name, model in models.items():
            model.eval()
            with torch.inference_mode():
                taken = timed(lambda m=model: m(image), cpu)
            if turn:
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    size = f'1x3x{args.size[0]}x{args.size[1]}, MPViT {args.arch}, float32'
    print(
        f'\n{size}\ninference  '
        + ', '.join(
            f'{name} {1e3 * medians[name]:.0f} ms ({1e3 * min(v):.0f}-{1e3 * max(v):.0f})'
            for name, v in seconds.items()
        )
    )
    ratios['time'] = medians['ours'] / medians['plain']

    with torch.inference_mode():
        peak = {n: peak_memory(lambda m=m: m(image), cpu) for n, m in models.items()}
        half_peak = peak_memory(lambda: ours(half), cpu)
    if None not in peak.values():
        print('peak       ' + ', '.join(f'{n} {v / 1e6:.0f} MB' for n, v in peak.items()))
        ratios['peak memory'] = peak['ours'] / peak['plain']
        print(f'           ours at half the pixels: {half_peak / 1e6:.0f} MB')
        ratios['peak memory, linear in pixels (5 % over twice is 0.8)'] = (
            LIMIT * peak['ours'] / (2.1 * half_peak)
        )

    saved = {}
    for name, model in models.items():
        model.train()
        saved[name] = saved_for_backward(lambda m=model: m(image), model)
    half_saved = saved_for_backward(lambda: ours(half), ours)
    print('training keeps ' + ', '.join(f'{n} {v / 1e6:.0f} MB' for n, v in saved.items()))
    print(f'           ours at half the pixels: {half_saved / 1e6:.0f} MB')
    ratios['saved bytes'] = saved['ours'] / saved['plain']
    print()
    for what, ratio in ratios.items():
        print(f'{what}: {ratio:.3f} of {LIMIT} allowed')
    sys.exit(any(ratio > LIMIT for ratio in ratios.values()))


if __name__ == '__main__':
    main()
