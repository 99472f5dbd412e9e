"""Time, memory and the machine's own speed, taken in one process. On a CPU the clock is the process's own time on one thread."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Cost:
    seconds: float
    peak_mb: float | None
    """Above what was resident before; parameters and their gradients are not in it. None where it cannot be read."""


def cost(work: Callable[[], object], device: str) -> Cost:
    """What one call takes: seconds of the device (CPU: of this process), and the peak memory above that before."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return Cost(start.elapsed_time(end) / 1e3, (torch.cuda.max_memory_allocated() - before) / 2**20)
    resident = reset_peak()
    begin = time.process_time()
    work()
    seconds = time.process_time() - begin
    peak = process_mb("VmHWM")
    return Cost(seconds, None if resident is None or peak is None else peak - resident)


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
    return 2 * side**3 / min(cost(lambda: a @ b, device).seconds for _ in range(6))
