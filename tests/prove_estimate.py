"""tools/estimate.py against the peak of a real training step on the CPU.

The real peak is the largest sum of what PyTorch's allocator gave and got back, as its profiler
reports them (``[memory]`` events), with random images and boxes, from building the model to the end
of the second step, of which the second counts. It shares no counting with the estimate.
"""

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path

import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch.profiler import ProfilerActivity, profile, record_function

from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.step_memory import make_batch, measure_step

#: Config, images, height and width, --amp, --with-cp.
CASES = [
    ('retinanet_cyclemlp_b1_fpn_1x_coco', 2, (320, 416), False, False),
    ('mask_rcnn_cyclemlp_b1_fpn_1x_coco', 1, (320, 416), False, False),
    ('mask_rcnn_cyclemlp_b1_fpn_1x_coco', 1, (320, 416), False, True),
    ('cascade_mask_rcnn_cyclemlp_t_fpn_ms-3x_coco', 1, (192, 256), False, False),
    ('fpn_cyclemlp_b1_512x512_40k_ade20k', 2, (512, 512), False, False),
    ('upernet_cyclemlp_b1_512x512_160k_ade20k', 2, (512, 512), False, True),
    ('upernet_cyclemlp_t_512x512_160k_ade20k', 2, (256, 256), False, False),
    ('cyclemlp_b1_in1k', 8, (224, 224), False, False),
    ('cyclemlp_b1_in1k', 2, (128, 128), True, False),
    ('mpvit_tiny_in1k', 4, (224, 224), False, False),
]
MOST = 0.10
#: Boxes of an image: as many as a two-stage detector needs to fill its sample of objects.
CROWD = 60


def real_batch(scope, batch_size, size):
    """The batch's shapes with random numbers in them."""
    batch = make_batch(scope, batch_size, size)
    batch['inputs'] = [torch.randint(256, x.shape, dtype=torch.uint8) for x in batch['inputs']]
    if scope != 'mmdet':
        return batch
    from mmdet.structures.mask import BitmapMasks

    limits = torch.tensor(size[::-1])
    for sample in batch['data_samples']:
        start = torch.rand(CROWD, 2) * (limits - 100)
        corners = start + torch.rand(CROWD, 2) * 70 + 30
        objects = type(sample.gt_instances)()
        objects.bboxes = torch.cat([start, corners], dim=1)
        objects.labels = torch.randint(80, (CROWD,))
        masks = torch.randint(2, (CROWD, *size), dtype=torch.uint8).numpy()
        objects.masks = BitmapMasks(masks, *size)
        sample.gt_instances = objects
    return batch


def real_peak(cfg, batch_size, size, amp):
    """Bytes that PyTorch's CPU allocator held at most in the second of two steps."""
    scope = require_toolbox(cfg)
    init_default_scope(scope)
    cfg.model.backbone.init_cfg = None
    batch = real_batch(scope, batch_size, size)
    torch.manual_seed(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = MODELS.build(cfg.model).train()
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
        average = copy.deepcopy(model) if 'EMAHook' in str(cfg.get('custom_hooks')) else None
        for name in ('first', 'second'):
            with record_function(name):
                with torch.autocast('cpu', torch.bfloat16, enabled=amp):
                    losses = model(**model.data_preprocessor(batch, True), mode='loss')
                    loss, _ = model.parse_losses(losses)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    del average
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())['traceEvents']
    begun = next(event['ts'] for event in events if event.get('name') == 'second')
    live = peak = 0
    for event in sorted((e for e in events if e.get('name') == '[memory]'), key=lambda e: e['ts']):
        live += event['args']['Bytes']
        peak = max(peak, live) if event['ts'] >= begun else peak
    return peak


def compare(name, batch_size, size, amp, with_cp):
    """The ratio of estimate and real peak, printed."""
    cfg = load_config(name)
    cfg.model.backbone.with_cp = with_cp
    estimate = measure_step(cfg, batch_size, size, amp, device='cpu').total
    real = real_peak(cfg, batch_size, size, amp)
    options = ' --amp' * amp + ' --with-cp' * with_cp
    what = f'{name}{options}, {batch_size} x {size[0]} x {size[1]}'
    print(
        f'{estimate / 2**20:8.0f} {real / 2**20:8.0f} MiB  {estimate / real:.3f}  {what}',
        flush=True,
    )
    return estimate / real


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--cases', nargs='*', type=int, help='numbers of CASES (default: all)')
    args = parser.parse_args()
    cases = CASES if args.cases is None else [CASES[i] for i in args.cases]
    print('estimate, real peak, ratio')
    ratios = [compare(*case) for case in cases]
    wrong = [ratio for ratio in ratios if abs(ratio - 1) > MOST]
    print(f'{len(ratios)} cases, ratios {min(ratios):.3f} to {max(ratios):.3f}')
    sys.exit(bool(wrong))
