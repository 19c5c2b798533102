"""The interface of a network that predicts the velocity of a flow."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from models.attention.attention import attention
from models.layers import BlockStack
from models.networks.config import NetworkConfig
from models.text.caption import Caption
from models.text.packing import CaptionPacking


@runtime_checkable
class SequenceParallelPlan(Protocol):
    """How the processes that compute one sample together share its tokens: each has a part of every frame."""

    def shard(self, tokens: Float[Tensor, "... n d"], num_frames: int) -> Float[Tensor, "... m d"]:
        """This process's tokens of all, where the tokens of a frame follow one another."""
        ...

    def join_caption(
        self, caption: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"], num_tokens: int
    ) -> tuple[Float[Tensor, "b k d"], Bool[Tensor, "b keys"]]:
        """This process's part of caption tokens that follow its `num_tokens` others in `attention`, padded if need be.

        Returns:
            the part, and which of all processes' keys are no padding, as `attention` takes it.
        """
        ...

    def attention(
        self,
        query: Float[Tensor, "b m heads d"],
        key: Float[Tensor, "b k heads d"],
        value: Float[Tensor, "b k heads d"],
        mask: Bool[Tensor, "b keys"] | None = None,
    ) -> Float[Tensor, "b m heads d"]:
        """Self-attention among the tokens of all processes; arguments and result are of this process's tokens.

        Args:
            mask: of the keys of all processes, see `join_caption`; True where a key may be attended to.
        """
        ...

    def gather(self, tokens: Float[Tensor, "b m d"], num_frames: int) -> Float[Tensor, "b n d"]:
        """The inverse of `shard`, on every process."""
        ...


class SingleProcess:
    """The plan without sequence parallelism: this process has all tokens."""

    def shard(self, tokens: Float[Tensor, "... n d"], num_frames: int) -> Float[Tensor, "... n d"]:  # noqa: ARG002
        """All tokens."""
        return tokens

    def join_caption(
        self, caption: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"], num_tokens: int
    ) -> tuple[Float[Tensor, "b m d"], Bool[Tensor, "b keys"]]:
        """All caption tokens, and the mask of all keys."""
        return caption, pad(mask, (num_tokens, 0), value=True)

    def attention(
        self,
        query: Float[Tensor, "b n heads d"],
        key: Float[Tensor, "b k heads d"],
        value: Float[Tensor, "b k heads d"],
        mask: Bool[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b n heads d"]:
        """Self-attention."""
        return attention(query, key, value, mask)

    def gather(self, tokens: Float[Tensor, "b n d"], num_frames: int) -> Float[Tensor, "b n d"]:  # noqa: ARG002
        """The tokens unchanged."""
        return tokens


Velocity = Callable[[Tensor, Tensor, Caption], Tensor]
"""The velocity v(x_t, t, caption), such as a `VelocityNetwork`."""


@dataclass(frozen=True)
class ImageCondition:
    """The image that a clip starts from, as networks with channels of their own for it were trained with (Wan 2.1)."""

    channels: Float[Tensor, "images c t h w"]
    """What follows the channels of x_t."""
    embedding: Float[Tensor, "images k e"] | None
    """Of an image encoder, for networks that attend to it."""


@dataclass(frozen=True)
class JumpEnd:
    """Where the jumps of a flow map end (`models/flow/flow_map.py`), and the guidance that they are to have."""

    times: Float[Tensor, " b"] | Float[Tensor, "b 1 t"]
    """In [0, 1], not before those at which the jumps begin, and of their shape."""
    guidance: Float[Tensor, " scales"]
    """Scales of each clip, or one for all; 1 is no guidance."""


@dataclass(frozen=True)
class Conditions:
    """What networks are told of clips beside time and caption. Each part has an entry for each clip, or one for all."""

    fps: Float[Tensor, " clips"]
    """Frames per second."""
    known: Bool[Tensor, "given 1 t"] | None = None
    """Latent frames that are given: x_t holds them as they are, at time 1. None: there are none."""
    image: ImageCondition | None = None
    """For the networks that need one; None: there is none."""
    jump: JumpEnd | None = None
    """For the networks of flow maps. None: the network is asked for the velocity."""


@dataclass(frozen=True)
class NoisyClips:
    """What a network predicts the velocities of: clips of one shape."""

    x: Float[Tensor, "b c t h w"]
    """x_t."""
    t: Float[Tensor, " b"] | Float[Tensor, "b 1 t"]
    """Times in [0, 1], one per sample or one per latent frame."""
    conditions: Conditions


class VelocityNetwork(nn.Module, ABC):
    """The velocity v(x_t, t, caption) of normalised latents, on latents of any length, height and width.

    Training, sampling, adapters and sequence parallelism use nothing of a network but what is named here. How many
    tokens it computes with follows from its configuration alone: `config.num_tokens`.
    """

    config: NetworkConfig
    blocks: BlockStack
    """Its repeated blocks: what activation checkpointing recomputes and torch.compile compiles.

    Blocks of other shapes are in further stacks of the network, which are treated alike.
    """
    sequence_plan: SequenceParallelPlan = SingleProcess()
    """How processes share the tokens of a sample; replaced where training runs in sequence-parallel groups."""

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "b c t h w"],
        t: Float[Tensor, " b"] | Float[Tensor, "b 1 t"],
        caption: Caption,
    ) -> Float[Tensor, "b c t h w"]:
        """Predict the velocity at x_t = `x`.

        Args:
            t: times in [0, 1], one per sample or one per latent frame.

        Raises:
            ValueError: the network does not take latents of this height or width.
        """

    def given(self, conditions: Conditions) -> Velocity:  # noqa: ARG002 - of networks that read them
        """The network under these conditions. Most networks depend on few of them, or none."""
        return self

    def packed(
        self,
        batches: Sequence[NoisyClips],
        caption: Caption,
        packing: CaptionPacking,
    ) -> list[Float[Tensor, "_ c _ _ _"]]:
        """The velocities of clips of several shapes, computed together as one sequence of tokens without padding.

        They are those that `forward` gives for each clip. Networks whose configuration says `packs_clips` have it.

        Args:
            batches: the clips, one batch for each shape.
            caption: of all clips, in their order.
            packing: of `caption`.

        Raises:
            ValueError: as `forward`; or there are not as many clips as captions.
            NotImplementedError: the network does not pack clips.
        """
        raise NotImplementedError(f"a network of architecture {self.config.architecture} does not pack clips")

    def lora_targets(self) -> list[str]:
        """Names of the layers that low-rank adapters can be put on: every linear layer."""
        return [name for name, layer in self.named_modules() if isinstance(layer, nn.Linear)]

    def flops_probe(self, latent: Float[Tensor, "1 c t h w"], t: Tensor, caption: Caption) -> Float[Tensor, ""]:
        """A scalar whose forward and backward pass are those of training on one clip.

        Call it under torch.device("meta"), where tensors have shapes but no values: its operations are counted.
        """
        return self.given(Conditions(torch.ones(1)))(latent, t, caption).mean()
