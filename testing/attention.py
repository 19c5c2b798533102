"""Attention in float64, and stand-ins for the kernels of GPUs: operators on a CPU with their arguments."""

from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from models.attention import flash


def reference_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v in float64 of (b n heads d), one head and sample at a time; zero without a key."""
    samples = []
    for b in range(len(q)):
        keys = torch.ones(k.shape[1], dtype=torch.bool) if mask is None else mask[b]
        heads = []
        for h in range(q.shape[2]):
            scores = q[b, :, h].double() @ k[b, keys, h].double().T / q.shape[-1] ** 0.5
            heads.append(scores.softmax(-1) @ v[b, keys, h].double())  # without keys: an empty sum
        samples.append(torch.stack(heads, dim=1))
    return torch.stack(samples)


def reference_gradients(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, upstream: Tensor) -> tuple[Tensor, ...]:
    """The gradients of sum(attention * upstream) in float64."""
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    out = reference_attention(q, k, v, mask)
    return torch.autograd.grad(out, (q, k, v), upstream.double(), allow_unused=True, materialize_grads=True)


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    return (torch.einsum("nhd,mhd->hnm", q.float(), k.float()) / q.shape[-1] ** 0.5).softmax(-1)


def _sequences(query_ends: Tensor, key_ends: Tensor) -> Iterator[tuple[slice, slice]]:
    for i in range(len(query_ends) - 1):
        yield slice(query_ends[i], query_ends[i + 1]), slice(key_ends[i], key_ends[i + 1])


@torch.library.custom_op("reelflow_testing::packed_attention", mutates_args=())
def packed_operator(
    q: Tensor, k: Tensor, v: Tensor, query_ends: Tensor, key_ends: Tensor, max_queries: int, max_keys: int
) -> Tensor:
    """What kernels for packed sequences compute; it insists on what they need."""
    for ends, longest in ((query_ends, max_queries), (key_ends, max_keys)):
        assert ends.dtype == torch.int32
        assert int(ends.diff().max()) <= longest
    out = torch.empty_like(q)
    with torch.autocast("cpu", enabled=False):
        for rows, keys in _sequences(query_ends, key_ends):
            out[rows] = torch.einsum("hnm,mhd->nhd", _probabilities(q[rows], k[keys]), v[keys].float()).to(q.dtype)
    return out


@packed_operator.register_fake
def _(q, k, v, query_ends, key_ends, max_queries, max_keys):  # noqa: ANN001, ANN202, ARG001
    return q.new_empty(q.shape)


@torch.library.custom_op("reelflow_testing::packed_attention_backward", mutates_args=())
def _packed_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, query_ends: Tensor, key_ends: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.full_like(x, torch.nan) for x in (q, k, v))  # as kernels may leave keys of no sequence
    with torch.autocast("cpu", enabled=False):
        for rows, keys in _sequences(query_ends, key_ends):
            g, p = gradient[rows].float(), _probabilities(q[rows], k[keys])
            dp = torch.einsum("nhd,mhd->hnm", g, v[keys].float())
            ds = p * (dp - (p * dp).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
            dq[rows] = torch.einsum("hnm,mhd->nhd", ds, k[keys].float()).to(q.dtype)
            dk[keys] = torch.einsum("hnm,nhd->mhd", ds, q[rows].float()).to(q.dtype)
            dv[keys] = torch.einsum("hnm,nhd->mhd", p, g).to(q.dtype)
    return dq, dk, dv


@_packed_backward.register_fake
def _(gradient, q, k, v, query_ends, key_ends):  # noqa: ANN001, ANN202, ARG001
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401, ARG001
    ctx.save_for_backward(*inputs[:5])


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    return (*_packed_backward(gradient, *ctx.saved_tensors), None, None, None, None)


packed_operator.register_autograd(_gradients, setup_context=_save)


def full_operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What kernels for (b n heads d) compute, as one operator."""
    ends = [torch.arange(len(x) + 1, dtype=torch.int32) * x.shape[1] for x in (q, k)]
    out = packed_operator(*(x.flatten(0, 1) for x in (q, k, v)), *ends, q.shape[1], k.shape[1])
    return out.unflatten(0, q.shape[:2])


def stub_library() -> ModuleType:
    """A stand-in for flash-attn 2, 3 or 4."""

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, *, deterministic: bool) -> Tensor:  # noqa: ARG001
        return full_operator(q, k, v)

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        deterministic: bool,  # noqa: ARG001
    ) -> tuple[Tensor, None]:
        return packed_operator(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k), None

    return library_of(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)


def library_of(**members: Any) -> ModuleType:  # noqa: ANN401 - of a module
    """A module with these members."""
    module = ModuleType("a stand-in")
    vars(module).update(members)
    return module


def install(monkeypatch: pytest.MonkeyPatch, libraries: dict[str, ModuleType]) -> None:
    """Let these libraries with kernels, and no others, be found until the end of the test."""

    def import_module(name: str) -> ModuleType:
        if name not in libraries:
            raise ModuleNotFoundError(name, name=name)
        return libraries[name]

    load = lru_cache(flash._load.__wrapped__)
    monkeypatch.setattr(flash, "import_module", import_module)
    monkeypatch.setattr(flash, "_load", load)
    monkeypatch.setattr(flash, "_libraries", {})
