"""Ulysses sequence parallelism (Jacobs et al. 2023): the ranks of a group compute one sample together.

Each rank holds a part of the tokens. Two all-to-all exchanges around self-attention turn "some tokens of every head"
into "every token of some heads" and back (DeepSpeed's `DistributedAttention`); all other layers are local. The
network's output is gathered on every rank, which then computes the loss of the whole sample.

The gradient of a parameter on one rank is the group's size times the contribution of that rank's own tokens. So the
mean over all ranks, which ZeRO computes whatever the groups are, is the mean over the samples: ZeRO partitions its
state over all ranks and does not need to know of the groups.
"""

import importlib
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from models.attention.attention import attention
from models.networks.protocol import VelocityNetwork
from pipeline.distributed.collectives import COLLECTIVE_TIMEOUT
from pipeline.engine.config import SplitError, check_can_share
from pipeline.engine.deepspeed_internals import import_deepspeed


class _Gather(torch.autograd.Function):
    """All-gather, stacked in the order of ranks. Its adjoint is this rank's part of the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:  # noqa: ANN401 - autograd's own
        ctx.group = group
        everyone = tensor.new_empty(dist.get_world_size(group) * len(tensor), *tensor.shape[1:])
        dist.all_gather_into_tensor(everyone, tensor.contiguous(), group=group)
        return everyone.unflatten(0, (-1, len(tensor)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - autograd's own
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total[dist.get_rank(ctx.group)], None


class UlyssesPlan:
    """A `SequenceParallelPlan` in which each rank has a part of every frame, so that times per frame stay local.

    Self-attention is invariant to the order of tokens, so it needs only the rotation angles of each part.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        import_deepspeed().init_distributed()  # DeepSpeed's collectives need its own initialization
        layer = importlib.import_module("deepspeed.sequence.layer")
        self._group = group
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        distributed = layer.DistributedAttention(attention, group, scatter_idx=2, gather_idx=1)
        # torch.compile cannot trace DeepSpeed's exchange: inside a compiled graph its gradient would be lost.
        self._attend: Any = torch.compiler.disable(distributed.forward)
        self._gather: Any = torch.compiler.disable(_Gather.apply)

    def shard(self, tokens: Float[Tensor, "... n d"], num_frames: int) -> Float[Tensor, "... m d"]:
        """This rank's tokens of all, where the tokens of a frame follow one another."""
        parts = rearrange(tokens, "... (t r s) d -> r ... (t s) d", t=num_frames, r=self._size)
        return parts[self._rank]

    def join_caption(
        self, caption: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"], num_tokens: int
    ) -> tuple[Float[Tensor, "b k d"], Bool[Tensor, "b keys"]]:
        """An equal part of the caption's tokens on each rank; what is missing to that is padding.

        Each rank's keys, its `num_tokens` and then its part of the caption, follow those of the rank before it.
        """
        missing = -caption.shape[1] % self._size
        parts = rearrange(pad(caption, (0, 0, 0, missing)), "b (r m) d -> r b m d", r=self._size)
        masks = rearrange(pad(mask, (0, missing), value=False), "b (r m) -> b r m", r=self._size)
        keys = rearrange(pad(masks, (num_tokens, 0), value=True), "b r k -> b (r k)")
        return parts[self._rank], keys

    def attention(
        self,
        query: Float[Tensor, "b m heads d"],
        key: Float[Tensor, "b k heads d"],
        value: Float[Tensor, "b k heads d"],
        mask: Bool[Tensor, "b keys"] | None = None,
    ) -> Float[Tensor, "b m heads d"]:
        """Self-attention among the tokens of all ranks; each computes its share of the heads."""
        return self._attend(query, key, value, 0, mask=mask)

    def gather(self, tokens: Float[Tensor, "b m d"], num_frames: int) -> Float[Tensor, "b n d"]:
        """The inverse of `shard`, on every rank."""
        parts = self._gather(tokens, self._group)
        return rearrange(parts, "r b (t s) d -> b (t r s) d", t=num_frames)


def ulysses_plan(rank: int, world_size: int, size: int) -> UlyssesPlan:
    """The plan of this rank in groups of `size` consecutive ranks; all ranks must call it (it creates the groups)."""
    starts = range(0, world_size, size)
    groups = [dist.new_group(range(start, start + size), timeout=COLLECTIVE_TIMEOUT) for start in starts]
    group = groups[rank // size]
    assert isinstance(group, dist.ProcessGroup)
    return UlyssesPlan(group)


def parallelize_sequence(module: nn.Module, rank: int, world_size: int, size: int) -> None:
    """Let every velocity network in `module` share its tokens among groups of `size` ranks; all ranks must call it.

    Raises:
        SplitError: there is no such network, it has no tokens to share, or `size` does not divide its heads.
    """
    networks = [part for part in module.modules() if isinstance(part, VelocityNetwork)]
    if not networks:
        raise SplitError(
            f"train.sequence_parallel is {size}, but only a velocity network (dit.train) has tokens to share: "
            "leave it at 1"
        )
    for network in networks:
        check_can_share(network.config, size)
    plan = ulysses_plan(rank, world_size, size)
    for network in networks:
        network.sequence_plan = plan
