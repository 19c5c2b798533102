"""The causal video autoencoder: 4k + 1 frames of pixels to k + 1 frames of latents, and back.

No output depends on a later frame: time is padded on the left only, and no norm averages over time. So the first frame
is encoded alone (an image is a clip of one frame), the others in groups of four, and a clip that does not fit into
memory is encoded in chunks with the same result, where a `CausalCache` keeps the few frames that a chunk needs of the
chunks before it. The latent is a Gaussian whose KL divergence to N(0, I) is part of the loss, with a small weight
(Kingma & Welling 2013, appendix B).
"""

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from models.autoencoder.causal import CausalCache, CausalConv3d, CausalStack, is_clip_start, zero_initialize
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.protocol import LatentDistribution, VideoAutoencoder
from models.layers import ChannelNorm

INITIAL_LOG_VARIANCE = -4.0  # noise of an untrained encoder: well below the scale of its means
PIXEL_PATCH = 4  # side of the squares of pixels that are moved into channels; one downsampling by 2 makes it 8, two 16


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(norm(x))))); the second convolution starts at zero."""

    def __init__(self, channels: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv_1 = CausalConv3d(channels, channels, kernel)
        self.conv_2 = CausalConv3d(channels, channels, (1, 3, 3))
        zero_initialize(self.conv_2)

    def forward(self, x: Float[Tensor, "b c t h w"], cache: CausalCache | None = None) -> Float[Tensor, "b c t h w"]:
        """Add the residual."""
        return x + self.conv_2(silu(self.conv_1(silu(self.norm(x)), cache)))


def fold(x: Float[Tensor, "b c t h w"], space: int, *, is_start: bool) -> Float[Tensor, "b d s i j"]:
    """Move pairs of frames, and squares of `space` x `space` pixels, into channels: 2k + 1 frames to k + 1.

    The first frame is paired with itself, so no output depends on a later frame.

    Args:
        space: side of the squares.
        is_start: `x` begins a clip; otherwise it is a later chunk, and 2k frames become k.
    """
    if is_start:
        x = torch.cat([x[:, :, :1], x], dim=2)
    return rearrange(x, "b c (t s) (h p) (w q) -> b (c p q s) t h w", s=2, p=space, q=space)


def unfold(x: Float[Tensor, "b c t h w"], space: int, *, is_start: bool) -> Float[Tensor, "b d s i j"]:
    """The inverse of `fold`: k + 1 frames to 2k + 1, where the copy of the first frame is dropped, or k to 2k."""
    x = rearrange(x, "b (c p q s) t h w -> b c (t s) (h p) (w q)", s=2, p=space, q=space)
    return x[:, :, 1:] if is_start else x


class Downsample(nn.Module):
    """Halve time, and height and width by a factor `space`, around a shortcut that averages channels.

    The shortcut carries a signal from the first training step on (Chen et al. 2024, "DC-AE", section 3.1).
    """

    def __init__(self, channels_in: int, channels_out: int, space: int) -> None:
        super().__init__()
        self.space, self.channels_out = space, channels_out
        self.conv = CausalConv3d(channels_in * space**2 * 2, channels_out, (1, 3, 3))
        zero_initialize(self.conv)

    def forward(self, x: Float[Tensor, "b c t h w"], cache: CausalCache | None = None) -> Float[Tensor, "b d s i j"]:
        """Fold, then convolve and add the shortcut."""
        folded = fold(x, self.space, is_start=is_clip_start(cache))
        return self.conv(folded) + reduce(folded, "b (c g) t h w -> b c t h w", "mean", c=self.channels_out)


class Upsample(nn.Module):
    """Double time, and height and width by a factor `space`, around a shortcut that repeats channels."""

    def __init__(self, channels_in: int, channels_out: int, space: int) -> None:
        super().__init__()
        self.space = space
        folded = channels_out * space**2 * 2
        self.repeats = folded // channels_in
        self.conv = CausalConv3d(channels_in, folded, (1, 3, 3))
        zero_initialize(self.conv)

    def forward(self, x: Float[Tensor, "b c t h w"], cache: CausalCache | None = None) -> Float[Tensor, "b d s i j"]:
        """Convolve and add the shortcut, then unfold."""
        shortcut = repeat(x, "b c t h w -> b (c g) t h w", g=self.repeats)
        return unfold(self.conv(x) + shortcut, self.space, is_start=is_clip_start(cache))


class Autoencoder(VideoAutoencoder):
    """Encoder and decoder of clips with pixels in [-1, 1]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        near, deep, channels = config.width, config.deep_width, config.latent_channels
        last = config.spatial_factor // (2 * PIXEL_PATCH)  # the second downsampling's, in space: 1 or 2

        def blocks(width: int, kernel: tuple[int, int, int]) -> list[nn.Module]:
            return [ResidualBlock(width, kernel) for _ in range(config.num_blocks)]

        self.encoder = CausalStack(  # with a factor of 8: c, t, h, w
            CausalConv3d(3 * PIXEL_PATCH**2, near, (1, 3, 3)),  # near 4k+1  H/4  W/4
            *blocks(near, (1, 3, 3)),
            Downsample(near, deep, space=2),  # deep 2k+1  H/8  W/8
            *blocks(deep, (3, 3, 3)),
            Downsample(deep, deep, space=last),  # deep k+1   H/8  W/8
            *blocks(deep, (3, 3, 3)),
            CausalConv3d(deep, 2 * channels, (1, 1, 1)),
        )
        self.decoder = CausalStack(
            CausalConv3d(channels, deep, (1, 1, 1)),  # deep k+1   H/8  W/8
            *blocks(deep, (3, 3, 3)),
            Upsample(deep, deep, space=last),  # deep 2k+1  H/8  W/8
            *blocks(deep, (3, 3, 3)),
            Upsample(deep, near, space=2),  # near 4k+1  H/4  W/4
            *blocks(near, (1, 3, 3)),
            CausalConv3d(near, 3 * PIXEL_PATCH**2, (1, 3, 3)),
        )

    @property
    def last_weight(self) -> Tensor:
        """As `VideoAutoencoder.last_weight`."""
        return self.decoder[-1].get_parameter("conv.weight")

    def encode(self, pixels: Float[Tensor, "b 3 t h w"], cache: CausalCache | None = None) -> LatentDistribution:
        """Pixels of 4k + 1 frames to a distribution over latents of k + 1 frames.

        Args:
            cache: of this clip, where `pixels` are a chunk of it: 4k + 1 frames if it is the first, else 4k frames,
                which become k latent frames.

        Raises:
            ValueError: the number of frames does not fit, or a side is no multiple of `spatial_factor`.
        """
        self.check_pixels(pixels, cache)
        patches = rearrange(pixels, "b c t (h p) (w q) -> b (c p q) t h w", p=PIXEL_PATCH, q=PIXEL_PATCH)
        mean, log_variance = self.encoder(patches, cache).float().chunk(2, dim=1)
        return LatentDistribution(mean, (log_variance + INITIAL_LOG_VARIANCE).clamp(-20, 10))

    def decode(
        self, latents: Float[Tensor, "b c t h w"], cache: CausalCache | None = None
    ) -> Float[Tensor, "b 3 s i j"]:
        """Latents of k + 1 frames to pixels of 4k + 1; values may lie slightly outside [-1, 1].

        Args:
            cache: of this clip, where `latents` are a chunk of it: after the first chunk, k latent frames become 4k
                frames.
        """
        patches = self.decoder(latents, cache).float()
        return rearrange(patches, "b (c p q) t h w -> b c t (h p) (w q)", p=PIXEL_PATCH, q=PIXEL_PATCH)


def squared_error(pixels: Float[Tensor, "b ..."], reconstruction: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Mean squared error of each clip, for pixels in [-1, 1]."""
    return (pixels - reconstruction.clamp(-1, 1)).square().flatten(1).mean(1)


def psnr_db(error: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Peak signal-to-noise ratio in decibels of a mean squared error of pixels in [-1, 1] (peak to peak 2)."""
    return 10 * torch.log10(4 / error.clamp_min(1e-10))
