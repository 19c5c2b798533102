"""Latents out of safetensors payloads without copying them.

A payload is a little-endian 64-bit length, a JSON header of that length, and the tensors' bytes
(https://huggingface.co/docs/safetensors). The library copies every tensor, and stacking them copies again; a batch
that the loader has read into one piece of memory needs neither.
"""

import json
from collections.abc import Sequence
from ctypes import addressof, c_char
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from jaxtyping import Shaped
from torch import Tensor

from data.errors import DatasetError

LATENT_TENSOR = "mean"
TEXT_TENSOR = "text"  # of a pretrained encoder: (max_tokens, width), zero behind the caption's last token
TEXT_LENGTH_TENSOR = "text_length"  # (1): tokens of the caption
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


@dataclass(frozen=True)
class _Layout:
    """Where in a payload the latent lies, and what it is."""

    begin: int  # bytes
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_latents(payloads: Sequence[bytes | memoryview]) -> Shaped[Tensor, "b c t h w"]:
    """The latents of some payloads of one shape; see `read_tensors`."""
    return read_tensors(payloads, LATENT_TENSOR)


def read_tensors(payloads: Sequence[bytes | memoryview], name: str) -> Shaped[Tensor, "b ..."]:
    """The tensor of that name in each of some payloads of one shape, as they were written.

    Payloads that follow each other in one writable buffer, as a batch of the loader does, are not copied: the tensor is
    a view of them (its rows lie a payload apart) and keeps their memory. Others are copied into one tensor.

    Raises:
        DatasetError: a payload is not safetensors, has no such tensor, or shapes differ.
    """
    layouts = {_layout(_header(payload), name) for payload in payloads}
    sizes = {len(payload) for payload in payloads}
    if len(layouts) != 1 or len(sizes) != 1:
        raise DatasetError(f"a batch mixes {name} tensors of several shapes; encode the dataset again")
    (layout,), (size,) = layouts, sizes
    if size < layout.end:
        raise DatasetError(f"a latent's payload has {size} bytes, its header needs {layout.end}; encode it again")
    whole = _one_piece(payloads)
    if whole is None:
        whole = torch.frombuffer(bytearray().join(payloads), dtype=torch.uint8)
    rows = whole.view(len(payloads), size)[:, layout.begin : layout.end]
    if size % layout.dtype.itemsize or rows.data_ptr() % layout.dtype.itemsize:
        rows = rows.clone(memory_format=torch.contiguous_format)  # numbers have to begin at a multiple of their size
    return rows.view(layout.dtype).unflatten(1, layout.shape)


def _one_piece(payloads: Sequence[bytes | memoryview]) -> Tensor | None:
    """The bytes of payloads that follow each other in one buffer, or None if they do not."""
    first = payloads[0]
    if not isinstance(first, memoryview) or first.readonly:
        return None
    begin = place = _address(first)
    for payload in payloads:
        if not isinstance(payload, memoryview) or payload.obj is not first.obj or _address(payload) != place:
            return None
        place += len(payload)
    whole = torch.frombuffer(first.obj, dtype=torch.uint8)
    return whole[begin - whole.data_ptr() : place - whole.data_ptr()]


def _address(memory: memoryview) -> int:
    return addressof(c_char.from_buffer(memory))  # a quarter of the time that a tensor takes to tell


def _header(payload: bytes | memoryview) -> bytes:
    """Length and header."""
    return bytes(payload[: 8 + int.from_bytes(payload[:8], "little")])


@lru_cache(maxsize=64)
def _layout(header: bytes, name: str) -> _Layout:
    try:
        entry = json.loads(header[8:])[name]
        begin, end = entry["data_offsets"]
        layout = _Layout(len(header) + begin, len(header) + end, DTYPES[entry["dtype"]], tuple(entry["shape"]))
        fits = layout.shape and begin >= 0 and end - begin == layout.dtype.itemsize * prod(layout.shape)
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"a latent's payload has a damaged header ({error!r}); encode the dataset again") from error
    if not fits:
        raise DatasetError(f"a latent's payload says {entry}, which does not add up; encode the dataset again")
    return layout
