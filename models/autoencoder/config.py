"""Configurations of the autoencoders and of the loss they are trained with. Nothing here loads torch."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from data.dataset.compression import COMPRESSION, Compression
from data.errors import ReelflowError
from data.records import MAX_CHANNELS, AddedLater, Runtime, Settings

KL_NAME = "kl_weight"  # what `AutoencoderLossConfig.kl` was called when it was a field of `AutoencoderConfig`
CALL_FRAMES = 512
WAN_CALL_PIXELS = 2**21  # of all frames of a call: a few gigabytes with 96 channels


class AutoencoderConfig(Settings):
    """Size of the autoencoder. It compresses 4 x in time, and 8 x or 16 x in height and width."""

    architecture: Annotated[Literal["causal"], AddedLater("causal")] = "causal"
    """Kind of autoencoder; the other fields of this section depend on it. The only one is `causal`."""
    latent_channels: int = Field(default=16, ge=1)
    """Channels of a latent."""
    spatial_factor: Annotated[Literal[8, 16], AddedLater(8)] = 8
    """Pixels per latent position, along height and along width."""
    width: int = Field(default=48, ge=8, le=MAX_CHANNELS)
    """Channels of the layers at a quarter of the pixels' height and width."""
    deep_width: int = Field(default=96, ge=8, le=MAX_CHANNELS)
    """Channels of the layers at an eighth and a sixteenth of the pixels' sides; it must divide 8 x `width`."""
    num_blocks: int = Field(default=1, ge=1)
    """Residual blocks at each resolution, in the encoder and in the decoder."""

    @model_validator(mode="before")
    @classmethod
    def _without_loss(cls, fields: Any) -> Any:  # noqa: ANN401 - whatever a record may hold
        """Checkpoints store the weight of the KL divergence among these fields, as when it was one of them."""
        return (
            {name: value for name, value in fields.items() if name != KL_NAME} if isinstance(fields, dict) else fields
        )

    @model_validator(mode="after")
    def _check(self) -> "AutoencoderConfig":
        folded = 8 * self.width  # channels of 2 x 2 x 2 folded values, of which the shortcuts average equal groups
        if folded % self.deep_width:
            fitting = [width for width in range(8, folded + 1) if folded % width == 0]
            nearest = min(fitting, key=lambda width: abs(width - self.deep_width))
            raise ValueError(f"deep_width is {self.deep_width}, but it must divide 8 x width = {folded}: use {nearest}")
        return self

    @property
    def compression(self) -> Compression:
        """The strides of the autoencoder in time and space."""
        return Compression(COMPRESSION.temporal_factor, self.spatial_factor)

    def call_frames(self, height: int, width: int) -> int:  # noqa: ARG002 - of the interface
        """The most frames of such a size that one call should take, over all its clips."""
        return CALL_FRAMES

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape (c, t, h, w) of the latent of a clip.

        Raises:
            ValueError: the clip cannot be encoded: not 4k + 1 frames, or sides that are no multiples of
                `spatial_factor`.
        """
        return (self.latent_channels, *self.compression.latent_grid(num_frames, height, width))


class PerceptualError(ReelflowError, ValueError):
    """A file that holds no network for the perceptual term; the message names it and what was expected."""


class PerceptualConfig(Settings):
    """The distance of frames in the features of a network (LPIPS; Zhang et al. 2018)."""

    weight: float = Field(default=1.0, ge=0)
    """Weight of the term in the loss."""
    network: Annotated[Path, Runtime]
    """File of a TorchScript network. It takes images (n 3 h w) in [-1, 1] and returns a list of feature maps (n c i j);
    or it takes two such tensors and returns the distance of each pair. Loading it runs the code in it. Its content, not
    its place, is part of what the training is made from.
    """


class AdversarialConfig(Settings):
    """A discriminator of clips that is trained together with the autoencoder (Esser et al. 2021, section 3.1)."""

    kind: Annotated[Literal["hinge", "relativistic"], AddedLater("hinge")] = "hinge"
    """What the discriminator learns: `hinge` tells clips from reconstructions, each judged alone; `relativistic` tells
    which of the same patch of a clip and of its reconstruction is real.
    """
    weight: float = Field(default=0.5, ge=0)
    """Weight of the term. With `adaptive`, the length of its gradient at the decoder's last layer, relative to that of
    the terms of reconstruction.
    """
    adaptive: Annotated[bool, AddedLater(True)] = True
    """Whether `weight` is relative. The term then has no strength of its own: it grows with the error that it causes,
    and with the weakness of the discriminator. Otherwise the term is multiplied by `weight`; 0.005 is a first value.
    """
    start_step: int = Field(default=0, ge=0)
    """Number of steps that are trained without the discriminator, until reconstructions are good."""
    width: int = Field(default=32, ge=1, le=MAX_CHANNELS)
    """Channels of the discriminator's first layer; each further one that halves height and width doubles them."""
    num_layers: int = Field(default=3, ge=1, le=4)
    """Layers of the discriminator that halve height and width; all but the first halve time too. More see larger
    patches.
    """
    learning_rate_scale: float = Field(default=1.0, gt=0)
    """Factor of the training's learning rate for the discriminator."""
    betas: tuple[float, float] = (0.5, 0.9)
    """Decay rates of AdamW's averages for the discriminator, each in [0, 1)."""


class AutoencoderLossConfig(Settings):
    """The terms of the autoencoder's loss, which is their weighted sum. A term is named in metrics.jsonl if it is used.

    Squared error, absolute error and KL divergence are always measured, and logged too where their weight is 0.
    """

    squared: Annotated[float, AddedLater(1.0)] = Field(default=1.0, ge=0)
    """Weight of the mean squared error of pixels in [-1, 1]."""
    absolute: Annotated[float, AddedLater(0.1)] = Field(default=0.1, ge=0)
    """Weight of the mean absolute error of pixels."""
    kl: float = Field(default=1e-6, ge=0)
    """Weight of the KL divergence of the latents to N(0, I), in nats per latent value. Older configurations call it
    `kl_weight` and have it in section `autoencoder.model`.
    """
    gradient: Annotated[float, AddedLater(0.0)] = Field(default=0.0, ge=0)
    """Weight of the mean absolute difference of the pixels' gradients in height and width; 0 leaves the term out."""
    perceptual: Annotated[PerceptualConfig | None, AddedLater(None)] = None
    """The perceptual term; None leaves it out."""
    adversarial: Annotated[AdversarialConfig | None, AddedLater(None)] = None
    """The adversarial term; None leaves it out."""

    def resolved(self) -> "AutoencoderLossConfig":
        """The same with an absolute path, for workers that have another working directory."""
        if self.perceptual is None:
            return self
        perceptual = self.perceptual.model_copy(update={"network": self.perceptual.network.resolve()})
        return self.model_copy(update={"perceptual": perceptual})


DEFAULT_LOSS = AutoencoderLossConfig()


@dataclass(frozen=True)
class WanLevel:
    """Residual blocks at one resolution, and the resampling that follows them."""

    channels_in: int
    width: int
    """Channels of the blocks."""
    channels_out: int
    space: int
    """Factor of the resampling in height and width: 2, or 1 where none follows."""
    time: int
    """Factor of the resampling in time: 2 or 1."""


def _levels(widths: list[int], channels: list[int], temporal: tuple[bool, ...]) -> list[WanLevel]:
    """`channels`: before the first level and after each; `temporal`: whether time is resampled, but after the last."""
    factors = [*((2, 2 if both else 1) for both in temporal), (1, 1)]
    return [
        WanLevel(before, width, after, space, time)
        for (before, after), width, (space, time) in zip(pairwise(channels), widths, factors, strict=True)
    ]


Multiplier = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]


class WanAutoencoderConfig(Settings):
    """Size of an autoencoder of Wan 2.1 or 2.2, and the statistics that its latents are normalised by.

    Without the latter, the defaults are those of Wan 2.1; Wan 2.2 has 48 latent channels, widths 160 and 256, patches
    of 2 and residual levels (Wan Team 2025, section 4.1).
    """

    architecture: Literal["wan"] = "wan"
    """Kind of autoencoder."""
    latent_channels: int = Field(default=16, ge=1, le=MAX_CHANNELS)
    """Channels of a latent."""
    latent_mean: tuple[float, ...]
    """Mean of each latent channel, published with the weights."""
    latent_std: tuple[Annotated[float, Field(gt=0)], ...]
    """Standard deviation of each latent channel, published with the weights."""
    width: int = Field(default=96, ge=1, le=MAX_CHANNELS)
    """Channels of the encoder's first level, before its multiplier."""
    decoder_width: int = Field(default=96, ge=1, le=MAX_CHANNELS)
    """Channels of the decoder's last level, before its multiplier."""
    multipliers: tuple[Multiplier, ...] = Field(default=(1, 2, 4, 4), min_length=2)
    """Channels of each level of the encoder, as multiples of `width`; the decoder has them in reverse. Height and width
    are halved after each level but the last.
    """
    num_blocks: int = Field(default=2, ge=1)
    """Residual blocks of each level of the encoder; the decoder has one more."""
    temporal_downsampling: tuple[bool, ...] = (False, True, True)
    """Whether time is halved too, after each level of the encoder but the last."""
    residual: bool = False
    """Whether shortcuts that average or repeat channels lead around each level that resamples, as in Wan 2.2."""
    patch_size: int = Field(default=1, ge=1, le=MAX_CHANNELS)
    """Side of the squares of pixels that are moved into channels before the first level."""

    @model_validator(mode="after")
    def _check(self) -> "WanAutoencoderConfig":
        for name, values in (("latent_mean", self.latent_mean), ("latent_std", self.latent_std)):
            if len(values) != self.latent_channels:
                raise ValueError(f"{name} has {len(values)} values, but latent_channels is {self.latent_channels}")
        if len(self.temporal_downsampling) != len(self.multipliers) - 1:
            raise ValueError(
                f"temporal_downsampling has {len(self.temporal_downsampling)} values, but the "
                f"{len(self.multipliers)} levels of multipliers take {len(self.multipliers) - 1}"
            )
        for number, level in enumerate(self.encoder_levels):
            folded = level.channels_in * level.space**2 * level.time
            if self.residual and folded % level.width:
                raise ValueError(
                    f"the shortcut of level {number} averages {folded} channels to {level.width}, which must divide "
                    "them: change multipliers"
                )
        for number, level in enumerate(self.decoder_levels[:-1]):
            folded = level.channels_out * level.space**2 * level.time
            if self.residual and folded % level.channels_in:
                raise ValueError(
                    f"the shortcut of the decoder's level {number} repeats {level.channels_in} channels to {folded}, "
                    "which must be a multiple of them: change multipliers"
                )
            if not self.residual and level.width % 2:
                raise ValueError(
                    f"the decoder's level {number} has {level.width} channels, which its upsampling cannot halve: use "
                    "an even decoder_width"
                )
        return self

    @property
    def encoder_levels(self) -> list[WanLevel]:
        """The levels of the encoder, from pixels to latents."""
        widths = [self.width * multiplier for multiplier in self.multipliers]
        return _levels(widths, [self.width, *widths], self.temporal_downsampling)

    @property
    def decoder_levels(self) -> list[WanLevel]:
        """The levels of the decoder, from latents to pixels. In Wan 2.1 an upsampling halves the channels."""
        widths = [self.decoder_width * multiplier for multiplier in reversed(self.multipliers)]
        upsampled = [width if self.residual else width // 2 for width in widths[:-1]]
        return _levels(widths, [widths[0], *upsampled, widths[-1]], self.temporal_downsampling[::-1])

    @property
    def compression(self) -> Compression:
        """The strides of the autoencoder in time and space."""
        return Compression(
            temporal_factor=2 ** sum(self.temporal_downsampling),
            spatial_factor=2 ** len(self.temporal_downsampling) * self.patch_size,
        )

    def call_frames(self, height: int, width: int) -> int:
        """As `AutoencoderConfig.call_frames`: its first and last layers compute at the resolution of the pixels."""
        factor = self.compression.temporal_factor
        return max(1, WAN_CALL_PIXELS // (height * width * factor)) * factor

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape (c, t, h, w) of the latent of a clip.

        Raises:
            ValueError: the clip cannot be encoded: its length or a side does not fit to the strides.
        """
        return (self.latent_channels, *self.compression.latent_grid(num_frames, height, width))


def _architecture(config: Any) -> Any:  # noqa: ANN401 - the fields of a file, or a configuration
    """That of a configuration; fields without one are of the time when there was only one."""
    return config.get("architecture", "causal") if isinstance(config, dict) else getattr(config, "architecture", None)


VideoAutoencoderConfig = Annotated[
    Annotated[AutoencoderConfig, Tag("causal")] | Annotated[WanAutoencoderConfig, Tag("wan")],
    Discriminator(_architecture),  # a function: pydantic takes no field that a validator of `Settings` sees first
]
"""Configuration of any autoencoder; `architecture` tells them apart."""


def read_autoencoder_config(fields: dict[str, Any]) -> VideoAutoencoderConfig:
    """The configuration that a checkpoint or a file stores.

    Raises:
        ValidationError: a field is unknown or impossible; for an unknown architecture it names the known ones.
    """
    return TypeAdapter(VideoAutoencoderConfig).validate_python(fields)
