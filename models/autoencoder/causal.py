"""Layers that are causal in time, and the cache with which a clip passes through them in chunks."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad


def repeat_first(x: Float[Tensor, "b c t h w"], num: int) -> Float[Tensor, "b c s h w"]:
    """Put `num` copies of the first frame before it."""
    return pad(x, (0, 0, 0, 0, num, 0), mode="replicate")


def zeros_first(x: Float[Tensor, "b c t h w"], num: int) -> Float[Tensor, "b c s h w"]:
    """Put `num` frames of zeros before the first."""
    return pad(x, (0, 0, 0, 0, num, 0))


def nothing_first(x: Float[Tensor, "b c t h w"], num: int) -> Float[Tensor, "b c t h w"]:  # noqa: ARG001 - as above
    """The frames themselves."""
    return x


Start = Callable[[Tensor, int], Tensor]
"""What stands before the first frame of a clip: start(x, num) puts it before `x`, in place of the `num` frames that
stand before any other.
"""


@dataclass
class CausalCache:
    """The last input frames of every convolution over time, for the chunk that comes next.

    One for each clip that is encoded or decoded in chunks, empty before the first chunk. It holds `kernel - 1` frames
    for each convolution over time, however many frames came before.
    """

    is_empty: bool = True
    frames: dict[nn.Module, Float[Tensor, "b c t h w"]] = field(default_factory=dict)  # by layer: its last input frames

    def prepend(
        self, layer: nn.Module, x: Float[Tensor, "b c t h w"], num: int, start: Start = repeat_first
    ) -> Float[Tensor, "b c s h w"]:
        """`x` after the `num` input frames of `layer` before it, and keep the last `num` for the next chunk.

        Where `layer` has had no input yet, `start` puts something else before it.
        """
        x = torch.cat([self.frames[layer], x], dim=2) if layer in self.frames else start(x, num)
        self.frames[layer] = x[:, :, -num:].clone()  # a view would keep the whole chunk in memory
        return x


def is_clip_start(cache: CausalCache | None) -> bool:
    """Whether the input that comes with this cache begins a clip: a whole clip (None), or its first chunk."""
    return cache is None or cache.is_empty


class CausalConv3d(nn.Module):
    """3D convolution whose output depends on no later frame: time is padded on the left, as `start` says."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: tuple[int, int, int], start: Start = repeat_first
    ) -> None:
        super().__init__()
        self.num_previous = kernel[0] - 1  # frames before the current one that an output frame depends on
        self.start = start
        self.conv = nn.Conv3d(channels_in, channels_out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, x: Float[Tensor, "b c t h w"], cache: CausalCache | None = None) -> Float[Tensor, "b d t h w"]:
        """Convolve a clip, or with a cache the next chunk of one."""
        if num := self.num_previous:
            x = self.start(x, num) if cache is None else cache.prepend(self, x, num, self.start)
        return self.conv(x)


def zero_initialize(layer: CausalConv3d) -> None:
    """Set weights and biases to zero, so that at first only the residual or shortcut connection carries a signal."""
    nn.init.zeros_(layer.conv.weight)
    if layer.conv.bias is not None:
        nn.init.zeros_(layer.conv.bias)


class CausalStack(nn.ModuleList):
    """Causal layers one after the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(layers)

    def forward(self, x: Float[Tensor, "b c t h w"], cache: CausalCache | None = None) -> Float[Tensor, "b d s i j"]:
        """The output of the last layer, for a clip, or with a cache for the next chunk of one."""
        for layer in self:
            x = layer(x, cache)
        if cache is not None:
            cache.is_empty = False
        return x
