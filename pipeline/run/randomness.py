"""Addressed randomness: every random tensor is a pure function of (seed, purpose, address).

Nothing is drawn from a stream whose state would have to be saved, so a restart, another batch size or
another number of workers changes nothing.
"""

from collections.abc import Iterable
from hashlib import blake2b

import torch
from torch import Tensor


def generator(seed: int, purpose: str, address: int | str) -> torch.Generator:
    """A CPU generator that belongs to this address alone."""
    return torch.Generator().manual_seed(number(seed, purpose, address))


def number(seed: int, purpose: str, address: int | str) -> int:
    """A number below 2^63 that belongs to this address alone."""
    digest = blake2b(f"{seed}\0{purpose}\0{address}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def normal(seed: int, purpose: str, addresses: Iterable[int | str], shape: tuple[int, ...] = ()) -> Tensor:
    """Standard normal numbers, one block of `shape` per address: (b, *shape), float32."""
    return torch.stack([torch.randn(shape, generator=generator(seed, purpose, address)) for address in addresses])


def uniform(seed: int, purpose: str, addresses: Iterable[int | str], shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in [0, 1), one block of `shape` per address: (b, *shape), float32."""
    return torch.stack([torch.rand(shape, generator=generator(seed, purpose, address)) for address in addresses])
