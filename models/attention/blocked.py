"""Attention as plain matrix products over blocks of queries, for CPUs with matrix products in half precision.

torch's fused kernel multiplies half-precision numbers at the speed of float32 there. Matrix products of whole blocks
run at full speed, and no more scores exist at a time than those of `ROWS` queries: memory grows with the length, not
with its square. The backward pass computes them again (Dao et al. 2022, FlashAttention, section 3.1).

Both passes are operators of their own: torch.compile takes them as they are, and selective activation checkpointing
keeps the output of the first.
"""

from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

ROWS = 128
"""Queries of a block: the scores of its keys should fit into the cache, and a product should be large."""


def blocked_attention(
    query: Float[Tensor, "b n heads d"],
    key: Float[Tensor, "b m heads d"],
    value: Float[Tensor, "b m heads d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b n heads d"]:
    """softmax(q k^T / sqrt(d)) v for every head; every sample needs a key that the mask allows."""
    return _forward(query, key, value, mask)


@torch.library.custom_op("reelflow::blocked_attention", mutates_args=(), device_types="cpu")
def _forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    heads, bias = query.shape[2], _bias(mask, query)
    q, k, v = (_fold(x) for x in (query, key, value))
    q, out = q * q.shape[-1] ** -0.5, torch.empty_like(q)
    with torch.autocast("cpu", enabled=False):  # it is on in here, and would take the softmax in float32
        for start in range(0, q.shape[1], ROWS):
            rows = slice(start, start + ROWS)
            out[:, rows] = _probabilities(q[:, rows], k, bias) @ v
    return _unfold(out, heads)


@torch.library.custom_op("reelflow::blocked_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, attended: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    heads, scale, bias = query.shape[2], query.shape[-1] ** -0.5, _bias(mask, query)
    g, q, k, v, out = (_fold(x) for x in (gradient, query, key, value, attended))
    q, dq = q * scale, torch.empty_like(q)
    exact = torch.promote_types(q.dtype, torch.float32)
    dk, dv = (torch.zeros_like(x, dtype=exact) for x in (k, v))  # sums over all blocks
    with torch.autocast("cpu", enabled=False):
        for start in range(0, q.shape[1], ROWS):
            rows = slice(start, start + ROWS)
            p = _probabilities(q[:, rows], k, bias)  # bh rows m
            dv += p.transpose(1, 2) @ g[:, rows]
            # Of the softmax: ds = p (dp - sum of p dp over the keys), where that sum is g out.
            mean = (g[:, rows].to(exact) * out[:, rows].to(exact)).sum(-1, keepdim=True)
            ds = (g[:, rows] @ v.transpose(1, 2)).sub_(mean.to(g.dtype)).mul_(p)
            dq[:, rows] = (ds @ k) * scale
            dk += ds.transpose(1, 2) @ q[:, rows]
    return _unfold(dq, heads), _unfold(dk.to(key.dtype), heads), _unfold(dv.to(value.dtype), heads)


def _probabilities(
    query: Float[Tensor, "bh rows d"], key: Float[Tensor, "bh m d"], bias: Float[Tensor, "bh 1 m"] | None
) -> Float[Tensor, "bh rows m"]:
    key = key.transpose(1, 2)
    return torch.softmax(query @ key if bias is None else torch.baddbmm(bias, query, key), dim=-1)


def _bias(mask: Bool[Tensor, "b m"] | None, query: Float[Tensor, "b n heads d"]) -> Float[Tensor, "bh 1 m"] | None:
    """What is added to scores: minus infinity where the mask hides a key, and nothing elsewhere."""
    if mask is None:
        return None
    hidden = repeat(~mask, "b m -> (b h) 1 m", h=query.shape[2])
    return torch.zeros_like(hidden, dtype=query.dtype).masked_fill_(hidden, float("-inf"))


def _fold(x: Float[Tensor, "b n heads d"]) -> Float[Tensor, "bh n d"]:
    return rearrange(x, "b n h d -> (b h) n d").contiguous()


def _unfold(x: Float[Tensor, "bh n d"], heads: int) -> Float[Tensor, "b n heads d"]:
    return rearrange(x, "(b h) n d -> b n h d", h=heads).contiguous()


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:  # noqa: ARG001 - shapes alone
    return query.new_empty(query.shape)


@_backward.register_fake
def _(
    gradient: Tensor,  # noqa: ARG001 - shapes alone
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,  # noqa: ARG001
    attended: Tensor,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401 - autograd's own
    ctx.save_for_backward(*inputs, output)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - autograd's own
    return (*_backward(gradient, *ctx.saved_tensors), None)


_forward.register_autograd(_gradients, setup_context=_save)
