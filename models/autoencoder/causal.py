"""Layers that are causal in time, and the state with which a clip passes through them in chunks."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad


@dataclass
class Past:
    """What a chunk needs of the chunks before it; one for each clip that is encoded or decoded, empty before the first.

    It holds two frames for each convolution over time, however many frames have passed.
    """

    is_empty: bool = True
    frames: dict[nn.Module, Float[Tensor, "b c t h w"]] = field(default_factory=dict)  # the last that each layer saw

    def before(self, layer: nn.Module, x: Float[Tensor, "b c t h w"], num: int) -> Float[Tensor, "b c s h w"]:
        """`x` with the `num` frames before it, which the first chunk makes up; remembers the last `num`."""
        x = repeat_first(x, num) if self.is_empty else torch.cat([self.frames[layer], x], dim=2)
        self.frames[layer] = x[:, :, -num:].clone()  # a view would keep the whole chunk
        return x


def starts(past: Past | None) -> bool:
    """Whether what comes with this past starts a clip: all of it, or its first chunk."""
    return past is None or past.is_empty


def repeat_first(x: Float[Tensor, "b c t h w"], num: int) -> Float[Tensor, "b c s h w"]:
    """Put `num` copies of the first frame before it."""
    return pad(x, (0, 0, 0, 0, num, 0), mode="replicate")


class CausalConv3d(nn.Module):
    """3D convolution that sees the present and the past: the first frame is repeated to the left."""

    def __init__(self, channels_in: int, channels_out: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.reach = kernel[0] - 1  # into the past, in frames
        self.conv = nn.Conv3d(channels_in, channels_out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, x: Float[Tensor, "b c t h w"], past: Past | None = None) -> Float[Tensor, "b d t h w"]:
        """Convolve a clip, or a chunk of one."""
        if self.reach:
            x = repeat_first(x, self.reach) if past is None else past.before(self, x, self.reach)
        return self.conv(x)


def start_at_zero(layer: CausalConv3d) -> None:
    """Begin with only what flows around the layer."""
    nn.init.zeros_(layer.conv.weight)
    if layer.conv.bias is not None:
        nn.init.zeros_(layer.conv.bias)


class CausalStack(nn.ModuleList):
    """Causal layers one after the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(layers)

    def forward(self, x: Float[Tensor, "b c t h w"], past: Past | None = None) -> Float[Tensor, "b d s i j"]:
        """The output of the last one, for a clip, or for the chunk that follows those of `past`."""
        for layer in self:
            x = layer(x, past)
        if past is not None:
            past.is_empty = False
        return x
