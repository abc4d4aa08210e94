"""What the machine can do at best: matrix products and copies, and the memory a call takes."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path('/proc/self/status'), Path('/proc/self/clear_refs')


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; a CPU has always finished."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int = 2048) -> float:
    """Operations per second (multiply and add are two) of a square matrix product, median of 7."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = [timed(lambda: torch.mm(a, b, out=out), device) for _ in range(9)][2:]
    return 2 * side**3 / statistics.median(seconds)


def copy_bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes per second of a large copy, read and written bytes both counted, median of 7."""
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    seconds = [timed(lambda: target.copy_(source), device) for _ in range(9)][2:]
    return 2 * source.nbytes / statistics.median(seconds)


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a call needs on top of what is there before it.

    On a CPU the growth of the process, from Linux's account of it; elsewhere None.
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != 'cpu' or not _CLEAR.exists():
        return None
    try:
        # Freed memory that malloc still holds would hide what the call takes.
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        _CLEAR.write_text('5')  # the peak begins again
    except OSError:
        return None
    before = _status('VmRSS')
    call()
    return _status('VmHWM') - before


def _status(key: str) -> int:
    return int(re.search(rf'{key}:\s+(\d+) kB', _STATUS.read_text())[1]) * 1024


def describe(device: torch.device) -> dict:
    """Machine and versions, for the record."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        found = re.search(r'model name\s*:\s*(.+)', text)
        name = found[1] if found else name
        flags = (re.search(r'flags\s*:\s*(.+)', text) or [None, ''])[1].split()
        known = ('avx2', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'amx_bf16')
        name += f' ({", ".join(f for f in known if f in flags) or "no AVX"})'
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    return dict(
        device=name,
        threads=torch.get_num_threads(),
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
    )
