"""The floating-point type that networks compute in."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.run.config import Precision

logger = logging.getLogger(__name__)

CPU_FLAGS = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}
"""Names of the instructions for products in each type."""
PRODUCT_SIZE = 256


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type to compute in; None means float32. "auto" is bfloat16 if the hardware supports products in it."""
    if precision == "auto":
        supported = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_supports_bf16()
        return torch.bfloat16 if supported else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def slow_precision(precision: Precision, device: torch.device) -> str:
    """A warning where a 16-bit type is asked for on a CPU without instructions for it; otherwise empty.

    The time of one product on this machine says what the type costs.
    """
    if device.type != "cpu" or precision not in CPU_FLAGS:
        return ""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if any(flag in _cpu_flags() for flag in CPU_FLAGS[precision]):
        return ""
    ratio = _product_seconds(dtype) / _product_seconds(torch.float32)
    return (
        f"precision is {precision}, but this CPU has no instructions for it ({' or '.join(CPU_FLAGS[precision])}): a "
        f"product of two {PRODUCT_SIZE} x {PRODUCT_SIZE} matrices, measured now, takes {ratio:.1f} times as long as in "
        "fp32; set precision to auto or fp32"
    )


def warn_of_slow_precision(precision: Precision, gpus_per_worker: float) -> None:
    """Log `slow_precision` where workers have no GPU, as measured on this machine, before they start."""
    if gpus_per_worker == 0 and (warning := slow_precision(precision, torch.device("cpu"))):
        logger.warning("  warning: %s", warning)


def _product_seconds(dtype: torch.dtype) -> float:
    """The least time of a few products of two matrices of this type on the CPU, in seconds."""
    matrix, seconds = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE, dtype=dtype), []
    for _ in range(3):
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _cpu_supports_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 products."""
    return any(flag in _cpu_flags() for flag in CPU_FLAGS["bf16"])


def _cpu_flags() -> str:
    """What Linux says about this CPU; empty on other systems."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


@contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """Autocast the block to the type that `autocast_dtype` returns."""
    dtype = autocast_dtype(precision, device)
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        yield
