"""What a call takes: time, memory, bytes for backward, multiply-adds; what a machine can do."""

import copy
import ctypes
import gc
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from cyclemlp_mm.analysis import backbone_multiply_adds
from cyclemlp_mm.models.cyclemlp import CycleMixer
from cyclemlp_mm.ops.cycle_mixer import choose_backend
from cyclemlp_mm.ops.shifted_product import operand_width


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes."""
    synchronize = torch.cuda.synchronize if device.type == 'cuda' else lambda _: None
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def _median(call: Callable[[], object], device: torch.device) -> float:
    return statistics.median([timed(call, device) for _ in range(9)][2:])


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int = 2048) -> float:
    """Operations per second (multiply and add are two) of a square matrix product, median of 7."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / _median(lambda: torch.mm(a, b, out=out), device)


def copy_bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes per second of a large copy, read and written bytes both counted, median of 7."""
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median(lambda: target.copy_(source), device)


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a call needs on top of what is there before it.

    On a CPU the growth of the process, from Linux's account of it; elsewhere None.
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        timed(call, device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # Freed memory that malloc still holds would hide what the call takes.
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # the peak begins again
    except OSError:
        return None

    def status(key: str) -> int:
        return int(re.search(rf'{key}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1])

    before = status('VmRSS')
    call()
    return (status('VmHWM') - before) * 1024


def saved_for_backward(forward: Callable[[], object], model: nn.Module) -> int:
    """Bytes that a forward pass keeps for backward, each memory once, the model's own left out."""
    left_out = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in left_out:
            kept[pointer] = tensor  # held, so that no other memory takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # noqa: F841 (held, with all that it keeps)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def describe(device: torch.device) -> dict:
    """Machine and versions, for the record."""
    name, cpuinfo = platform.processor() or platform.machine(), Path('/proc/cpuinfo')
    text = cpuinfo.read_text() if cpuinfo.exists() else ''
    if found := re.search(r'model name\s*:\s*(.+)', text):
        known = 'avx2', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'amx_bf16'
        has = [flag for flag in known if re.search(rf'\b{flag}\b', text)]
        name = f'{found[1]} ({", ".join(has) or "no AVX"})'
    return dict(
        device=torch.cuda.get_device_name(device) if device.type == 'cuda' else name,
        threads=torch.get_num_threads(),
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
    )


def on_meta(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device, in float32 and eval mode."""
    return copy.deepcopy(model).to('meta', torch.float32).eval()


def run_operations(
    model: nn.Module, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> int:
    """Multiply-adds of the forms that the mixers take, making the matrices included.

    ``shape`` is that of the images, (B, 3, H, W); ``dtype`` that of the products on ``device``.
    """
    differences = []

    def count(mixer: CycleMixer, inputs: tuple, output: object) -> None:
        batch, height, width, channels = inputs[0].shape
        form, reweight = mixer.backend, mixer.reweight is not None
        if mixer.own_weights() is None:
            form = 'reference'  # another kernel, fewer branches: its layers are called
        elif form == 'auto':
            form = choose_backend(inputs[0].shape, device, dtype, reweight)
        if form != 'reference':
            tokens, columns = batch * height * width, operand_width(channels) - 1
            matrices = batch if reweight else 1
            extra = tokens if form == 'shift' else matrices * columns  # projection: apart, or in it
            run = tokens * columns * channels + extra * channels**2
            differences.append(run - 4 * tokens * channels**2)

    model = on_meta(model)
    for module in model.modules():
        if isinstance(module, CycleMixer):
            module.register_forward_hook(count)
    return backbone_multiply_adds(model, shape) + sum(differences)
