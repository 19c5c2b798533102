"""Memory that is used again: a batch of payloads is too large for the allocator to keep, and fresh pages are slow."""

import mmap
import weakref
from collections import defaultdict, deque

import numpy as np


class BufferPool:
    """Lends memory, and lends it again once nothing refers to it any more; any thread may ask.

    It holds as many buffers as were ever lent at once, each rounded up to a power of two.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, deque[mmap.mmap]] = defaultdict(deque)  # by size

    def take(self, num_bytes: int) -> memoryview:
        """Memory of the caller's own until the view and all that was made of it are gone; its content is undefined."""
        size = 1 << max(num_bytes - 1, mmap.PAGESIZE - 1).bit_length()
        try:
            memory = self._free[size].pop()
        except IndexError:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)  # the kernel copies into large pages faster
        owner = np.frombuffer(memory, np.uint8, num_bytes)  # slices, arrays and tensors keep it alive
        weakref.finalize(owner, self._free[size].append, memory).atexit = False
        return owner.data
