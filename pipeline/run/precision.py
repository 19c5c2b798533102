"""The floating-point type that networks compute in, and the library that computes float32 products on a CPU."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from pipeline.run.config import Precision

logger = logging.getLogger(__name__)

CPU_FLAGS = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}
"""Names of the instructions for products in each type."""
PRODUCT_SIZE = 256
MAX_PRODUCT_ERROR = 1e-6
"""Largest relative error of a float32 product; bfloat16 has 3e-3."""
CHECKED_PRODUCTS = ((64, 64, 64), (257, 131, 67), (512, 192, 768), (1024, 32, 288))
"""Rows, inner length and columns of the products that `_onednn_error` computes."""


def prepare_to_compute(device: torch.device, num_threads: int | None = None) -> None:
    """Set what the numbers that this process computes depend on. Every process that computes calls it before it does.

    On AMD's CPUs with AVX-512, torch's library for float32 products, MKL, uses AVX2 only; oneDNN takes half the time.
    torch gives these products to oneDNN if they may be computed in bfloat16, which oneDNN does on CPUs with AMX alone.
    CPU and rounding decide, not time: all processes on one machine choose the same, today and when a run is resumed.

    Args:
        num_threads: for products on the CPU; None leaves their number.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    by_onednn = device.type == "cpu" and _onednn_is_better() and _onednn_error() < MAX_PRODUCT_ERROR
    # Not the setting of mkldnn alone: with that, torch.compile ends with an error.
    torch.set_float32_matmul_precision("medium" if by_onednn else "highest")


def describe_products() -> str:
    """Which library computes float32 products on this CPU after `prepare_to_compute`, for a log."""
    if not _onednn_is_better():
        return "fp32 products by torch's default library"
    error = _onednn_error()
    refused = "" if error < MAX_PRODUCT_ERROR else " is too large, so they are by torch's default library"
    return f"fp32 products by oneDNN: relative error {error:.1e}{refused}"


def _onednn_is_better() -> bool:
    """Whether oneDNN uses wider instructions than MKL on this CPU, and none of lower precision."""
    flags = _cpu_flags()
    return (
        torch.backends.mkldnn.is_available() and "AuthenticAMD" in flags and "avx512f" in flags and "amx_" not in flags
    )


@cache
def _onednn_error() -> float:
    """The largest relative error of products by oneDNN, forward and as in a backward pass, against float64."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return max(_product_error(*sizes) for sizes in CHECKED_PRODUCTS)
    finally:
        torch.set_float32_matmul_precision(before)


def _product_error(rows: int, inner: int, columns: int) -> float:
    """The largest relative error of x W^T, of both its gradients, and of a batch of attention scores."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inner, generator=generator)
    weight = torch.randn(columns, inner, generator=generator)
    gradient = torch.randn(rows, columns, generator=generator)
    heads = torch.stack([x, -x])
    return max(
        _relative_error(torch.nn.functional.linear(x, weight), x.double() @ weight.double().T),
        _relative_error(gradient @ weight, gradient.double() @ weight.double()),
        _relative_error(gradient.T @ x, gradient.double().T @ x.double()),
        _relative_error(heads.transpose(1, 2) @ heads, heads.double().transpose(1, 2) @ heads.double()),
    )


def _relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


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
    if gpus_per_worker > 0:
        return
    logger.debug("%s", describe_products())
    if warning := slow_precision(precision, torch.device("cpu")):
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
