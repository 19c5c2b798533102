"""What the checks of `benchmarks.gpu_checks` share: device, sizes, budget, and how a call is timed."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]
DATASHEET_FLOPS = 989e12
"""Dense bfloat16 of H100 and H200 (SXM), by NVIDIA's datasheets: MFU is given as a share of it."""


@dataclass(frozen=True)
class Setting:
    """Where and for how long a check runs."""

    device: torch.device
    is_tiny: bool
    deadline: float
    """Of `time.monotonic`."""

    def has(self, seconds: float) -> bool:
        """Whether so much time is left; always with tiny sizes."""
        return self.is_tiny or self.deadline - time.monotonic() > seconds

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def timed(self, call: Callable[[], object], repeats: int = 10, warm_up: int = 3) -> Row:
        """Milliseconds of a call, median and least, by the clock, of `repeats` after `warm_up`."""
        if self.is_tiny:
            repeats, warm_up = 2, 1
        for _ in range(warm_up):
            call()
        found = []
        for _ in range(repeats):
            self.synchronize()
            begin = time.perf_counter()
            call()
            self.synchronize()
            found.append(1e3 * (time.perf_counter() - begin))
        return {"ms": statistics.median(found), "least_ms": min(found)}

    @contextmanager
    def peak(self, row: Row) -> Iterator[None]:
        """Put the peak memory of the block, and what there was before, into the row, in GiB; only a GPU tells it."""
        if not self.is_cuda:
            yield
            return
        torch.cuda.empty_cache()
        row["base_gib"] = torch.cuda.memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        yield
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30

    @contextmanager
    def guarded(self, row: Row) -> Iterator[None]:
        """Put the first line of an error of torch into the row: too little memory, or a kernel that is not there."""
        try:
            yield
        except RuntimeError as error:  # torch.OutOfMemoryError is one, and so are the compiler's errors
            row["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        if self.is_cuda:
            torch.cuda.empty_cache()

    def autocast(self) -> torch.autocast:
        """In bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def matrix_flops(self, dtype: torch.dtype = torch.bfloat16) -> float:
        """Operations per second of a product of two large matrices with random values: the ceiling of this device."""
        side = 256 if self.is_tiny else 8192
        one, other = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
        return 2 * side**3 / (1e-3 * self.timed(lambda: one @ other, repeats=20)["ms"])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm, in float64."""
    exact = expected.detach().double()
    return float((found.detach().double() - exact).norm() / exact.norm())
