"""How the tokens of a batch lie: clips of one shape side by side, or clips of several shapes packed into one sequence.

Layers that treat each token alone are the same for both. What depends on which clip, frame and caption a token belongs
to goes through a `TokenLayout`: attention, and which of the condition's vectors a token is modulated by. Clips of one
shape are a `BatchLayout`, packed ones a `PackedLayout` (`packed_layout.py`).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.attention.attention import attention
from models.networks.dit_options import AttentionSpan
from models.networks.modulation import Groups
from models.networks.protocol import SequenceParallelPlan
from models.networks.token_attention import token_attention

Heads = Float[Tensor, "b _ heads d"]


@runtime_checkable
class TokenLayout(Protocol):
    """What a block needs to know of the clips, frames and captions that tokens belong to."""

    @property
    def groups(self) -> Groups | None:
        """As `normed_and_modulated` takes them."""
        ...

    def self_attention(self, query: Heads, key: Heads, value: Heads, span: AttentionSpan) -> Heads:
        """Attention of each token to those of its clip, frame or place."""
        ...

    def cross_attention(self, query: Heads, key: Heads, value: Heads) -> Heads:
        """Attention of each token to the caption of its clip."""
        ...

    def joint_attention(
        self, video: tuple[Heads, Heads, Heads], caption: tuple[Heads | None, Heads, Heads]
    ) -> tuple[Heads, Heads | None]:
        """Attention of the tokens of each clip and its caption to each other.

        Args:
            video, caption: queries, keys and values; without queries, the caption's tokens attend to nothing.

        Returns:
            what the video tokens and the caption tokens attended to; None without queries.
        """
        ...

    def of_clips(self, vectors: Float[Tensor, "b f d"]) -> Float[Tensor, "b clips d"]:
        """The mean over the frames of each clip."""
        ...

    def of_words(self, vectors: Float[Tensor, "b clips d"]) -> Float[Tensor, "b f d"]:
        """Vectors of clips, as `normed_and_modulated` without groups takes them for caption tokens."""
        ...


@dataclass(frozen=True)
class BatchLayout:
    """Clips of one shape: tokens are (b n d), captions padded to (b m d), and conditions (b f d) with f of 1 or t."""

    num_frames: int
    words: Bool[Tensor, "b m"]
    """Which caption tokens are no padding."""
    joint_keys: Bool[Tensor, "b keys"] | None
    """Which keys of joint attention are no padding, see `SequenceParallelPlan.join_caption`."""
    plan: SequenceParallelPlan
    """How the tokens are shared among processes."""

    @property
    def groups(self) -> None:
        """Each vector has equally many tokens."""
        return

    def self_attention(self, query: Heads, key: Heads, value: Heads, span: AttentionSpan) -> Heads:
        """As `TokenLayout`."""
        return token_attention(query, key, value, span, self.num_frames, self.plan)

    def cross_attention(self, query: Heads, key: Heads, value: Heads) -> Heads:
        """As `TokenLayout`."""
        return attention(query, key, value, self.words)

    def joint_attention(
        self, video: tuple[Heads, Heads, Heads], caption: tuple[Heads | None, Heads, Heads]
    ) -> tuple[Heads, Heads | None]:
        """As `TokenLayout`."""
        query, key, value = (_cat(both) for both in zip(video, caption, strict=True))
        attended = self.plan.attention(query, key, value, self.joint_keys)
        if caption[0] is None:
            return attended, None
        to_video, to_caption = attended.tensor_split([video[0].shape[1]], dim=1)
        return to_video, to_caption

    def of_clips(self, vectors: Float[Tensor, "b f d"]) -> Float[Tensor, "b 1 d"]:
        """As `TokenLayout`."""
        return vectors.mean(1, keepdim=True)

    def of_words(self, vectors: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b 1 d"]:
        """The vectors as they are: one for all words of a caption."""
        return vectors


def _cat(tokens: tuple[Heads | None, Heads | None]) -> Heads:
    present = [x for x in tokens if x is not None]
    return torch.cat(present, dim=1)
