"""The kernels that compute attention, in order of preference. To add one, add a row to `BACKENDS`.

Every row computes softmax(q k^T / sqrt(d)) v, and zero where a mask leaves no key; they differ in speed, memory and
rounding. No argument is ever dropped or cast to make a row fit.

torch's flex_attention is not a row: it computes masks that are functions of positions, of which the networks have none,
and on a CPU it has no gradient.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from data.errors import ReelflowError
from models.attention import flash
from models.attention.blocked import blocked_attention
from models.attention.call import Call
from models.attention.config import AttentionBackend
from models.traced import constant_when_traced

logger = logging.getLogger(__name__)

MATMUL_MAX_SCORES = 512 * 512  # per head; above it the scores cost more memory than blocks of them cost time
CPU_PRODUCTS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}
"""Instructions for matrix products in half precision, without which they are many times slower than in float32."""
CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
CUDNN_MAX_CHANNELS = 128

Queries = Float[Tensor, "b n heads d"]
Keys = Float[Tensor, "b m heads d"]
Mask = Bool[Tensor, "b m"] | None


class AttentionBackendError(ReelflowError, ValueError):
    """The kernel that the configuration asks for does not take a call."""


@dataclass(frozen=True)
class Backend:
    """One way to compute attention."""

    name: AttentionBackend
    why_not: Callable[[Call], str | None]
    """Why `run` (`run_packed` of a packed call) does not take the call, or leaves it to a later row; None: it takes it.

    The reason completes "the name is passed over: ..."; it does not depend on the lengths of the sequences."""
    run: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    """run(query, key, value, mask) with tensors (b n heads d), and a mask (b m) or None; returns (b n heads d)."""
    run_packed: flash.RunPacked | None = None
    """Attention within the sequences of a packed one; None: there is none."""


# --- NVIDIA GPUs ------------------------------------------------------------------------------------------------------


def _flash(name: AttentionBackend, why_not: Callable[[Call], str | None], module: str) -> Backend:
    run_full, run_packed = partial(flash.run_full, module), partial(flash.run_packed, module)
    return Backend(name, why_not, partial(_run_flash, run_full, run_packed), run_packed)


def _run_flash(
    run_full: Callable[[Tensor, Tensor, Tensor], Tensor],
    run_packed: flash.RunPacked,
    query: Queries,
    key: Keys,
    value: Keys,
    mask: Mask,
) -> Queries:
    if mask is None:
        return run_full(query, key, value)
    return flash.run_masked(run_packed, query, key, value, mask)


def _run_torch_varlen(query: Queries, key: Keys, value: Keys, mask: Mask) -> Queries:
    assert mask is not None  # as `why_not_torch_varlen` says
    return flash.run_masked(flash.run_torch_packed, query, key, value, mask)


def _why_not_cudnn(call: Call) -> str | None:
    if call.capability is None:
        return "the tensors are not on an NVIDIA GPU"
    if call.capability[0] != flash.HOPPER:
        return "it is for Hopper: on other GPUs the order of sdpa stands"
    if call.form != "full":
        return "it takes neither masks nor packed sequences"
    if call.dtypes[0] not in flash.HALF_PRECISION or len(set(call.dtypes)) > 1:
        return "it computes in bfloat16 or float16 alone"
    if call.channels % 8 or call.channels > CUDNN_MAX_CHANNELS:
        return f"it takes heads of 8, 16, ... {CUDNN_MAX_CHANNELS} channels"
    return None


def _run_cudnn(query: Queries, key: Keys, value: Keys, mask: Mask) -> Queries:
    with sdpa_kernel(CUDNN_FIRST, set_priority=True):  # where cuDNN refuses, torch takes the next
        return _run_sdpa(query, key, value, mask)


# --- CPUs -------------------------------------------------------------------------------------------------------------


def _why_not_products(call: Call) -> str | None:
    """Why attention as plain matrix products does not serve; None: on a CPU that multiplies in this precision."""
    if call.device != "cpu":
        return "the tensors are not on a CPU"
    if call.dtypes[0] not in flash.HALF_PRECISION or len(set(call.dtypes)) > 1:
        return "it is for half precision: in others sdpa is faster"
    if not cpu_multiplies_in(call.dtypes[0]):
        return "this CPU has no instructions for products in this precision: sdpa is faster"
    return None


@constant_when_traced
def cpu_multiplies_in(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions for matrix products in half precision; True where torch does not know."""
    capabilities = torch.cpu.get_capabilities()
    known = [capabilities[name] for name in CPU_PRODUCTS[dtype] if name in capabilities]
    return any(known) if known else True


@constant_when_traced
def _products_by_onednn() -> bool:
    """Whether oneDNN computes float32 products on the CPU, which takes long for the small ones in the fused kernel."""
    return torch.get_float32_matmul_precision() == "medium"


def _why_not_matmul(call: Call) -> str | None:
    if call.form == "packed":
        return "it takes no packed sequences"
    is_float32 = call.device == "cpu" and set(call.dtypes) == {torch.float32}
    if not (is_float32 and _products_by_onednn()) and (reason := _why_not_products(call)) is not None:
        return reason
    if call.num_queries * call.num_keys > MATMUL_MAX_SCORES:
        return f"it is for at most {MATMUL_MAX_SCORES} scores of a head, which it keeps all"
    return None


def _run_matmul(query: Queries, key: Keys, value: Keys, mask: Mask) -> Queries:
    if mask is not None:
        value, mask = value.masked_fill(~mask[..., None, None], 0), flash.with_keys(mask)
    query, key, value = (_heads_first(x) for x in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~rearrange(mask, "b m -> b 1 1 m"), float("-inf"))
    return _heads_last(torch.softmax(scores, dim=-1).to(value.dtype) @ value)


def _why_not_blocked(call: Call) -> str | None:
    if call.form == "packed":
        return "it takes no packed sequences"
    return _why_not_products(call)


def _run_blocked(query: Queries, key: Keys, value: Keys, mask: Mask) -> Queries:
    if mask is not None:
        value, mask = value.masked_fill(~mask[..., None, None], 0), flash.with_keys(mask)
    return blocked_attention(query, key, value, mask)


# --- everything else --------------------------------------------------------------------------------------------------


def _why_not_sdpa(call: Call) -> str | None:
    return "it takes no packed sequences" if call.form == "packed" else None


def _run_sdpa(query: Queries, key: Keys, value: Keys, mask: Mask) -> Queries:
    if mask is not None and query.device.type != "cpu":  # some kernels of a GPU return NaN for samples without keys
        value, mask = value.masked_fill(~mask[..., None, None], 0), flash.with_keys(mask)
    query, key, value = (_heads_first(x) for x in (query, key, value))
    allowed = None if mask is None else rearrange(mask, "b m -> b 1 1 m")
    return _heads_last(scaled_dot_product_attention(query, key, value, attn_mask=allowed))


def _heads_first(x: Float[Tensor, "b n heads d"]) -> Float[Tensor, "b heads n d"]:
    return rearrange(x, "b n heads d -> b heads n d")


def _heads_last(x: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b n heads d"]:
    return rearrange(x, "b heads n d -> b n heads d")


BACKENDS = (
    # The kernels written for Hopper, then cuDNN's (1.6 times as fast there as flash-attn 2 at 128 channels a head).
    _flash("flash-attn-3", flash.why_not_flash_3, "flash_attn_interface"),
    Backend("cudnn", _why_not_cudnn, _run_cudnn),
    # The kernels written for Blackwell, which Hopper has too.
    _flash("flash-attn-4", flash.why_not_flash_4, "flash_attn.cute"),
    _flash("flash-attn-2", flash.why_not_flash_2, "flash_attn"),
    # The kernel of flash-attn 2 in torch, for masks: sdpa has it for calls without one.
    Backend("torch-varlen", flash.why_not_torch_varlen, _run_torch_varlen, flash.run_torch_packed),
    # Plain matrix products on a CPU, where torch's fused kernel is up to 4 times slower: at once for short sequences in
    # half precision and in float32 by oneDNN; in blocks for others in half precision.
    Backend("matmul", _why_not_matmul, _run_matmul),
    Backend("blocked", _why_not_blocked, _run_blocked),
    # torch, which chooses between cuDNN, flash, memory-efficient and plain kernels itself. Takes every unpacked call.
    Backend("sdpa", _why_not_sdpa, _run_sdpa),
)


# --- the choice -------------------------------------------------------------------------------------------------------

_wanted: AttentionBackend = "auto"


@contextmanager
def attention_backend(name: AttentionBackend) -> Iterator[None]:
    """Compute all attention within the block by this row of `BACKENDS`, or, with "auto", by the first that takes it."""
    global _wanted
    before, _wanted = _wanted, name
    try:
        yield
    finally:
        _wanted = before


def choose_backend(call: Call) -> Backend:
    """The wanted row, or the first that takes the call.

    Raises:
        AttentionBackendError: the wanted row does not take the call.
    """
    chosen = _choose(call, BACKENDS)
    assert chosen is not None  # the last row takes everything
    return chosen


def choose_packed_backend(call: Call) -> Backend | None:
    """As `choose_backend`, among the rows for packed sequences; None: none of these takes the call, or is wanted.

    Raises:
        AttentionBackendError: the wanted row is for packed sequences, but does not take the call.
    """
    return _choose(call, tuple(backend for backend in BACKENDS if backend.run_packed is not None))


def _choose(call: Call, backends: tuple[Backend, ...]) -> Backend | None:
    refusals = []
    for backend in backends:
        if _wanted not in ("auto", backend.name):
            continue
        reason = backend.why_not(call)
        if reason is None:
            if _wanted == "auto" and call.device != "meta":
                _report(backend.name, call.device, call.dtypes[0], call.channels, call.form, tuple(refusals))
            return backend
        refusals.append((backend.name, reason))
    if _wanted != "auto" and refusals:
        _refuse(_wanted, call.device, call.dtypes[0], call.channels, call.form, refusals[0][1])
    return None


@constant_when_traced
def _refuse(name: str, device: str, dtype: torch.dtype, channels: int, form: str, reason: str) -> None:
    raise AttentionBackendError(
        f"attention: {name} does not take a {form} call with heads of {channels} channels in {_name(dtype)} on "
        f"{device}: {reason}. Set attention to auto, or to a kernel that takes it"
    )


@constant_when_traced
def _report(
    name: str, device: str, dtype: torch.dtype, channels: int, form: str, refusals: tuple[tuple[str, str], ...]
) -> None:
    """Log the choice, once for each kind of call in a process."""
    _log_once(name, device, dtype, channels, form, refusals)


@cache
def _log_once(
    name: str, device: str, dtype: torch.dtype, channels: int, form: str, refusals: tuple[tuple[str, str], ...]
) -> None:
    names: dict[str, list[str]] = {}
    for refused, reason in refusals:
        names.setdefault(reason, []).append(refused)
    passed_over = "; ".join(f"{', '.join(refused)}: {reason}" for reason, refused in names.items())
    logger.info(
        "attention by %s (%s calls, heads of %d channels, %s, %s)%s",
        name,
        form,
        channels,
        _name(dtype),
        device,
        f"; passed over: {passed_over}" if passed_over else "",
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
