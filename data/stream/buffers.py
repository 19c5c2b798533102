"""Reused memory for batches: they are too large for malloc to keep, and pages fresh from the kernel are slow."""

import mmap
import weakref
from collections import defaultdict, deque

import numpy as np


class BufferPool:
    """A thread-safe pool of buffers, each of which is reused once nothing refers to it any more.

    It keeps as many buffers as were ever in use at once, each rounded up to a power of two bytes.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, deque[mmap.mmap]] = defaultdict(deque)  # by size

    def take(self, num_bytes: int) -> memoryview:
        """A buffer of undefined content, for the caller alone until the view and everything made from it are gone."""
        size = 1 << max(num_bytes - 1, mmap.PAGESIZE - 1).bit_length()
        try:
            memory = self._free[size].pop()
        except IndexError:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)  # copies into huge pages are faster
        owner = np.frombuffer(memory, np.uint8, num_bytes)  # slices, arrays and tensors keep it alive
        weakref.finalize(owner, self._free[size].append, memory).atexit = False
        return owner.data
