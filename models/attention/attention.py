"""The only door to attention kernels.

flash-attn runs where it is installed, on a GPU, in half precision and without a mask. On a CPU in half
precision short sequences run as plain matrix products, because torch's fused kernel is four times
slower there. torch's scaled_dot_product_attention (which picks cuDNN, flash or plain kernels itself)
runs everything else.
"""

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Backend = Literal["flash-attn", "matmul", "sdpa"]
MATMUL_MAX_SCORES = 512 * 512  # per head; beyond it the fused kernel's smaller memory counts for more


@lru_cache(maxsize=1)
def _flash_attn() -> Any:  # noqa: ANN401 - an optional module without type information
    return import_module("flash_attn") if find_spec("flash_attn") else None


def choose_backend(query: Tensor, key: Tensor, mask: Tensor | None) -> Backend:
    """Which kernel `attention` runs for these arguments. Nothing is ever dropped to make a kernel fit."""
    if query.dtype in (torch.float16, torch.bfloat16):
        if query.is_cuda and mask is None and _flash_attn() is not None:
            return "flash-attn"
        if query.device.type == "cpu" and query.shape[1] * key.shape[1] <= MATMUL_MAX_SCORES:
            return "matmul"
    return "sdpa"


def attention(
    query: Float[Tensor, "b n heads d"],
    key: Float[Tensor, "b m heads d"],
    value: Float[Tensor, "b m heads d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b n heads d"]:
    """softmax(q k^T / sqrt(d)) v for every head.

    Args:
        mask: True where a key may be attended to; None means everywhere.
    """
    backend = choose_backend(query, key, mask)
    if backend == "flash-attn":
        return _flash_attn().flash_attn_func(query, key, value)
    query, key, value = (rearrange(x, "b n heads d -> b heads n d") for x in (query, key, value))
    allowed = None if mask is None else rearrange(mask, "b m -> b 1 1 m")
    if backend == "matmul":
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        out = torch.softmax(scores, dim=-1).to(value.dtype) @ value
    else:
        out = scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    return rearrange(out, "b heads n d -> b n heads d")
