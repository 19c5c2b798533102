"""Attention by the kernels of flash-attn 2, 3 and 4, and by the variable-length attention of torch, on NVIDIA GPUs.

A mask does not need another kernel: the keys that it allows are moved to the front, and each sample is a sequence of
its own length. That needs neither the lengths on the host nor shapes that depend on them, so the GPU is not waited for
and torch.compile has nothing to break at.
"""

import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int32
from torch import Tensor
from torch.nn.functional import pad

from models.attention.call import Call
from models.traced import constant_when_traced

HALF_PRECISION = (torch.float16, torch.bfloat16)
WIDEST_HEAD = 256
"""Channels of the widest head that flash kernels exist for."""
WIDEST_HEAD_OF_BLACKWELL = 128
"""The same, for flash-attn 4 on Blackwell."""
HOPPER = 9
"""The major number of its compute capability."""

ARGUMENTS = {
    "flash_attn_func": ("deterministic",),
    "flash_attn_varlen_func": ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k", "deterministic"),
}
"""Arguments by keyword of the functions of flash-attn."""

Packed = Float[Tensor, "n heads d"]
Ends = Int32[Tensor, " sequences_and_1"]
RunPacked = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]
"""(query (n heads d), key (m heads d), value (m heads d), ends of the sequences of queries, of keys, most queries of a
sequence, most keys) to (n heads d); the ends are cumulative lengths from 0 on, int32 on the same device."""


# --- what each kernel takes -------------------------------------------------------------------------------------------


def why_not_flash_3(call: Call) -> str | None:
    """As `Backend.why_not`."""
    return _why_not(call, majors=(9,)) or _why_not_traced(call) or why_not_installed("flash_attn_interface")


def why_not_flash_4(call: Call) -> str | None:
    """As `Backend.why_not`."""
    if (reason := _why_not(call, majors=(9, 10, 11)) or _why_not_traced(call)) is not None:
        return reason
    if call.capability is not None and call.capability[0] > HOPPER and call.channels > WIDEST_HEAD_OF_BLACKWELL:
        return f"it takes heads of at most {WIDEST_HEAD_OF_BLACKWELL} channels on this GPU"
    return why_not_installed("flash_attn.cute")


def why_not_flash_2(call: Call) -> str | None:
    """As `Backend.why_not`."""
    return _why_not(call, majors=(8, 9, 12)) or why_not_installed("flash_attn")


def why_not_torch_varlen(call: Call) -> str | None:
    """As `Backend.why_not`."""
    if (reason := _why_not(call, majors=(8, 9, 10, 11, 12))) is not None:
        return reason
    return "it is for masked and packed calls: sdpa has the same kernel for others" if call.form == "full" else None


def _why_not_traced(call: Call) -> str | None:
    return "torch.compile cannot trace it" if call.is_compiling else None


def _why_not(call: Call, majors: tuple[int, ...]) -> str | None:
    """Why no flash kernel for GPUs of these compute capabilities takes the call; None: one does."""
    if call.capability is None:
        return "the tensors are not on an NVIDIA GPU"
    if call.capability[0] not in majors:
        return "it has no kernels for GPUs of this compute capability"
    if call.dtypes[0] not in HALF_PRECISION or len(set(call.dtypes)) > 1:
        return "it computes in bfloat16 or float16 alone"
    if call.channels % 8 or call.channels > WIDEST_HEAD:
        return f"it takes heads of 8, 16, ... {WIDEST_HEAD} channels"
    return None


_libraries: dict[str, ModuleType] = {}


@constant_when_traced
def why_not_installed(module: str) -> str | None:
    """Why there is no library of that name with the functions of `ARGUMENTS`; None: it is in `_libraries`."""
    return _load(module)


@lru_cache
def _load(module: str) -> str | None:
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        return "it is not installed" if module.startswith(missing) else f"it needs {missing}, which is not installed"
    except (ImportError, OSError) as error:  # built for another torch, for example
        return f"importing {module} fails: {str(error).splitlines()[0]}"
    for function, needed in ARGUMENTS.items():
        if not hasattr(found, function):  # without flash-attn 2, `flash_attn` is the folder of flash-attn 4
            return "it is not installed"
        missing = set(needed) - set(inspect.signature(getattr(found, function)).parameters)
        if missing:  # flash-attn 2.8 brings an early flash-attn 4
            return f"{function} of this release of {module} has no argument {min(missing)}"
    _libraries[module] = found
    return None


# --- how each is called -----------------------------------------------------------------------------------------------


def run_full(
    module: str,
    query: Float[Tensor, "b n heads d"],
    key: Float[Tensor, "b m heads d"],
    value: Float[Tensor, "b m heads d"],
) -> Float[Tensor, "b n heads d"]:
    """Attention of all queries to all keys, by the library of that name."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    return _output(_libraries[module].flash_attn_func(query, key, value, deterministic=deterministic))


def run_packed(
    module: str,
    query: Packed,
    key: Packed,
    value: Packed,
    query_ends: Ends,
    key_ends: Ends,
    max_queries: int,
    max_keys: int,
) -> Packed:
    """As `RunPacked`, by the library of that name."""
    attended = _libraries[module].flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens_q=query_ends,
        cu_seqlens_k=key_ends,
        max_seqlen_q=max_queries,
        max_seqlen_k=max_keys,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return _output(attended)


def run_torch_packed(
    query: Packed,
    key: Packed,
    value: Packed,
    query_ends: Ends,
    key_ends: Ends,
    max_queries: int,
    max_keys: int,
) -> Packed:
    """As `RunPacked`, by torch."""
    from torch.nn.attention.varlen import varlen_attn  # it loads torch.compile: more than a second, for a GPU alone

    return _output(varlen_attn(query, key, value, query_ends, key_ends, max_queries, max_keys))


def _output(returned: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Some versions return the logarithms of the softmax's denominators beside the output, others do not."""
    return returned[0] if isinstance(returned, tuple) else returned


def run_masked(
    run: RunPacked,
    query: Float[Tensor, "b n heads d"],
    key: Float[Tensor, "b m heads d"],
    value: Float[Tensor, "b m heads d"],
    mask: Bool[Tensor, "b m"],
) -> Float[Tensor, "b n heads d"]:
    """Attention to the keys that the mask allows, by a kernel for packed sequences; zeros where it allows none."""
    (batch, num_queries), num_keys = query.shape[:2], key.shape[1]
    # Kernels leave the gradient of keys outside of all sequences undefined; that of a filled place is zero.
    key, value = (x.masked_fill(~mask[..., None, None], 0) for x in (key, value))
    allowed = with_keys(mask)
    order = torch.argsort((~allowed).flatten().byte(), stable=True)
    key, value = (rearrange(x, "b m heads d -> (b m) heads d").index_select(0, order) for x in (key, value))
    key_ends = pad(allowed.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    query_ends = torch.arange(batch + 1, dtype=torch.int32, device=query.device) * num_queries
    query = rearrange(query, "b n heads d -> (b n) heads d")
    attended = run(query, key, value, query_ends, key_ends, num_queries, num_keys)
    return rearrange(attended, "(b n) heads d -> b n heads d", b=batch)


def with_keys(mask: Bool[Tensor, "b m"]) -> Bool[Tensor, "b m"]:
    """The mask, all true for samples without a key: with values of zero there, attention to all of them is zero."""
    return mask | ~mask.any(1, keepdim=True)
