"""Which sources form a shard: a function of their names, by which a change of one source changes about one shard.

The hash of a source's name is its address. A shard holds the sources whose addresses begin with the same bits, and is
named after these bits. A group with more sources than fit into one shard is split by the next bit (extendible hashing;
Fagin et al. 1979, https://doi.org/10.1145/320083.320092). So one source more changes one shard, or splits it in two;
one source less changes one shard, or joins two. All other shards stay, however often a collection has doubled. The
history of a collection does not matter, nor does the order in which it is listed.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

ADDRESS_BITS = 64
NUMBERED = re.compile(r"shard-(\d{5,})\.tar")

T = TypeVar("T")


@dataclass(frozen=True)
class Group(Generic[T]):
    """The sources of one shard, and the name of its file."""

    shard: str
    sources: tuple[T, ...]


def address(name: str) -> str:
    """64 bits that depend on the name alone, as digits."""
    digest = blake2b(name.encode(), digest_size=ADDRESS_BITS // 8, person=b"shard").digest()
    return f"{int.from_bytes(digest, 'big'):0{ADDRESS_BITS}b}"


def grouped(sources: Iterable[T], name_of: Callable[[T], str], limit: int) -> list[Group[T]]:
    """The shards of some sources, in the order of their addresses; within a shard, sources are sorted by name.

    No shard has more than `limit` sources, and none is empty; as addresses are random, few have less than half of it.
    """
    pending = [("", [(address(name_of(source)), source) for source in sources])]
    groups = []
    while pending:
        bits, members = pending.pop()
        if len(members) > limit and len(bits) < ADDRESS_BITS:
            halves: dict[str, list[tuple[str, T]]] = {"1": [], "0": []}
            for member in members:
                halves[member[0][len(bits)]].append(member)
            pending += [(bits + digit, half) for digit, half in halves.items()]
        elif members:
            groups.append(Group(f"shard-b{bits}.tar", tuple(sorted((s for _, s in members), key=name_of))))
    return groups


def numbered(sources: Sequence[T], size: int) -> list[Group[T]]:
    """The shards of an older version: each of `size` consecutive sources, numbered."""
    parts = (tuple(sources[at : at + size]) for at in range(0, len(sources), size))
    return [Group(f"shard-{number:05d}.tar", part) for number, part in enumerate(parts)]


def keeps_numbers(shards: Mapping[str, Sequence[str]], names: Sequence[str], size: int) -> bool:
    """Whether shards of an older version are grouped as `numbered` would group today's sources.

    They keep their grouping then, because trainings read samples in the order of the shards.

    Args:
        shards: names of the sources of each shard in the folder, by the name of the shard.
        names: of today's sources, in order.
    """
    old = {name: sources for name, sources in shards.items() if NUMBERED.fullmatch(name)}
    expected = {group.shard: list(group.sources) for group in numbered(names, size)}
    return bool(old) and all(expected.get(name) == list(sources) for name, sources in old.items())
