"""Ulysses sequence parallelism (Jacobs et al. 2023): the ranks of a group compute one sample together.

Each holds a part of the tokens. Around self-attention two exchanges turn "some tokens of every head" into "every token
of some heads" and back (DeepSpeed's `DistributedAttention`); all else is local, and what the network answers is put
together on every rank, which then has the loss of the whole sample. A parameter's gradient on a rank is the group's
number of ranks times what its own tokens contribute, so that the mean over all ranks, which ZeRO takes whatever the
group, is the mean over the samples: ZeRO cuts its state over all ranks and need not know of the groups.
"""

import importlib
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from models.attention.attention import attention
from models.networks.dit import DiT
from pipeline.distributed.collectives import COLLECTIVE_TIMEOUT
from pipeline.engine.config import SplitError, check_heads
from pipeline.engine.deepspeed_internals import import_deepspeed


class _Gather(torch.autograd.Function):
    """Every rank's tensor, stacked in the order of ranks. The adjoint: this rank's part of the sum of all gradients."""

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


class SequenceGroup:
    """What one rank of a group has of the tokens: a part of every frame, so that times per frame stay local.

    Self-attention does not mind in which order tokens come, so a group needs no more than each part's own angles.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        import_deepspeed().init_distributed()  # its collectives go through a layer of its own
        layer = importlib.import_module("deepspeed.sequence.layer")
        self._group = group
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        distributed = layer.DistributedAttention(attention, group, scatter_idx=2, gather_idx=1)
        # DeepSpeed's exchange is no operator that a compiler could see through: compiled, its gradient would be lost.
        self._attend: Any = torch.compiler.disable(distributed.forward)
        self._gather: Any = torch.compiler.disable(_Gather.apply)

    def part(self, tokens: Float[Tensor, "... n d"], num_frames: int) -> Float[Tensor, "... m d"]:
        """This rank's tokens, where the tokens of a frame follow one another."""
        parts = rearrange(tokens, "... (t r s) d -> r ... (t s) d", t=num_frames, r=self._size)
        return parts[self._rank]

    def attention(
        self,
        query: Float[Tensor, "b m heads d"],
        key: Float[Tensor, "b m heads d"],
        value: Float[Tensor, "b m heads d"],
    ) -> Float[Tensor, "b m heads d"]:
        """Self-attention among the tokens of all ranks; each computes its share of the heads."""
        return self._attend(query, key, value, 0)

    def whole(self, tokens: Float[Tensor, "b m d"], num_frames: int) -> Float[Tensor, "b n d"]:
        """The inverse of `part`, on every rank."""
        parts = self._gather(tokens, self._group)
        return rearrange(parts, "r b (t s) d -> b (t r s) d", t=num_frames)


def sequence_group(rank: int, world_size: int, size: int) -> SequenceGroup:
    """The group of this rank, of `size` consecutive ones; called by all."""
    starts = range(0, world_size, size)
    groups = [dist.new_group(range(start, start + size), timeout=COLLECTIVE_TIMEOUT) for start in starts]
    group = groups[rank // size]
    assert isinstance(group, dist.ProcessGroup)
    return SequenceGroup(group)


def split_tokens(module: nn.Module, rank: int, world_size: int, size: int) -> None:
    """Let every DiT in `module` share its tokens among `size` ranks; called by all.

    Raises:
        SplitError: there is none, or its heads do not divide.
    """
    networks = [part for part in module.modules() if isinstance(part, DiT)]
    if not networks:
        raise SplitError(f"train.sequence_parallel is {size}, but only a DiT has tokens to share: leave it at 1")
    for network in networks:
        check_heads(network.config.heads, network.config.width, size)
    split = sequence_group(rank, world_size, size)
    for network in networks:
        network.split = split
