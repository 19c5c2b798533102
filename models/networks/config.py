"""Configuration of the networks that predict the velocity. Nothing here loads torch."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from data.records import MAX_CHANNELS, AddedLater, Settings
from models.networks.dit_options import AttentionSpan, ClipNumber, KnownFrames, ModulationKind, RopeConfig
from models.networks.presets import PresetName, with_preset
from models.text.config import TextConfig


def nearest_heads(width: int, heads: int, multiple: int = 1) -> int | None:
    """The number of heads nearest to `heads` that splits `width` into multiples of 8 channels; None: there is none.

    Args:
        multiple: must divide the number of heads.
    """
    fitting = [h for h in range(multiple, width + 1, multiple) if width % h == 0 and width // h % 8 == 0]
    return min(fitting, key=lambda h: abs(h - heads), default=None)


class Patched:
    """A network that cuts every latent frame into squares of `patch_size` x `patch_size`, one token each."""

    if TYPE_CHECKING:  # a field here would come before those of the records, whose order is stored
        patch_size: int

    patch_field: ClassVar[str] = "patch_size"
    """The field that decides the patch size, for messages."""
    shares_tokens: ClassVar[bool] = True
    """Whether several processes can compute one sample together, each with a part of its tokens."""
    packs_clips: ClassVar[bool] = False
    """Whether clips of several shapes can be computed together, see `VelocityNetwork.packed`."""
    learns_maps: ClassVar[bool] = False
    """Whether the network can be one of a flow map, by its field `flow_map`."""

    @property
    def is_flow_map(self) -> bool:
        """Whether the network is told where a jump ends."""
        return False

    def token_grid(self, latent_grid: tuple[int, int, int]) -> tuple[int, int, int]:
        """Tokens (t, h, w) of a latent of that many positions (t, h, w).

        Raises:
            ValueError: the height or the width does not split into patches.
        """
        t, h, w = latent_grid
        p = self.patch_size
        if h % p or w % p:
            raise ValueError(f"a latent of {h} x {w} does not split into patches of {p} x {p}")
        return t, h // p, w // p

    def num_tokens(self, latent_grid: tuple[int, int, int]) -> int:
        """Tokens of a latent of that many positions (t, h, w).

        Raises:
            ValueError: as `token_grid`.
        """
        t, h, w = self.token_grid(latent_grid)
        return t * h * w


class DiTConfig(Patched, Settings):
    """Size of a spatiotemporal diffusion transformer (`models/networks/dit.py`)."""

    architecture: Annotated[Literal["dit"], AddedLater("dit")] = "dit"
    """Kind of network; the other fields of this section depend on it: `dit`, `unet`, a convolutional network, or `wan`,
    whose weights are published.
    """
    preset: Annotated[PresetName | None, AddedLater(None)] = None
    """Shorthand for `width`, `depth`, `heads`, `modulation` and the size of `text`, which it is replaced by: none of
    them may be given otherwise. docs/guides/networks.md has a table."""
    width: int = Field(default=192, ge=32, le=MAX_CHANNELS)
    """Channels of each token."""
    depth: int = Field(default=6, ge=1)
    """Number of transformer blocks."""
    heads: int = Field(default=3, ge=1, le=MAX_CHANNELS)
    """Attention heads of each block; each head gets `width` / `heads` channels, which must be a multiple of 8."""
    mlp_ratio: int = Field(default=4, ge=1)
    """Hidden channels of each feed-forward layer, as a multiple of `width`."""
    patch_size: int = Field(default=2, ge=1)
    """Side of the square of latent pixels that becomes one token; in time each latent frame has its own tokens."""
    text: TextConfig = TextConfig()
    """Size of the caption encoder that is trained together with the network."""
    attention_pattern: Annotated[tuple[AttentionSpan, ...], AddedLater(("full",))] = Field(
        default=("full",), min_length=1
    )
    """Self-attention of the blocks after the joint ones, in turn, repeated to the last block: `full` relates all
    tokens, `space` those of a frame, `time` those at one place in all frames. `[space, time]` is cheaper for long
    clips."""
    rope: Annotated[RopeConfig, AddedLater(RopeConfig())] = RopeConfig()
    """How tokens are told their position."""
    modulation: Annotated[ModulationKind, AddedLater("per_block")] = "per_block"
    """Where a block's shifts, scales and gates come from: a layer of its own, which has three tenths of its parameters
    (`per_block`); one layer for all blocks, plus a table in each (`shared`); or that plus a product of rank
    `modulation_rank` (`low_rank`)."""
    modulation_rank: Annotated[int | None, AddedLater(None)] = Field(default=None, ge=1)
    """Rank of each block's own part with `modulation: low_rank`, below `width`; None with the other kinds."""

    joint_blocks: Annotated[int, AddedLater(0)] = Field(default=0, ge=0)
    """How many of the blocks, from the first on, are joint (MM-DiT) blocks: the caption's tokens take part in full
    self-attention, with weights of their own. The other blocks read the caption by cross-attention."""

    clip_conditions: Annotated[tuple[ClipNumber, ...], AddedLater(())] = ()
    """What the network is told of a clip beside time and caption: its frame rate (`fps`), and its latent frames, height
    and width (`size`). For datasets of several buckets."""

    known_frames: Annotated[KnownFrames, AddedLater("time")] = "time"
    """How the network is told which latent frames are given (`dit.flow.first_frame_share`, `dit.flow.given`): by
    their time alone, or also by further input `channels`, which hold the given frames and a mask."""

    flow_map: Annotated[bool, AddedLater(False)] = False
    """Whether the network is told where a jump ends, beside the time at which it begins, and its guidance scale: for
    the few steps of a flow map (`dit.flow.map`). The section `distill` sets it by itself."""

    @model_validator(mode="before")
    @classmethod
    def _size_of_preset(cls, fields: Any) -> Any:  # noqa: ANN401 - whatever a configuration may hold
        return with_preset(fields)

    @model_validator(mode="after")
    def _check(self) -> "DiTConfig":
        for owner, width, heads in (("", self.width, self.heads), ("text.", self.text.width, self.text.heads)):
            if (nearest := nearest_heads(width, heads)) != heads:
                if nearest is None:
                    raise ValueError(f"{owner}width is {width}, but it must be a multiple of 8")
                raise ValueError(
                    f"{owner}heads is {heads}, but {owner}width {width} must split into heads of a multiple of 8 "
                    f"channels: use {nearest} heads"
                )
        return self

    packs_clips: ClassVar[bool] = True
    learns_maps: ClassVar[bool] = True
    needs_embeddings: ClassVar[bool] = False
    """Whether captions have to be embedded by a pretrained encoder."""
    needs_image: ClassVar[bool] = False
    """Whether the network takes no clip but those that start from an image."""
    max_text_tokens: ClassVar[int | None] = None
    """Longest embedding of a caption that the network takes; None: any."""

    @property
    def is_flow_map(self) -> bool:
        """As of `Patched`."""
        return self.flow_map

    @model_validator(mode="after")
    def _check_options(self) -> "DiTConfig":
        if self.rope.axes is not None and sum(self.rope.axes) != self.width // self.heads:
            raise ValueError(
                f"rope.axes is {list(self.rope.axes)}, which adds up to {sum(self.rope.axes)}, but a head has "
                f"{self.width // self.heads} channels (width {self.width} / heads {self.heads})"
            )
        if len(set(self.clip_conditions)) < len(self.clip_conditions):
            raise ValueError(f"clip_conditions is {list(self.clip_conditions)}: name each once")
        if (self.modulation_rank is None) == (self.modulation == "low_rank"):
            raise ValueError(
                f"modulation is {self.modulation!r}, but modulation_rank is {self.modulation_rank}: give a rank, such "
                f"as {max(1, self.width // 8)}, with low_rank and only with it"
            )
        if self.modulation_rank is not None and self.modulation_rank >= self.width:
            raise ValueError(
                f"modulation_rank is {self.modulation_rank}, but a rank below width {self.width} is meant: use "
                f"{max(1, self.width // 8)}, or modulation per_block"
            )
        if self.joint_blocks > self.depth:
            raise ValueError(
                f"joint_blocks is {self.joint_blocks}, but depth is {self.depth}: use at most {self.depth}"
            )
        if len(self.attention_pattern) > max(1, self.depth - self.joint_blocks):
            joint = f", of which {self.joint_blocks} are joint_blocks" if self.joint_blocks else ""
            raise ValueError(
                f"attention_pattern has {len(self.attention_pattern)} entries, but depth is {self.depth}{joint}: leave "
                "out those that no block would use"
            )
        return self

    @property
    def block_spans(self) -> tuple[AttentionSpan, ...]:
        """What the self-attention of each block after the joint ones relates."""
        numbers = range(self.depth - self.joint_blocks)
        return tuple(self.attention_pattern[number % len(self.attention_pattern)] for number in numbers)

    @property
    def caption_text(self) -> TextConfig:
        """How captions are read, where they are not embedded by a pretrained encoder."""
        return self.text


class UNetConfig(Patched, Settings):
    """Size of a video U-Net (`models/networks/unet.py`).

    What a patch is to a transformer is the square of latent positions above one position of its deepest level, whose
    self-attention has one token for each. With the defaults, a training step on the demo's latents takes as many
    operations as with the demo's DiT.
    """

    architecture: Literal["unet"]
    """Kind of network: a U-Net of convolutions over space and over time, with attention at its deepest level."""
    width: int = Field(default=64, ge=8, le=MAX_CHANNELS)
    """Channels of the first level, which has the height and width of the latent."""
    multipliers: tuple[Annotated[int, Field(ge=1, le=MAX_CHANNELS)], ...] = Field(
        default=(1, 3), min_length=2, max_length=8
    )
    """Channels of each level, as multiples of `width`; from one level to the next, height and width are halved."""
    num_blocks: int = Field(default=2, ge=1)
    """Blocks of each level on the way down, at the deepest level, and of each level on the way up."""
    heads: int = Field(default=3, ge=1, le=MAX_CHANNELS)
    """Attention heads of each block of the deepest level; each gets an equal number of its channels, which must be a
    multiple of 8.
    """
    text: TextConfig = TextConfig()
    """Size of the caption encoder that is trained together with the network."""
    known_frames: Annotated[KnownFrames, AddedLater("time")] = "time"
    """How the network is told which latent frames are given (`dit.flow.first_frame_share`, `dit.flow.given`): by
    their time alone, or also by further input `channels`, which hold the given frames and a mask."""

    patch_field: ClassVar[str] = "multipliers"
    shares_tokens: ClassVar[bool] = False
    needs_embeddings: ClassVar[bool] = False
    """Whether captions have to be embedded by a pretrained encoder."""
    needs_image: ClassVar[bool] = False
    """Whether the network takes no clip but those that start from an image."""
    max_text_tokens: ClassVar[int | None] = None
    """Longest embedding of a caption that the network takes; None: any."""

    @model_validator(mode="after")
    def _check(self) -> "UNetConfig":
        deepest = self.widths[-1]
        if max(self.widths) > MAX_CHANNELS:
            raise ValueError(
                f"width is {self.width} and multipliers {list(self.multipliers)}, but a level has at most "
                f"{MAX_CHANNELS} channels"
            )
        owners = (
            ("heads", "width times the last of multipliers", deepest, self.heads),
            ("text.heads", "text.width", self.text.width, self.text.heads),
        )
        for name, of, width, heads in owners:
            if (nearest := nearest_heads(width, heads)) != heads:
                if nearest is None:
                    raise ValueError(f"{of} is {width}, but it must be a multiple of 8")
                raise ValueError(
                    f"{name} is {heads}, but {of}, {width}, must split into heads of a multiple of 8 channels: use "
                    f"{nearest} heads"
                )
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, that of the latent first."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def patch_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - a field elsewhere
        """Side of the square of latent positions above one of the deepest level; it divides sides of latents."""
        return 2 ** (len(self.multipliers) - 1)

    def token_grid(self, latent_grid: tuple[int, int, int]) -> tuple[int, int, int]:
        """Positions (t, h, w) of the deepest level for a latent of that many (t, h, w).

        Raises:
            ValueError: the height or the width cannot be halved at every level.
        """
        _, h, w = latent_grid
        if h % self.patch_size or w % self.patch_size:
            levels = len(self.multipliers)
            raise ValueError(
                f"a latent of {h} x {w} does not split into patches of {self.patch_size} x {self.patch_size}, as the "
                f"{levels} levels of multipliers need: each level but the first halves height and width"
            )
        return super().token_grid(latent_grid)

    @property
    def caption_text(self) -> TextConfig:
        """How captions are read, where they are not embedded by a pretrained encoder."""
        return self.text


class WanConfig(Patched, Settings):
    """Size of a transformer of the Wan family (`models/networks/wan.py`). The defaults are those of Wan 2.1, 1.3B."""

    architecture: Literal["wan"]
    """Kind of network: the transformer of Wan 2.1 and Wan 2.2, which reads captions as embeddings of UMT5."""
    width: int = Field(default=1536, ge=32, le=MAX_CHANNELS)
    """Channels of each token."""
    depth: int = Field(default=30, ge=1)
    """Number of transformer blocks."""
    heads: int = Field(default=12, ge=1, le=MAX_CHANNELS)
    """Attention heads of each block; each head gets `width` / `heads` channels, which must be a multiple of 8."""
    mlp_width: int = Field(default=8960, ge=32, le=8 * MAX_CHANNELS)
    """Hidden channels of each feed-forward layer."""
    patch_size: int = Field(default=2, ge=1)
    """Side of the square of latent pixels that becomes one token; in time each latent frame has its own tokens."""
    time_width: int = Field(default=256, ge=2, le=MAX_CHANNELS, multiple_of=2)
    """Number of sinusoids that represent a time."""
    text_tokens: int = Field(default=512, ge=1)
    """Length of the caption's embedding; shorter captions are filled with zeros, to which the network attends too."""
    image_width: int | None = Field(default=None, ge=1, le=MAX_CHANNELS)
    """Channels of an image encoder's embedding of the first frame, for image-to-video; None: the network takes none."""
    condition_channels: int = Field(default=0, ge=0, le=MAX_CHANNELS)
    """Channels that the network gets beside those of the noisy latent, for image-to-video: mask and known frames."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the variance in every norm."""

    @model_validator(mode="after")
    def _check(self) -> "WanConfig":
        if self.image_width is not None and self.condition_channels == 0:
            raise ValueError(
                f"image_width is {self.image_width}, but condition_channels is 0: an image is given by both, or by "
                "condition_channels alone"
            )
        if (nearest := nearest_heads(self.width, self.heads)) != self.heads:
            way_out = "width must be a multiple of 8" if nearest is None else f"use {nearest} heads"
            raise ValueError(
                f"heads is {self.heads}, but width {self.width} must split into heads of a multiple of 8 channels: "
                f"{way_out}"
            )
        return self

    needs_embeddings: ClassVar[bool] = True
    known_frames: ClassVar[KnownFrames] = "time"

    @property
    def needs_image(self) -> bool:
        """Whether the network takes the image that a clip starts from by channels of its own, and no clip without."""
        return self.condition_channels > 0

    @property
    def max_text_tokens(self) -> int:
        """Longest embedding of a caption that the network takes."""
        return self.text_tokens

    @property
    def caption_text(self) -> TextConfig:
        """Refused: the network reads embeddings only.

        Raises:
            ValueError: always.
        """
        raise ValueError("a network of architecture wan reads captions as embeddings: set encode.text.folder")


def _architecture(fields: Any) -> Any:  # noqa: ANN401 - whatever a file holds
    """The kind of network; fields without it are of a DiT, as configurations and checkpoints are older than it."""
    return fields.get("architecture", "dit") if isinstance(fields, dict) else getattr(fields, "architecture", None)


NetworkConfig = Annotated[
    Annotated[DiTConfig, Tag("dit")] | Annotated[UNetConfig, Tag("unet")] | Annotated[WanConfig, Tag("wan")],
    Discriminator(_architecture),
]
"""Configuration of any network, told apart by `architecture`."""

DEFAULT_NETWORK: NetworkConfig = DiTConfig()

_NETWORK: TypeAdapter[NetworkConfig] = TypeAdapter(NetworkConfig)


def read_network_config(fields: dict[str, Any]) -> NetworkConfig:
    """The configuration that a checkpoint stores; without `architecture` (before the field existed) it is of a DiT.

    Raises:
        ValidationError: a field is unknown or impossible; for an unknown architecture it names the known ones.
    """
    return _NETWORK.validate_python(fields)
