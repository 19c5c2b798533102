"""The kernels that compute attention, in order of preference. To add one, add a row to `BACKENDS`.

Every backend computes softmax(q k^T / sqrt(d)) v; they differ in speed, memory and rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

MATMUL_MAX_SCORES = 512 * 512  # per head; above it the scores cost more memory than the fused kernel costs time
FLASH_MAX_CHANNELS = 256  # of a head: flash-attn has no kernels for wider ones
HALF_PRECISION = (torch.float16, torch.bfloat16)

Queries = Float[Tensor, "b n heads d"]
Keys = Float[Tensor, "b m heads d"]
Mask = Bool[Tensor, "b m"] | None


@dataclass(frozen=True)
class Backend:
    """One way to compute attention."""

    name: str
    supports: Callable[[Tensor, Tensor, Tensor | None], bool]
    """supports(query, key, mask): whether `run` takes these arguments, and should be preferred to the rows after it."""
    run: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    """run(query, key, value, mask) with tensors (b n heads d), and a mask (b m) or None; returns (b n heads d)."""


@lru_cache(maxsize=1)
def _flash_attn() -> Any:  # noqa: ANN401 - an optional module without type information
    return import_module("flash_attn") if find_spec("flash_attn") else None


def _flash_supports(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:  # noqa: ARG001 - of the interface
    fits = query.dtype in HALF_PRECISION and query.is_cuda and mask is None and query.shape[-1] <= FLASH_MAX_CHANNELS
    return fits and _flash_attn() is not None


def _run_flash(query: Queries, key: Keys, value: Keys, mask: Mask) -> Queries:  # noqa: ARG001 - None, as `supports` says
    return _flash_attn().flash_attn_func(query, key, value)


def _matmul_supports(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:  # noqa: ARG001 - of the interface
    is_short = query.shape[1] * key.shape[1] <= MATMUL_MAX_SCORES
    is_faster = query.dtype in HALF_PRECISION or (query.dtype == torch.float32 and _products_by_onednn())
    return is_faster and query.device.type == "cpu" and is_short


@torch.compiler.assume_constant_result
def _products_by_onednn() -> bool:
    """Whether oneDNN computes float32 products on the CPU, which takes long for the small ones in the fused kernel."""
    return torch.get_float32_matmul_precision() == "medium"


def _run_matmul(query: Queries, key: Keys, value: Keys, mask: Mask) -> Queries:
    query, key, value = (_heads_first(x) for x in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~rearrange(mask, "b m -> b 1 1 m"), float("-inf"))
    return _heads_last(torch.softmax(scores, dim=-1).to(value.dtype) @ value)


def _sdpa_supports(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:  # noqa: ARG001 - of the interface
    return True


def _run_sdpa(query: Queries, key: Keys, value: Keys, mask: Mask) -> Queries:
    query, key, value = (_heads_first(x) for x in (query, key, value))
    allowed = None if mask is None else rearrange(mask, "b m -> b 1 1 m")
    return _heads_last(scaled_dot_product_attention(query, key, value, attn_mask=allowed))


def _heads_first(x: Float[Tensor, "b n heads d"]) -> Float[Tensor, "b heads n d"]:
    return rearrange(x, "b n heads d -> b heads n d")


def _heads_last(x: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b n heads d"]:
    return rearrange(x, "b heads n d -> b n heads d")


BACKENDS = (
    # flash-attn, where it is installed: on a GPU, in half precision, without a mask.
    Backend("flash-attn", _flash_supports, _run_flash),
    # Plain matrix products for short sequences on a CPU in half precision, or in float32 by oneDNN, where torch's fused
    # kernel is 4 x slower.
    Backend("matmul", _matmul_supports, _run_matmul),
    # torch, which chooses between cuDNN, flash, memory-efficient and plain kernels itself. Takes everything.
    Backend("sdpa", _sdpa_supports, _run_sdpa),
)


def choose_backend(query: Tensor, key: Tensor, mask: Tensor | None) -> Backend:
    """The first backend that supports these arguments; none of them is ever dropped or cast to make a backend fit."""
    return next(backend for backend in BACKENDS if backend.supports(query, key, mask))
