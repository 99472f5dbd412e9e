"""Time, memory and the machine's own speed, taken in one process. On a CPU the clock is the process's own time on one thread."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


def seconds(work: Callable[[], object], device: str) -> float:
    """What one call takes, of the device (CPU: of this process); memory that was freed stays at hand, as in a run of many steps."""
    gc.collect()
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.process_time()
    work()
    return time.process_time() - begin


def peak_mb(work: Callable[[], T], device: str) -> tuple[T, float | None]:
    """What one call returns, and its peak memory above what was resident before; parameters and their gradients are not in it. None where
    it cannot be read. Not for timing: on a CPU all free memory goes back to the system first, and is faulted in again."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = work()
        torch.cuda.synchronize()
        return result, (torch.cuda.max_memory_allocated() - before) / 2**20
    resident = reset_peak()
    result = work()
    peak = process_mb("VmHWM")
    return result, None if resident is None or peak is None else peak - resident


def reset_peak() -> float | None:
    """MB resident now; the high-water mark starts from here (Linux only)."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    clear.write_text("5")
    return process_mb("VmRSS")


def process_mb(name: str) -> float | None:
    """VmRSS (resident now) or VmHWM (its peak) of this process; None where the system does not say."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    return next(int(line.split()[1]) / 1024 for line in path.read_text().splitlines() if line.startswith(name))


def gemm_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a square product, the best of several: the machine's peak as one can get it here and now."""
    side = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(6))
