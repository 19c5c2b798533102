"""The causal video autoencoders of Wan 2.1 and Wan 2.2 (Wan Team 2025, section 4.1).

They differ from `models/autoencoder/model.py` in what stands before the first frame: convolutions see zeros, and the
convolutions that resample time leave the first frame out. So a frame that is alone, an image, passes those unchanged.
Wan 2.2 also moves squares of pixels into channels, and leads shortcuts without weights around its levels (Chen et al.
2024, "DC-AE", section 3.1). Names and files of the published weights: `models/autoencoder/wan_published.py`.
"""

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from models.attention.attention import attention
from models.autoencoder.causal import CausalCache, CausalConv3d, CausalStack, is_clip_start, nothing_first, zeros_first
from models.autoencoder.config import WanAutoencoderConfig, WanLevel
from models.autoencoder.protocol import LatentDistribution, VideoAutoencoder


class ChannelRMSNorm(nn.Module):
    """x / |x| * sqrt(channels) * gain over the channels of each position: an RMS norm without an epsilon."""

    def __init__(self, channels: int, num_axes: int) -> None:
        """`num_axes`: of the positions; it decides the shape of the gain, which is the published one."""
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, *[1] * num_axes))

    def forward(self, x: Float[Tensor, "b c *positions"]) -> Float[Tensor, "b c *positions"]:
        """Normalise in float32; the result has the type of `x`."""
        power = x.float().square().sum(1, keepdim=True).clamp_min(1e-24)  # vector_norm takes 6 x as long on a CPU
        normal = x * (x.shape[1] ** 0.5 * power.rsqrt())
        return normal.mul_(self.gain).to(x.dtype)  # in place: at full resolution a tensor more is much memory


def convolution(channels_in: int, channels_out: int, kernel: int) -> CausalConv3d:
    """A convolution over time, height and width, with zeros around them and before the first frame."""
    return CausalConv3d(channels_in, channels_out, (kernel, kernel, kernel), zeros_first)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); a pointwise convolution of x where the channels change."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm_1 = ChannelRMSNorm(channels_in, num_axes=3)
        self.conv_1 = convolution(channels_in, channels_out, kernel=3)
        self.norm_2 = ChannelRMSNorm(channels_out, num_axes=3)
        self.conv_2 = convolution(channels_out, channels_out, kernel=3)
        self.shortcut = convolution(channels_in, channels_out, kernel=1) if channels_in != channels_out else None

    def forward(self, x: Float[Tensor, "b c t h w"], cache: CausalCache | None = None) -> Float[Tensor, "b d t h w"]:
        """Add the residual."""
        residual = self.conv_1(silu(self.norm_1(x), inplace=True), cache)
        residual = self.conv_2(silu(self.norm_2(residual), inplace=True), cache)
        return residual.add_(x if self.shortcut is None else self.shortcut(x))


def frames_of(x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "n c h w"]:
    """Every frame as an image of its own."""
    return rearrange(x, "b c t h w -> (b t) c h w")


def clips_of(frames: Float[Tensor, "n c h w"], num_clips: int) -> Float[Tensor, "b c t h w"]:
    """The inverse of `frames_of`."""
    return rearrange(frames, "(b t) c h w -> b c t h w", b=num_clips)


class FrameAttention(nn.Module):
    """Self-attention of one head among the positions of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelRMSNorm(channels, num_axes=2)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c t h w"], cache: CausalCache | None = None) -> Float[Tensor, "b c t h w"]:  # noqa: ARG002 - of a layer
        """Add the residual. No frame sees another one, so there is nothing to keep in the cache."""
        projected = self.query_key_value(self.norm(frames_of(x)))
        query, key, value = rearrange(projected, "n (three c) h w -> three n (h w) 1 c", three=3)
        mixed = rearrange(attention(query, key, value), "n (h w) 1 c -> n c h w", h=x.shape[3])
        return x + clips_of(self.out(mixed), len(x))


class Downsample(nn.Module):
    """Halve height and width, then time where `time` is 2."""

    def __init__(self, channels: int, time: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(channels, channels, 3, stride=2)
        self.time = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if time == 2 else None

    def forward(self, x: Float[Tensor, "b c t h w"], cache: CausalCache | None = None) -> Float[Tensor, "b c s i j"]:
        """2k + 1 frames to k + 1: the first stays as it is, each other one is of a pair and of the frame before it."""
        x = clips_of(self.space(pad(frames_of(x), (0, 1, 0, 1))), len(x))
        if self.time is None:
            return x
        first = x[:, :, :1] if is_clip_start(cache) else x[:, :, :0]
        if cache is not None:
            x = cache.prepend(self, x, 1, nothing_first)
        return torch.cat([first, self.time(x)], dim=2) if x.shape[2] > 1 else first


class Upsample(nn.Module):
    """Double time where `time` is 2, then height and width."""

    def __init__(self, channels_in: int, channels_out: int, time: int) -> None:
        super().__init__()
        self.time = CausalConv3d(channels_in, 2 * channels_in, (3, 1, 1), zeros_first) if time == 2 else None
        self.space = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c t h w"], cache: CausalCache | None = None) -> Float[Tensor, "b d s i j"]:
        """k + 1 frames to 2k + 1: the first stays as it is and is seen by no other, each other one becomes two."""
        if self.time is not None:
            first, others = x.tensor_split([1 if is_clip_start(cache) else 0], dim=2)
            if others.shape[2]:
                others = rearrange(self.time(others, cache), "b (s c) t h w -> b c (t s) h w", s=2)
            x = torch.cat([first, others], dim=2)
        frames = repeat(frames_of(x), "n c h w -> n c (h p) (w q)", p=2, q=2)
        return clips_of(self.space(frames), len(x))


def averaged(x: Float[Tensor, "b c t h w"], level: WanLevel, *, is_start: bool) -> Float[Tensor, "b d s i j"]:
    """The shortcut of a level of the encoder: squares and pairs of frames moved into channels, equal groups averaged.

    A frame of zeros stands before the first one of a clip, so that 2k + 1 frames become k + 1.
    """
    if is_start:
        x = zeros_first(x, level.time - 1)
    folded = rearrange(x, "b c (t s) (h p) (w q) -> b (c s p q) t h w", s=level.time, p=level.space, q=level.space)
    return reduce(folded, "b (d g) t h w -> b d t h w", "mean", d=level.channels_out)


def repeated(x: Float[Tensor, "b c t h w"], level: WanLevel, *, is_start: bool) -> Float[Tensor, "b d s i j"]:
    """The shortcut of a level of the decoder: channels repeated, then moved into squares and pairs of frames.

    Of the pair that the first frame of a clip becomes, the second one is kept, so that k + 1 frames become 2k + 1.
    """
    factor = level.time * level.space**2
    folded = repeat(x, "b c t h w -> b (c g) t h w", g=level.channels_out * factor // level.channels_in)
    x = rearrange(folded, "b (d s p q) t h w -> b d (t s) (h p) (w q)", s=level.time, p=level.space, q=level.space)
    return x[:, :, level.time - 1 :] if is_start else x


class Level(nn.Module):
    """Residual blocks at one resolution and the resampling that follows; if `residual`, a shortcut around them."""

    def __init__(self, level: WanLevel, num_blocks: int, *, is_encoder: bool, residual: bool) -> None:
        super().__init__()
        self.level = level
        inputs = [level.channels_in, *[level.width] * (num_blocks - 1)]
        layers: list[nn.Module] = [ResidualBlock(channels, level.width) for channels in inputs]
        if level.space == 2 and is_encoder:
            layers.append(Downsample(level.width, level.time))
        elif level.space == 2:
            layers.append(Upsample(level.width, level.channels_out, level.time))
        self.layers = nn.ModuleList(layers)
        self.shortcut = None
        if residual and is_encoder:
            self.shortcut = averaged
        elif residual and level.space == 2:
            self.shortcut = repeated

    def forward(self, x: Float[Tensor, "b c t h w"], cache: CausalCache | None = None) -> Float[Tensor, "b d s i j"]:
        """The output of the last layer, plus the shortcut."""
        start = x
        for layer in self.layers:
            x = layer(x, cache)
        return x if self.shortcut is None else x + self.shortcut(start, self.level, is_start=is_clip_start(cache))


class Head(nn.Module):
    """conv(silu(norm(x)))."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm = ChannelRMSNorm(channels_in, num_axes=3)
        self.conv = convolution(channels_in, channels_out, kernel=3)

    def forward(self, x: Float[Tensor, "b c t h w"], cache: CausalCache | None = None) -> Float[Tensor, "b d t h w"]:
        """Normalise, then convolve."""
        return self.conv(silu(self.norm(x), inplace=True), cache)


class WanAutoencoder(VideoAutoencoder):
    """Encoder and decoder of Wan 2.1 or 2.2. Latents are as the encoder gives them, not normalised."""

    def __init__(self, config: WanAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_size = config.patch_size
        patch, channels = 3 * config.patch_size**2, config.latent_channels

        def levels(*, is_encoder: bool) -> list[Level]:
            sizes = config.encoder_levels if is_encoder else config.decoder_levels
            num_blocks = config.num_blocks if is_encoder else config.num_blocks + 1
            return [Level(size, num_blocks, is_encoder=is_encoder, residual=config.residual) for size in sizes]

        def middle(width: int) -> list[nn.Module]:
            return [ResidualBlock(width, width), FrameAttention(width), ResidualBlock(width, width)]

        deep, wide = config.encoder_levels[-1].width, config.decoder_levels[0].width
        self.encoder = CausalStack(  # with Wan 2.1's strides: c, t, h, w
            convolution(patch, config.width, kernel=3),  # width 4k+1 H W
            *levels(is_encoder=True),  # deep k+1 H/8 W/8
            *middle(deep),
            Head(deep, 2 * channels),
            convolution(2 * channels, 2 * channels, kernel=1),  # mean and log variance
        )
        self.decoder = CausalStack(
            convolution(channels, channels, kernel=1),  # channels k+1 H/8 W/8
            convolution(channels, wide, kernel=3),
            *middle(wide),
            *levels(is_encoder=False),  # decoder width 4k+1 H W
            Head(config.decoder_levels[-1].width, patch),
        )

    @property
    def last_weight(self) -> Tensor:
        """As `VideoAutoencoder.last_weight`."""
        return self.decoder[-1].get_parameter("conv.conv.weight")

    def encode(self, pixels: Float[Tensor, "b 3 t h w"], cache: CausalCache | None = None) -> LatentDistribution:
        """As `VideoAutoencoder.encode`."""
        self.check_pixels(pixels, cache)
        p = self.patch_size
        patches = rearrange(pixels, "b c t (h p) (w q) -> b (c q p) t h w", p=p, q=p)
        mean, log_variance = self.encoder(patches, cache).float().chunk(2, dim=1)
        return LatentDistribution(mean, log_variance.clamp(-30, 20))

    def decode(
        self, latents: Float[Tensor, "b c t h w"], cache: CausalCache | None = None
    ) -> Float[Tensor, "b 3 s i j"]:
        """As `VideoAutoencoder.decode`. Wan's own programs clamp the pixels to [-1, 1]."""
        p = self.patch_size
        return rearrange(self.decoder(latents, cache).float(), "b (c q p) t h w -> b c t (h p) (w q)", p=p, q=p)
