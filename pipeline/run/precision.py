"""The floating-point type that networks compute in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.run.config import Precision


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type to compute in; None means float32. "auto" is bfloat16 if the hardware supports products in it."""
    if precision == "auto":
        supported = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_supports_bf16()
        return torch.bfloat16 if supported else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _cpu_supports_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 products (AVX512-BF16 or AMX)."""
    cpu_flags = Path("/proc/cpuinfo")
    flags = cpu_flags.read_text(encoding="utf-8", errors="replace") if cpu_flags.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


@contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """Autocast the block to the type that `autocast_dtype` returns."""
    dtype = autocast_dtype(precision, device)
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        yield
