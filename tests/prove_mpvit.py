"""``make prove-mpvit``: MPViT against its plain transcription in time, memory and what is kept.

Ends with 1 where a ratio is above 0.8 or memory is not linear in pixels. Times need a quiet
machine.
"""

import argparse
import itertools
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
    args = parser.parse_args()
    cpu = torch.device('cpu')
    print(*(f'{key}: {value}' for key, value in describe(cpu).items()), sep='\n')
    torch.manual_seed(0)
    plain = randomise_norms(PlainMPViT(MPViT.arch_zoo[args.arch])).eval()
    ours = MPViT(args.arch).eval()
    ours.load_state_dict(MPViT.published_format.to_ours(plain.state_dict()))
    image = torch.randn(1, 3, *args.size)
    half = image[:, :, : args.size[0] // 2]
    seconds = {ours: [], plain: []}
    with torch.inference_mode():
        for _, (model, taken) in itertools.product(range(8), seconds.items()):  # in turns
            taken.append(timed(lambda m=model: m(image), cpu))
        peaks = [peak_memory(lambda m=model: m(image), cpu) for model in seconds]
        half_peak = peak_memory(lambda: ours(half), cpu)
    saved = [saved_for_backward(lambda m=m: m(image), m.train()) for m in seconds]
    pairs = {
        'seconds': [statistics.median(taken[1:]) for taken in seconds.values()],
        'peak memory, bytes': peaks,
        'kept in training, bytes': saved,
        # 5 % over twice is the limit.
        'peak memory per pixel': [LIMIT * peaks[0], 2.1 * half_peak],
    }
    for what, (one, other) in pairs.items():
        print(f'{what}: {one:.4g} and {other:.4g}, {one / other:.3f} of {LIMIT} allowed')
    sys.exit(any(one / other > LIMIT for one, other in pairs.values()))


if __name__ == '__main__':
    main()
