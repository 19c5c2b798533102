"""The batches of training a flow, and the queries of its previews."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.flow.flow_map import Jump
from models.networks.protocol import JumpEnd
from models.text.caption import Caption
from models.text.packing import CaptionPacking


@dataclass(frozen=True)
class Simulation:
    """What the sampling of a student is simulated with, and what its critic learns from that."""

    call: Int[Tensor, " b"]  # which one of each clip is trained, from 0
    between: Float[Tensor, "b n c t h w"]  # noise before each call but the first
    student_noise: Float[Tensor, "b c t h w"]  # of what the calls made, where teacher and critic are compared
    critic_noise: Float[Tensor, "b c t h w"]
    critic_t: Float[Tensor, " b"] | Float[Tensor, "b 1 t"]

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return type(self)(
            self.call.to(device),
            self.between.to(device),
            self.student_noise.to(device),
            self.critic_noise.to(device),
            self.critic_t.to(device),
        )


@dataclass(frozen=True)
class FlowBatch:
    """Normalized latents x_1, noise x_0, times in [0, 1], captions, frame rates, and which frames are given."""

    x_1: Float[Tensor, "b c t h w"]
    x_0: Float[Tensor, "b c t h w"]
    t: Float[Tensor, " b"] | Float[Tensor, "b 1 t"]
    caption: Caption
    fps: Float[Tensor, " b"]
    known: Bool[Tensor, "b 1 t"] | None = None  # at time 1, without loss
    jump: Jump | None = None  # of flow maps, in training
    guidance: Float[Tensor, " b"] | None = None  # scale of each clip's jump
    null: Caption | None = None  # the null caption once, for guidance
    simulation: Simulation | None = None  # of distribution matching, in training

    def at_time(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"] | Float[Tensor, "b 1 t"]:
        """Times of the clips as networks are told them: 1 for frames that are given."""
        return t if self.known is None else torch.where(self.known, 1.0, t.reshape(-1, 1, 1))

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return type(self)(
            self.x_1.to(device),
            self.x_0.to(device),
            self.t.to(device),
            self.caption.to(device),
            self.fps.to(device),
            None if self.known is None else self.known.to(device),
            None if self.jump is None else self.jump.to(device),
            None if self.guidance is None else self.guidance.to(device),
            None if self.null is None else self.null.to(device),
            None if self.simulation is None else self.simulation.to(device),
        )


@dataclass(frozen=True)
class PackedFlowBatch:
    """Batches of several shapes, whose clips the network computes together (`VelocityNetwork.packed`)."""

    parts: tuple[FlowBatch, ...]
    packing: CaptionPacking
    """Of the captions of all parts."""

    @staticmethod
    def of(parts: Sequence[FlowBatch]) -> "PackedFlowBatch":
        """Pack batches on the CPU."""
        return PackedFlowBatch(tuple(parts), CaptionPacking.of(torch.cat([part.caption.mask for part in parts])))

    def to(self, device: torch.device) -> "PackedFlowBatch":
        """The same batches on another device."""
        return PackedFlowBatch(tuple(part.to(device) for part in self.parts), self.packing.to(device))


@dataclass(frozen=True)
class FlowQuery:
    """The inputs of a network, passed to the engine like a batch, because ZeRO-3 gathers parameters in its forward."""

    x_t: Float[Tensor, "b c t h w"]
    t: Tensor
    caption: Caption
    fps: Float[Tensor, " 1"]
    jump: JumpEnd | None = None

    def to(self, device: torch.device) -> Self:
        """The same query on another device."""
        jump = None if self.jump is None else JumpEnd(self.jump.times.to(device), self.jump.guidance.to(device))
        return type(self)(self.x_t.to(device), self.t.to(device), self.caption.to(device), self.fps.to(device), jump)
