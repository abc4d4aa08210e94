"""``make prove-gpu``: exactness, speed and memory of the backbones on a GPU, in four parts.

Needs PyTorch, torchvision and mmengine only. Each part is one command of a few minutes, prints a
table, and writes it as json into ``--out``:

- exact: every backend, dtype, layout, ``torch.compile`` and CUDA graphs against float64 on a CPU.
- speed: inference and AMP training steps, time and peak memory, against the published form, plain
  shift + Linear and torchvision's backbones, eager and compiled.
- forms: time of each form of the mixer by channels and tokens, for the rule of ``auto``.
- train: the losses of a short training on generated data, against those of the same on a CPU.

Ends with 1 where a result is not exact. ``--device cpu --quick`` tries the script out.
"""

import argparse
import copy
import itertools
import json
import statistics
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from cyclemlp_mm.models import CycleMLP, MPViT
from cyclemlp_mm.ops import MixerWeights, ReweightWeights, cycle_mixer

sys.path.insert(0, str(Path(__file__).parents[1] / 'tools'))

from benchmarking.measure import describe, matmul_rate, peak_memory, timed
from benchmarking.published_form import published_form

FORMS = ('reference', 'shift', 'folded', 'triton')
SMALL = dict(depths=(1, 1, 2, 1), mlp_ratios=(2, 2, 2, 2))
FAMILIES = {
    'reweighted': lambda **kwargs: CycleMLP(
        dict(SMALL, widths=(64, 128, 320, 512), reweight=True, downsample='conv'), **kwargs
    ),
    'summed': lambda **kwargs: CycleMLP(
        dict(SMALL, widths=(96, 192, 384, 768), reweight=False, downsample='patch_merging'),
        **kwargs,
    ),
    'mpvit': lambda: MPViT('tiny'),
}
#: By dtype: the largest error allowed, of the largest absolute value.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def error(got, expected):
    """The largest difference of lists of tensors, each relative to its largest value."""
    return max(
        float((a.cpu().double() - b.cpu().double()).abs().max() / b.abs().max())
        for a, b in zip(got, expected, strict=True)
    )


def step(model, image, autocast):
    """Levels of an image, and the gradients of their weighed sum."""
    model.zero_grad(set_to_none=True)
    with autocast:
        levels = model(image)
    levels = [level.float() if level.dtype.itemsize < 4 else level for level in levels]
    sum(torch.sin(level).mean() for level in levels).backward()
    return [level.detach() for level in levels], [p.grad for p in model.parameters()]


def prove_exact(device, quick):
    """Rows of what was compared with float64, and whether all is within the tolerance."""
    rows, is_gpu = [], device.type == 'cuda'
    sizes = [(2, 64, 96)] if quick else [(1, 33, 45), (2, 256, 320), (3, 131, 97), (2, 512, 512)]
    families = ['reweighted', 'summed'] if quick else list(FAMILIES)
    backends = [b for b in ('auto', *FORMS) if is_gpu or b != 'triton']
    for family, size in itertools.product(families, sizes):
        torch.manual_seed(0)
        batch, height, width = size
        image = torch.randn(batch, 3, height, width)
        for backend in backends if family != 'mpvit' else ['auto']:
            kwargs = {} if family == 'mpvit' else dict(mixer_backend=backend)
            torch.manual_seed(0)
            model = FAMILIES[family](**kwargs).eval()  # BatchNorms are compared as in inference
            expected = step(copy.deepcopy(model).double(), image.double(), nullcontext())
            model, here = model.to(device), image.to(device)
            runs = {'float32': (model, here, nullcontext(), torch.float32)}
            for dtype in (torch.float16, torch.bfloat16) if is_gpu else (torch.bfloat16,):
                name = str(dtype).removeprefix('torch.')
                runs[f'amp {name}'] = model, here, torch.autocast(device.type, dtype), dtype
            if backend == 'auto':
                nhwc = here.contiguous(memory_format=torch.channels_last)
                runs['channels_last'] = model, nhwc, nullcontext(), torch.float32
                torch.compiler.reset()
                compiled = torch.compile(model, fullgraph=True)
                runs['compiled'] = compiled, here, nullcontext(), torch.float32
            for name, (forward, x, context, dtype) in runs.items():
                found = step(forward, x, context)
                errors = [error(*pair) for pair in zip(found, expected)]
                limit = TOLERANCE[dtype]
                rows.append([family, 'x'.join(map(str, size)), backend, name, *errors])
                rows[-1].append(errors[0] <= limit and errors[1] <= 10 * limit)
            if is_gpu and backend == 'auto':
                levels = _by_cuda_graph(model, here)
                rows.append([family, 'x'.join(map(str, size)), backend, 'CUDA graph'])
                rows[-1] += [error(levels, expected[0]), 0.0]
                rows[-1].append(rows[-1][-2] <= TOLERANCE[torch.float32])
    head = ['family', 'size', 'backend', 'run', 'error of levels', 'of gradients', 'exact']
    return [head, *rows], all(row[-1] for row in rows)


@torch.no_grad()
def _by_cuda_graph(model, image):
    for _ in range(3):
        model(image)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        levels = model(image)
    graph.replay()
    torch.cuda.synchronize()
    return levels


def prove_speed(device, quick):
    """Rows of medians, in turns of one process; ratios are to ours, eager."""
    archs = ['b1'] if quick else ['b1', 'b2', 't']
    sizes = [(1, 64, 64)] if quick else [(8, 800, 1216), (8, 512, 512), (2, 512, 512)]
    rows, rate = [], matmul_rate(device, torch.bfloat16, 256 if quick else 8192)
    for mode, size, arch in itertools.product(('infer', 'train'), sizes, archs):
        batch, height, width = size
        image = torch.randn(batch, 3, height, width, device=device)
        calls = {}
        for name, model in _contenders(arch, size[0] == 2).items():
            model = model.to(device).train(mode == 'train')
            calls[name] = _call(model, image, mode, device)
        taken = {name: [] for name in calls}
        for turn, (name, call) in itertools.product(range(2 if quick else 8), calls.items()):
            seconds = timed(call, device)
            taken[name] += [seconds] if turn or quick else []
        medians = {name: 1e3 * statistics.median(values) for name, values in taken.items()}
        for name, median in medians.items():
            peak = peak_memory(calls[name], device)
            row = [arch, mode, 'x'.join(map(str, size)), name, median, median / medians['ours']]
            rows.append([*row, None if peak is None else peak / 2**20])
        print(f'measured {arch} {mode} {size}', file=sys.stderr)
    print(f'bfloat16 products of large matrices: {rate / 1e12:.3g} TFLOP/s')
    head = ['arch', 'mode', 'size', 'form', 'ms', 'of ours', 'peak MiB']
    return [head, *rows], True


def _contenders(arch, every):
    torch.manual_seed(0)
    ours = CycleMLP(arch)
    found = dict(
        ours=ours,
        published=published_form(ours),
        reference=published_form(ours, 'reference'),
        resnet50=nn.Sequential(*list(models.resnet50().children())[:-2]),
        swin_t=models.swin_t().features,
        convnext_t=models.convnext_tiny().features,
    )
    for name in ('ours', 'published', 'reference') if every else ():
        found[f'{name} compiled'] = torch.compile(copy.deepcopy(found[name]))
    return found


def _call(model, image, mode, device):
    def step():
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            levels = model(image)
        levels = [levels] if isinstance(levels, torch.Tensor) else levels
        if mode == 'train':
            sum(level.float().square().mean() for level in levels).backward()

    return step if mode == 'train' else torch.inference_mode()(step)


def prove_forms(device, quick):
    """Rows of milliseconds of each form, forward and backward in bfloat16, and the fastest."""
    rows, forms = [], [f for f in FORMS if device.type == 'cuda' or f != 'triton']
    channels = [64] if quick else [64, 96, 128, 192, 320, 384, 512, 768]
    sides = [8] if quick else [7, 14, 28, 56, 100, 200]
    for c, side, train in itertools.product(channels, sides, (False, True)):
        x = torch.randn(8, side, side, c, device=device, dtype=torch.bfloat16, requires_grad=train)
        weights = _random_weights(c, device, train)

        def call(form, x=x, weights=weights, train=train):
            y = cycle_mixer(x, weights, form)
            return y.sum().backward() if train else y

        times = {}
        for form in forms:
            taken = [timed(lambda form=form: call(form), device) for _ in range(2 if quick else 12)]
            times[form] = 1e3 * statistics.median(taken[len(taken) // 4 :])
        mode = 'train' if train else 'infer'
        rows.append([c, 8 * side * side, mode, *times.values(), min(times, key=times.get)])
    return [['C', 'tokens', 'mode', *(f'{form}, ms' for form in forms), 'fastest'], *rows], True


def _random_weights(c, device, train):
    def new(*shape):
        weight = 0.02 * torch.randn(*shape, device=device, dtype=torch.bfloat16)
        return weight.requires_grad_(train)

    mlp = ReweightWeights(new(c // 4, c), new(c // 4), new(3 * c, c // 4), new(3 * c))
    pair = new(c, c), new(c)
    return MixerWeights(*pair, *pair, new(c, c), *pair, mlp)


def prove_train(device, quick):
    """Rows of losses of a classifier on generated images, here and on a CPU."""
    rows, iterations = [], 3 if quick else 40
    for family in ('reweighted', 'summed'):
        losses = {}
        for name, where in {'cpu': torch.device('cpu'), 'here': device}.items():
            torch.manual_seed(0)
            model = FAMILIES[family]().to(where).train()
            head = nn.Linear(model.out_channels[-1], 4).to(where)
            params = [*model.parameters(), *head.parameters()]
            optimiser, losses[name] = torch.optim.SGD(params, lr=0.02, momentum=0.9), []
            for i in range(iterations):
                generator = torch.Generator().manual_seed(i)
                labels = torch.randint(4, (8,), generator=generator)
                images = torch.randn(8, 3, 64, 64, generator=generator)
                images += torch.eye(4)[labels][:, :3, None, None]  # the class is the colour
                logits = head(model(images.to(where))[-1].mean(dim=(2, 3)))
                loss = F.cross_entropy(logits, labels.to(where))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses[name].append(loss.item())
        for i, pair in enumerate(zip(losses['cpu'], losses['here'])):
            rows.append([family, i, *pair, abs(pair[0] - pair[1]) <= 1e-2 * max(1.0, pair[0])])
    return [['family', 'iteration', 'CPU', 'here', 'equal'], *rows], all(row[-1] for row in rows)


PARTS = dict(exact=prove_exact, speed=prove_speed, forms=prove_forms, train=prove_train)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'of {", ".join(PARTS)}')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--quick', action='store_true', help='tiny sizes, to try the script out')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/prove_gpu'))
    args = parser.parse_args()
    if unknown := set(args.parts).difference(PARTS):
        parser.error(f'there is no part {", ".join(unknown)}')
    device = torch.device(args.device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        parser.error('PyTorch finds no GPU; --device cpu --quick tries the script out')
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    args.out.mkdir(parents=True, exist_ok=True)
    facts, failed = describe(device), []
    print(*(f'{key}: {value}' for key, value in facts.items()), sep='\n')
    for part in args.parts or PARTS:
        (head, *rows), is_exact = PARTS[part](device, args.quick)
        texts = [head, *([f'{v:.3g}' if isinstance(v, float) else str(v) for v in r] for r in rows)]
        widths = [max(map(len, column)) for column in zip(*texts)]
        print(f'\n{part}')
        for line in texts:
            print('  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
        content = dict(facts, head=head, rows=rows)
        (args.out / f'{part}.json').write_text(json.dumps(content, indent=1) + '\n')
        failed += [] if is_exact else [part]
    if failed:
        sys.exit(f'not exact: {", ".join(failed)}')


if __name__ == '__main__':
    main()
