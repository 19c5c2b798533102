"""Writing safetensors files one tensor at a time, without holding the file in memory."""

import json
import os
import struct
from collections.abc import Iterable
from hashlib import sha256
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoint.record import (
    FileRecord,
)

BYTES_PER_VALUE = 4  # float32


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> FileRecord:
    """Write float32 tensors as safetensors.

    Raises:
        OSError: the file cannot be written.
    """
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return stream_tensors(path, shapes, tensors.values(), metadata)


def stream_tensors(
    path: Path, shapes: dict[str, list[int]], tensors: Iterable[Tensor], metadata: dict[str, str]
) -> FileRecord:
    """Write float32 tensors as safetensors, one after another, in the order of `shapes`.

    The checksum is computed from the bytes in memory, so reading the file back reveals a disk that stored others.

    Raises:
        OSError: the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, num_bytes = sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for part in chain((struct.pack("<Q", len(text)), text), map(_float32_bytes, tensors)):
            digest.update(part)
            file.write(part)
            num_bytes += memoryview(part).nbytes
        file.flush()
        os.fsync(file.fileno())
    assert num_bytes == 8 + len(text) + offset
    return FileRecord(num_bytes=num_bytes, sha256=digest.hexdigest())


def _float32_bytes(tensor: Tensor) -> memoryview:
    assert tensor.dtype == torch.float32
    return tensor.contiguous().numpy().data
