"""A discriminator of patches of clips (Isola et al. 2017, section 3.2, "PatchGAN"), with time as a third axis."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad

from models.autoencoder.config import AdversarialConfig
from models.layers import ChannelNorm

SLOPE = 0.2  # of negative values
MOST_DOUBLINGS = 3  # of the channels


class PatchConv3d(nn.Module):
    """A 3D convolution that pads time itself.

    Convolutions of torch that pad time give weight gradients that are not finite for two frames in bfloat16 on a CPU.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, (3, kernel, kernel), stride, padding=(0, 1, 1))

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d s i j"]:
        """Repeat the first and the last frame once, then convolve."""
        return self.conv(pad(x, (0, 0, 0, 0, 1, 1), mode="replicate"))


class Discriminator(nn.Module):
    """Logits of how real the patches of a clip are; each depends on its own patch alone, for norms average channels.

    Height and width are halved by each of `num_layers` layers, time by all of them but the first. A clip of one frame
    is an image, and has logits of one frame.
    """

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        widths = [config.width * 2 ** min(layer, MOST_DOUBLINGS) for layer in range(config.num_layers + 1)]
        self.first = PatchConv3d(3, widths[0], 4, (1, 2, 2))
        pairs = zip(widths, widths[1:], strict=False)
        strides = [*[(2, 2, 2)] * (config.num_layers - 1), (1, 1, 1)]
        self.layers = nn.ModuleList(
            PatchConv3d(before, width, 4 if stride[1] == 2 else 3, stride)
            for (before, width), stride in zip(pairs, strides, strict=True)
        )
        self.norms = nn.ModuleList(ChannelNorm(width) for width in widths[1:])
        self.last = PatchConv3d(widths[-1], 1, 3, (1, 1, 1))

    def forward(self, pixels: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 1 s i j"]:
        """Logits in float32: positive for what looks real."""
        x = leaky_relu(self.first(pixels), SLOPE)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = leaky_relu(norm(layer(x)), SLOPE)
        return self.last(x).float()
