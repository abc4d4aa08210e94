"""Time exported files in onnxruntime and OpenVINO, in turns with PyTorch; prints a table.

Semantic FPN-B1 with random weights, whole and its backbone alone. OpenVINO, which is not in the
project's set-up, is left out where it is not installed.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import onnxruntime
import torch
from mmengine.registry import MODELS, init_default_scope

from cyclemlp_mm.engine import load_config, require_toolbox
from cyclemlp_mm.export import ExportedPart, export_model
from cyclemlp_mm.export.quantize import quantize

CONFIG = 'fpn_cyclemlp_b1_256x256_600i_small'
PRECISIONS = ('f32', 'bf16')


def in_onnxruntime(path, threads, image):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return partial(session.run, None, {'image': image.numpy()})


def in_openvino(path, threads, image, precision):
    import openvino

    hints = dict(INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT='LATENCY')
    hints['INFERENCE_PRECISION_HINT'] = precision
    request = openvino.Core().compile_model(path, 'CPU', hints).create_infer_request()
    return lambda: list(request.infer({0: image.numpy()}).values())


def eager(part, image, dtype):
    with torch.inference_mode(), torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        return part(image)


def forms(model, name, folder, threads, image):
    """What is timed, by label; the first one is what the others are compared with."""
    part = ExportedPart(model, name)
    runs = {
        'PyTorch, float32': partial(eager, part, image, torch.float32),
        'PyTorch, bfloat16 (autocast)': partial(eager, part, image, torch.bfloat16),
    }
    files = {kind: str(folder / f'{name}_{kind}.onnx') for kind in ('float32', 'constant', 'int8')}
    export_model(model, files['float32'], name)
    export_model(model, files['constant'], name, constant_weights=True)
    images = [image, torch.randn_like(image)]
    quantize(Path(files['constant']), Path(files['int8']), images)
    for kind, label in dict(
        float32='float32', constant='float32, --constant-weights', int8='--quantize int8'
    ).items():
        runs[f'onnxruntime, {label}'] = in_onnxruntime(files[kind], threads, image)
        for precision in PRECISIONS:
            what = f'OpenVINO in {precision}, {label}'
            try:
                runs[what] = in_openvino(files[kind], threads, image, precision)
            except ImportError:
                print(f'{what}: OpenVINO is not installed')
    return runs


def measure(runs, repeats):
    """Milliseconds and outputs by label, in turns."""
    taken, outputs = {label: [] for label in runs}, {}
    for _ in range(repeats + 2):
        for label, run in runs.items():
            start = time.perf_counter()
            found = run()
            taken[label].append(1000 * (time.perf_counter() - start))
            outputs[label] = torch.cat([torch.as_tensor(o).float().flatten() for o in found])
    return {label: values[2:] for label, values in taken.items()}, outputs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--repeats', type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cfg = load_config(CONFIG)
    init_default_scope(require_toolbox(cfg))
    model = MODELS.build(cfg.model).eval()
    image = torch.randn(1, 3, args.size, args.size)
    print('| | ms, median (quartiles) | of float32 PyTorch | rms difference |\n|---|---|---|---|')
    with tempfile.TemporaryDirectory() as folder:
        for name in ('backbone', 'model'):
            taken, outputs = measure(
                forms(model, name, Path(folder), args.threads, image), args.repeats
            )
            first = next(iter(taken))
            for label, values in taken.items():
                low, middle, high = statistics.quantiles(values, n=4)
                ratio = middle / statistics.median(taken[first])
                error = (outputs[label] - outputs[first]).norm() / outputs[first].norm()
                row = f'{name}: {label} | {middle:.0f} ({low:.0f}–{high:.0f}) | {ratio:.2f}'
                print(f'| {row} | {error:.1e} |', flush=True)


if __name__ == '__main__':
    main()
