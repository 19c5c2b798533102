"""Attention within the segments of a packed sequence: sequences of several lengths one after the other, unpadded."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from einops import rearrange
from jaxtyping import Float, Int32
from torch import Tensor

from models.attention.attention import attention
from models.attention.backends import choose_packed_backend
from models.attention.call import Call


@dataclass(frozen=True)
class Segments:
    """Where the sequences of a packed sequence begin and end. Make one with `of`."""

    lengths: tuple[int, ...]
    """Tokens of each segment, in order."""
    ends: Int32[Tensor, " segments_and_1"]
    """Cumulative lengths, from 0 on: segment i is ends[i] to ends[i + 1]. What kernels take as `cu_seqlens`."""
    max_length: int
    """Tokens of the longest segment; 0 without segments."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "Segments":
        """Segments of these lengths, with `ends` on `device`."""
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(tuple(lengths), ends, max(lengths, default=0))

    def to(self, device: torch.device | str) -> "Segments":
        """The same segments, with `ends` on another device."""
        return Segments(self.lengths, self.ends.to(device), self.max_length)

    def followed_by(self, others: "Segments") -> "Segments":
        """Segments in which segment i of `others` follows segment i of these; made without waiting for a device."""
        lengths = tuple(map(sum, zip(self.lengths, others.lengths, strict=True)))
        return Segments(lengths, self.ends + others.ends, max(lengths, default=0))

    @property
    def total(self) -> int:
        """Tokens of all segments."""
        return sum(self.lengths)


def packed_attention(
    query: Float[Tensor, "n heads d"],
    key: Float[Tensor, "m heads d"],
    value: Float[Tensor, "m heads d"],
    query_segments: Segments,
    key_segments: Segments,
) -> Float[Tensor, "n heads d"]:
    """softmax(q k^T / sqrt(d)) v for every head, where the queries of segment i attend to the keys of segment i.

    A query without keys gets zeros. The first of `BACKENDS` that takes packed sequences computes them; without one,
    they are computed run by run.

    Raises:
        AttentionBackendError: the wanted kernel is for packed sequences, but does not take these.
        ValueError: the segments do not cover the tokens, or there are not as many of queries as of keys.
    """
    for name, tokens, segments in (("query", query, query_segments), ("key", key, key_segments)):
        if len(tokens) != segments.total:
            raise ValueError(f"{name} has {len(tokens)} tokens, but its segments have {segments.total}")
    if len(query_segments.lengths) != len(key_segments.lengths):
        raise ValueError(
            f"{len(query_segments.lengths)} segments of queries cannot attend to {len(key_segments.lengths)} of keys"
        )
    backend = choose_packed_backend(Call.of(query, key, value, "packed"))
    if backend is None:
        return _by_runs(query, key, value, query_segments, key_segments)
    assert backend.run_packed is not None
    lengths = query_segments.max_length, key_segments.max_length
    return backend.run_packed(query, key, value, query_segments.ends, key_segments.ends, *lengths)


def _by_runs(
    query: Float[Tensor, "n heads d"],
    key: Float[Tensor, "m heads d"],
    value: Float[Tensor, "m heads d"],
    query_segments: Segments,
    key_segments: Segments,
) -> Float[Tensor, "n heads d"]:
    """One call of `attention` for each run of neighbouring segments of equal shape, which are a batch as they lie."""
    shapes = zip(query_segments.lengths, key_segments.lengths, strict=True)
    runs = [(len(list(run)), *shape) for shape, run in groupby(shapes)]  # (segments, queries of each, keys of each)
    queries = query.split([b * n for b, n, _ in runs])
    keys, values = (x.split([b * m for b, _, m in runs]) for x in (key, value))
    attended = [torch.zeros_like(query[:0])]
    for (b, n, m), q, k, v in zip(runs, queries, keys, values, strict=True):
        if n and m:
            q, k, v = (rearrange(x, "(b n) heads d -> b n heads d", b=b) for x in (q, k, v))
            attended.append(rearrange(attention(q, k, v), "b n heads d -> (b n) heads d"))
        else:
            attended.append(torch.zeros_like(q))
    return torch.cat(attended)
