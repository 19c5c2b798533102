"""Addressed randomness: every random tensor is a pure function of (seed, purpose, address).

No generator has a state that would have to be saved: results do not depend on restarts, on the batch size or on the
number of workers.
"""

from collections.abc import Iterable
from hashlib import blake2b

import torch
from torch import Tensor


def generator(seed: int, purpose: str, address: int | str) -> torch.Generator:
    """A CPU generator seeded by `number`."""
    return torch.Generator().manual_seed(number(seed, purpose, address))


def number(seed: int, purpose: str, address: int | str) -> int:
    """An integer in [0, 2^63): a hash of seed, purpose and address."""
    digest = blake2b(f"{seed}\0{purpose}\0{address}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_layers(device: torch.device, seed: int, address: int | str) -> None:
    """Seed, by `number`, the generators that layers on `device` draw from.

    `torch.manual_seed` also prepares every other kind of device that torch knows, which takes milliseconds.
    """
    value = number(seed, "layers", address)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


def normal(seed: int, purpose: str, addresses: Iterable[int | str], shape: tuple[int, ...] = ()) -> Tensor:
    """Standard normal numbers, one tensor of `shape` per address: (b, *shape), float32, on the CPU."""
    return torch.stack([torch.randn(shape, generator=generator(seed, purpose, address)) for address in addresses])


def uniform(seed: int, purpose: str, addresses: Iterable[int | str], shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in [0, 1), one tensor of `shape` per address: (b, *shape), float32, on the CPU."""
    return torch.stack([torch.rand(shape, generator=generator(seed, purpose, address)) for address in addresses])
