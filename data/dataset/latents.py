"""Batches of latents from safetensors payloads, without copies.

A payload is a little-endian 64-bit length, a JSON header of that length, and the bytes of the tensors
(https://huggingface.co/docs/safetensors). The safetensors library copies every tensor, and stacking them copies again;
a batch that the loader has read into one buffer needs neither.
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
TEXT_TENSOR = "text"  # text embedding (max_tokens, width), zero after the last token of the caption
TEXT_LENGTH_TENSOR = "text_length"  # (1,): number of tokens of the caption
NOISE_SEED_TENSOR = "noise_seed"  # (1,) of a sampled clip: the seed of the noise that alone it was made from
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


@dataclass(frozen=True)
class _Layout:
    """Location, type and shape of a tensor in a payload."""

    begin: int  # bytes from the start of the payload
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_latents(payloads: Sequence[bytes | memoryview]) -> Shaped[Tensor, "b c t h w"]:
    """The latents of payloads of one shape; see `read_tensors`."""
    return read_tensors(payloads, LATENT_TENSOR)


def read_tensors(payloads: Sequence[bytes | memoryview], name: str) -> Shaped[Tensor, "b ..."]:
    """The tensor called `name` of each payload, stacked, in the stored type; all must have the same shape.

    Payloads that are consecutive in one writable buffer, as in a batch of the loader, are not copied: the result is a
    view with a row stride of one payload, which keeps the buffer alive. Others are copied.

    Raises:
        DatasetError: a payload is not in the safetensors format, lacks the tensor, or the shapes differ.
    """
    layouts = {_layout(header, name) for header in {_header(payload) for payload in payloads}}
    sizes = {len(payload) for payload in payloads}
    if len(layouts) != 1 or len(sizes) != 1:
        raise DatasetError(f"a batch mixes {name} tensors of several shapes; encode the dataset again")
    (layout,), (size,) = layouts, sizes
    if size < layout.end:
        raise DatasetError(
            f"a latent's payload has {size} bytes, its header needs {layout.end}; encode the dataset again"
        )
    whole = _joined_bytes(payloads)
    if whole is None:
        whole = torch.frombuffer(bytearray().join(payloads), dtype=torch.uint8)
    rows = whole.view(len(payloads), size)[:, layout.begin : layout.end]
    if size % layout.dtype.itemsize or rows.data_ptr() % layout.dtype.itemsize:
        rows = rows.clone(memory_format=torch.contiguous_format)  # tensors must be aligned to their element size
    return rows.view(layout.dtype).unflatten(1, layout.shape)


def _joined_bytes(payloads: Sequence[bytes | memoryview]) -> Tensor | None:
    """The bytes of payloads that are consecutive in one writable buffer, as one tensor; None if they are not."""
    first = payloads[0]
    if not isinstance(first, memoryview) or first.readonly:
        return None
    begin = end = _address(first)
    for payload in payloads:
        if not isinstance(payload, memoryview) or payload.obj is not first.obj or _address(payload) != end:
            return None
        end += len(payload)
    whole = torch.frombuffer(first.obj, dtype=torch.uint8)
    return whole[begin - whole.data_ptr() : end - whole.data_ptr()]


def _address(memory: memoryview) -> int:
    return addressof(c_char.from_buffer(memory))  # a quarter of the time of making a tensor for its data_ptr


def _header(payload: bytes | memoryview) -> bytes:
    """The length field and the JSON header of a payload."""
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
        raise DatasetError(f"a latent's payload has a contradictory header entry {entry}; encode the dataset again")
    return layout
