"""Memory for pixels that is used again.

Each step makes its pixels anew, hundreds of megabytes. The system clears memory before a process may have it, which takes as long as
writing the pixels does.
"""

from __future__ import annotations

from collections import deque

import numpy as np

LEAST = 2**20
"""Bytes from which it pays: smaller pieces of memory the C library keeps itself."""


class Memory:
    """Arrays whose memory comes back when the last view of them is gone. Any thread may ask, and any may let go."""

    def __init__(self, most: int) -> None:
        self.most = most
        """Bytes that are kept for later."""
        self._idle: deque[np.ndarray] = deque()

    @property
    def idle(self) -> int:
        """Bytes kept now."""
        return sum(block.nbytes for block in list(self._idle))

    def empty(self, size: int) -> np.ndarray:
        """float32 [size] of whatever values, at the start of an idle block that is at most twice as long, or of a new one."""
        if 4 * size < LEAST:
            return _aligned(size)
        for _ in range(len(self._idle)):
            try:
                block = self._idle.popleft()
            except IndexError:  # another thread was faster
                break
            if size <= block.size <= 2 * size:
                return np.asarray(_Lent(block, self))[:size]
            self._idle.append(block)
        return np.asarray(_Lent(_aligned(size), self))

    def take_back(self, block: np.ndarray) -> None:
        self._idle.append(block)
        while self._idle and self.idle > self.most:
            self._idle.popleft()


def _aligned(size: int) -> np.ndarray:
    """float32 [size] that begins at a multiple of 64 bytes: products may round differently at other places, and a run that was resumed must
    equal one that was not."""
    room = np.empty(size + 16, np.float32)
    start = -(room.ctypes.data // 4) % 16
    return room[start : start + size]


class _Lent:
    """Who holds a block; numpy keeps it alive for as long as there is a view."""

    def __init__(self, block: np.ndarray, memory: Memory) -> None:
        self._block, self._memory = block, memory
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self._memory.take_back(self._block)
