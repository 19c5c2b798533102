"""What pages are made from: the figures, clips and verdicts that stages hand to a report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AllowInfNan, JsonValue

from data.records import Frames, Record

ATTRIBUTES = ("colour", "direction", "shape", "all")


class Share(Record):
    """How often each attribute was right, over some clips."""

    num_clips: int
    right: dict[str, int]  # number of clips, by attribute

    def share(self, attribute: str) -> float:
        """The fraction of clips in which an attribute was right, in [0, 1]."""
        return self.right[attribute] / self.num_clips


class AutoencoderQuality(Record):
    """What the latents of clips of the validation split carry, and how reconstructions differ from the clips."""

    ssim: float  # mean over frames, 1 where every frame is equal
    flicker_levels: float  # mean change of the error from one frame to the next, in levels of 8 bits
    high_frequency_share: float | None  # energy of fine detail, divided by that of the clips; None where they have none
    latent_std: list[float]  # of each channel, over clips and positions
    dead_channels: list[int]  # numbers of channels, from 0, that carry next to nothing


class Reconstructions(Record):
    """Reconstruction error of the autoencoder on clips of the validation split."""

    num_clips: int
    psnr_db: Annotated[float, AllowInfNan()]  # mean over clips; infinite where every pixel is right
    psnr_db_min: Annotated[float, AllowInfNan()]  # of the worst clip
    quality: AutoencoderQuality


@dataclass(frozen=True)
class GalleryClip:
    """A sampled clip, as pages show it."""

    file: str  # name in the samples folder
    prompt: str
    seed: int
    guidance_scale: float
    right: bool | None  # whether it shows all that its prompt says; None where that is not known
    bucket: str  # name of its shape, such as 17x64x64@8
    settings: Mapping[str, JsonValue] = field(default_factory=dict)  # of sampling; none of an older version's clip
    provenance: Mapping[str, str] = field(default_factory=dict)  # what else it came from, by name
    scores: Mapping[str, float] = field(default_factory=dict)  # by name, such as motion


@dataclass(frozen=True)
class ReconstructedClip:
    """A clip beside its reconstruction by the autoencoder."""

    caption: str
    fps: float
    original: Frames
    reconstruction: Frames


def count(verdicts: list[dict[str, bool]]) -> Share:
    """Count the right verdicts of each attribute."""
    return Share(num_clips=len(verdicts), right={name: sum(v[name] for v in verdicts) for name in ATTRIBUTES})
