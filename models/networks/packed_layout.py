"""Clips of several shapes packed into one sequence, as a `TokenLayout`. Importing it loads torch.compile."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor

from models.attention.packed import Segments, packed_attention
from models.networks.dit_options import AttentionSpan
from models.networks.modulation import Groups
from models.networks.token_layout import Heads
from models.text.packing import CaptionPacking

Method = TypeVar("Method", bound=Callable[..., Any])


def _not_compiled(method: Method) -> Method:
    """A compiled block calls the method as it is, so that what it depends on compiles nothing anew."""
    return cast(Method, torch.compiler.disable(method))


@dataclass(frozen=True)
class PackedPart:
    """Neighbouring clips of a pack that have equal shapes."""

    num_clips: int
    grid: tuple[int, int, int]
    """Tokens (t, h, w) of each."""
    num_times: int
    """Conditions of each: 1, or one for each frame."""

    @property
    def num_tokens(self) -> int:
        """Of each clip."""
        t, h, w = self.grid
        return t * h * w


@dataclass(frozen=True)
class PackedLayout:
    """Clips of several shapes, one after the other in one sequence, without padding. Make one with `of`.

    Tokens are (1 n d), caption tokens (1 m d), and conditions (1 f d), where f counts those of all clips.

    What depends on the lengths of captions, which differ at every step, is not part of a compiled block.
    """

    parts: tuple[PackedPart, ...]
    clips: Segments
    frames: Segments
    places: Segments
    captions: CaptionPacking
    joint: Segments
    """Each clip followed by its caption."""

    @staticmethod
    def of(parts: tuple[PackedPart, ...], captions: CaptionPacking) -> "PackedLayout":
        """The layout of clips with these captions, on the captions' device.

        Raises:
            ValueError: there are not as many clips as captions.
        """
        num_clips, num_captions = sum(part.num_clips for part in parts), len(captions.segments.lengths)
        if num_clips != num_captions:
            raise ValueError(f"{num_clips} clips are packed, but there are {num_captions} captions")
        clips, frames, places = _video_segments(parts, captions.tokens.device)
        return PackedLayout(parts, clips, frames, places, captions, clips.followed_by(captions.segments))

    @property
    def groups(self) -> Groups:
        """As `normed_and_modulated` takes them: one for each part."""
        return tuple((part.num_clips * part.num_times, part.num_clips * part.num_tokens) for part in self.parts)

    def parts_of(self, tokens: Float[Tensor, "1 n *rest"]) -> list[tuple[PackedPart, Float[Tensor, "1 _ *rest"]]]:
        """The tokens of each part."""
        sizes = [part.num_clips * part.num_tokens for part in self.parts]
        return list(zip(self.parts, tokens.split(sizes, dim=1), strict=True))

    def of_tokens(self, function: Callable[[tuple[int, int, int]], Float[Tensor, "_ d"]]) -> Float[Tensor, "n d"]:
        """What a function gives for the tokens of a grid (t, h, w), for the tokens of all clips."""
        return torch.cat([repeat(function(part.grid), "n d -> (b n) d", b=part.num_clips) for part in self.parts])

    def of_conditions(self, vectors: Float[Tensor, "1 clips d"]) -> Float[Tensor, "1 f d"]:
        """Vectors of clips, for each of their conditions."""
        of_parts = vectors.split([part.num_clips for part in self.parts], dim=1)
        pairs = zip(self.parts, of_parts, strict=True)
        return torch.cat([repeat(x, "1 b d -> 1 (b f) d", f=part.num_times) for part, x in pairs], dim=1)

    @_not_compiled
    def self_attention(self, query: Heads, key: Heads, value: Heads, span: AttentionSpan) -> Heads:
        """As `TokenLayout`."""
        match span:
            case "full":
                return _packed(query, key, value, self.clips, self.clips)
            case "space":
                return _packed(query, key, value, self.frames, self.frames)
            case "time":
                query, key, value = (self._frames_last(x) for x in (query, key, value))
                return self._frames_first(_packed(query, key, value, self.places, self.places))

    @_not_compiled
    def cross_attention(self, query: Heads, key: Heads, value: Heads) -> Heads:
        """As `TokenLayout`."""
        return _packed(query, key, value, self.clips, self.captions.segments)

    @_not_compiled
    def joint_attention(
        self, video: tuple[Heads, Heads, Heads], caption: tuple[Heads | None, Heads, Heads]
    ) -> tuple[Heads, Heads | None]:
        """As `TokenLayout`."""
        (query, *video_keys), (caption_query, *caption_keys) = video, caption
        key, value = (self._interleaved(*both) for both in zip(video_keys, caption_keys, strict=True))
        if caption_query is None:
            return _packed(query, key, value, self.clips, self.joint), None
        attended = _packed(self._interleaved(query, caption_query), key, value, self.joint, self.joint)
        lengths = zip(self.clips.lengths, self.captions.segments.lengths, strict=True)
        pieces = attended.split(list(chain.from_iterable(lengths)), dim=1)
        return torch.cat(pieces[::2], dim=1), torch.cat(pieces[1::2], dim=1)

    def of_clips(self, vectors: Float[Tensor, "1 f d"]) -> Float[Tensor, "1 clips d"]:
        """As `TokenLayout`."""
        of_parts = vectors.split([part.num_clips * part.num_times for part in self.parts], dim=1)
        pairs = zip(self.parts, of_parts, strict=True)
        return torch.cat([reduce(x, "1 (b f) d -> 1 b d", "mean", b=part.num_clips) for part, x in pairs], dim=1)

    @_not_compiled
    def of_words(self, vectors: Float[Tensor, "1 clips d"]) -> Float[Tensor, "1 m d"]:
        """The vector of its clip for each word."""
        return self.captions.by_token(vectors)

    def _interleaved(
        self, video: Float[Tensor, "1 n heads d"], caption: Float[Tensor, "1 m heads d"]
    ) -> Float[Tensor, "1 nm heads d"]:
        """The tokens of each clip, followed by those of its caption."""
        pieces = zip(video.split(self.clips.lengths, 1), caption.split(self.captions.segments.lengths, 1), strict=True)
        return torch.cat(list(chain.from_iterable(pieces)), dim=1)

    def _frames_last(self, x: Float[Tensor, "1 n heads d"]) -> Float[Tensor, "1 n heads d"]:
        """The tokens of each place of a clip one after the other, instead of those of each frame."""
        pattern = "1 (b t s) h d -> 1 (b s t) h d"
        parts = self.parts_of(x)
        return torch.cat([rearrange(y, pattern, b=part.num_clips, t=part.grid[0]) for part, y in parts], dim=1)

    def _frames_first(self, x: Float[Tensor, "1 n heads d"]) -> Float[Tensor, "1 n heads d"]:
        """The inverse of `_frames_last`."""
        pattern = "1 (b s t) h d -> 1 (b t s) h d"
        parts = self.parts_of(x)
        return torch.cat([rearrange(y, pattern, b=part.num_clips, t=part.grid[0]) for part, y in parts], dim=1)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _video_segments(parts: tuple[PackedPart, ...], device: torch.device) -> tuple[Segments, Segments, Segments]:
    """The clips, their frames, and their places (where a clip's tokens at one place follow one another)."""
    clips, frames, places = [], [], []
    for part in parts:
        t, h, w = part.grid
        clips += [t * h * w] * part.num_clips
        frames += [h * w] * (t * part.num_clips)
        places += [t] * (h * w * part.num_clips)
    return Segments.of(clips, device), Segments.of(frames, device), Segments.of(places, device)


def _packed(query: Heads, key: Heads, value: Heads, queries: Segments, keys: Segments) -> Heads:
    return rearrange(packed_attention(query[0], key[0], value[0], queries, keys), "n heads d -> 1 n heads d")
