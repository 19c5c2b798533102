"""Small layers that more than one network uses."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding, layer_norm, silu
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from models.attention.backends import attention_backend
from models.attention.config import AttentionBackend
from models.norms import head_norm, rms_norm
from models.recompute import gelu_linear

State = TypeVar("State", Tensor, tuple[Tensor, Tensor])
"""What a block takes and returns: tokens, or two kinds of them."""


class LayerNorm(nn.LayerNorm):
    """Layer norm (Ba et al. 2016, eq. 4) with a weight and a bias that are used in float32, also if they are bfloat16.

    Without them torch's own serves.
    """

    def forward(self, input: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:  # noqa: A002 - torch's name
        """Normalise."""
        return layer_norm(input, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


class Embedding(nn.Embedding):
    """Rows of a table in float32, also if the table is bfloat16; its gradient is added up in float32 too."""

    def forward(self, input: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:  # noqa: A002 - torch's name
        """The row of each number."""
        return embedding(input, self.weight.float())


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Normalise; the result has the type of `x`."""
        return rms_norm(x, self.weight, self.eps)


class ChannelNorm(nn.Module):
    """RMS norm over the channels of each position, so that frames stay independent of each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Normalise in float32; the result has the type of `x`."""
        exact = x.float()
        power = (exact * exact).mean(1, keepdim=True)
        return x * (torch.rsqrt(power + 1e-6).to(x.dtype) * rearrange(self.weight.to(x.dtype), "c -> 1 c 1 1 1"))


class HeadNorm(nn.Module):
    """Queries or keys over their root mean square, times one trained gain per head (Henry et al. 2020, eq. 4)."""

    def __init__(self, heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(heads, 1))
        self.eps = eps

    def forward(self, x: Float[Tensor, "b n heads d"]) -> Float[Tensor, "b n heads d"]:
        """Normalise; the norm is taken in float32, and the result has the type of `x`."""
        return head_norm(x, self.gain, self.eps)


class FeedForward(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, ratio * width, bias=False)
        self.down = nn.Linear(ratio * width, width, bias=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Apply to every token."""
        return gelu_linear(self.up(x), self.down)


def time_embedding(t: Float[Tensor, "*n"], width: int) -> Float[Tensor, "*n d"]:
    """Unit-norm sinusoids of log-spaced frequencies: sqrt(2/d) [cos(w t), sin(w t)], 1 <= w <= 200.

    The slowest turns by one radian over the whole path, so that the time can be read from it; the
    fastest changes little between the steps of a sampler (Holderrieth & Erives 2025, section 5.1).
    """
    frequencies = torch.logspace(0, math.log10(200), width // 2, device=t.device)
    phases = t.float()[..., None] * frequencies
    return torch.cat([phases.cos(), phases.sin()], dim=-1) * math.sqrt(2 / width)


class TimeEmbedder(nn.Module):
    """Sinusoids of the time, then a small MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, t: Float[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        """Embed times in [0, 1]."""
        # sqrt(d/2) undoes the unit norm: inputs of the MLP should be of order one
        sinusoids = time_embedding(t, self.first.in_features) * math.sqrt(self.first.in_features / 2)
        return self.second(silu(self.first(sinusoids)))


Recompute = bool | Literal["selective"]
"""What a block computes again in the backward pass: all of it (True), nothing, or all but its expensive outputs."""

_aten = torch.ops.aten
EXPENSIVE = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.convolution.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}
"""Linear layers, convolutions and fused attention. Attention as plain matrix products (bmm) is not of them: its scores
are large."""
ATTENTION_LIBRARIES = {"flash_attn", "flash_attn_3", "torch_attn", "reelflow"}
"""Namespaces of operators that compute attention: flash-attn 2 and 3, torch's varlen_attn, our blocked attention."""


def _policy(context: object, operation: Any, *_: object, **__: object) -> CheckpointPolicy:  # noqa: ANN401, ARG001 - torch's
    is_kept = operation in EXPENSIVE or operation.namespace in ATTENTION_LIBRARIES
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


class BlockStack(nn.ModuleList):
    """Blocks one after the other.

    With `recompute` a block stores only its input for the backward pass and is computed again there (activation
    checkpointing, Chen et al. 2016). With "selective" it also stores what its linear layers and its attention returned,
    so that only the cheap operations between them are computed again.
    """

    recompute: Recompute = False
    attention: AttentionBackend = "auto"
    """The kernel that computes the attention of the blocks."""

    def run(self, x: State, *arguments: object) -> State:
        """The output of the last block; each block gets the output of the one before it, and `arguments`."""
        for block in self:
            call = block if self.attention == "auto" else partial(self._by_wanted_kernel, block)
            if self.recompute and torch.is_grad_enabled():
                x = self._recomputed(call, x, arguments)
            else:
                x = call(x, *arguments)
        return x

    def _by_wanted_kernel(self, block: nn.Module, x: State, *arguments: object) -> State:
        with attention_backend(self.attention):  # in here, so that it holds when the block is computed again
            return block(x, *arguments)

    def _recomputed(self, block: Callable[..., State], x: State, arguments: tuple[object, ...]) -> State:
        options: dict[str, Any] = {}
        if self.recompute == "selective":
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
        return cast(State, checkpoint(block, x, *arguments, use_reentrant=False, **options))
