"""How the tensors of a published model correspond to those of a network of ours, and whether its folder has changed.

A published file may hold in several tensors what is one weight here, such as the projections to queries, keys and
values, and the same values in another shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from math import prod
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class PublishedTensor:
    """A tensor of a published model."""

    name: str
    shape: tuple[int, ...]


Correspondence = Mapping[str, Sequence[PublishedTensor]]
"""Weight of ours -> the published tensors that are its parts: concatenated along the first axis, then reshaped."""


def join_parts(parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The weight of ours, of that shape, from the published tensors."""
    return torch.cat(list(parts)).reshape(tuple(shape))


def split_parts(weight: Tensor, parts: Sequence[PublishedTensor]) -> dict[str, Tensor]:
    """The inverse of `join_parts`: the published tensors by name."""
    pieces = weight.flatten().split([prod(part.shape) for part in parts])
    return {part.name: piece.reshape(part.shape) for part, piece in zip(parts, pieces, strict=True)}


def folders_fingerprint(*folders: Path) -> str:
    """Changes with the weights, the settings or the vocabulary: with every file but hidden ones and documents."""
    paths = [
        path
        for folder in dict.fromkeys(folders)
        for path in sorted(folder.iterdir())
        if path.suffix in {".json", ".safetensors", ".model", ".txt"} and not path.name.startswith(".")
    ]
    stats = [path.stat() for path in paths]
    return _digest(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats, strict=True)))


@lru_cache(maxsize=8)
def _digest(stamped: tuple[tuple[Path, int, int], ...]) -> str:
    """Of names and contents; the stamps make sure that gigabytes are read again only if they changed."""
    digest = sha256()
    for path, _, _ in stamped:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
