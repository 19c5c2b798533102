"""What pages are made from: the figures, clips and verdicts that stages hand to a report."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import AllowInfNan

from data.records import Frames, Record

ATTRIBUTES = ("colour", "direction", "shape", "all")


class Share(Record):
    """How often each attribute was right, over some clips."""

    num_clips: int
    right: dict[str, int]  # number of clips, by attribute

    def share(self, attribute: str) -> float:
        """The fraction of clips in which an attribute was right, in [0, 1]."""
        return self.right[attribute] / self.num_clips


class Reconstructions(Record):
    """Reconstruction error of the autoencoder on clips of the validation split."""

    num_clips: int
    psnr_db: Annotated[float, AllowInfNan()]  # mean over clips; infinite where every pixel is right
    psnr_db_min: Annotated[float, AllowInfNan()]  # of the worst clip


@dataclass(frozen=True)
class GalleryClip:
    """A sampled clip, as pages show it."""

    file: str  # name in the samples folder
    prompt: str
    seed: int
    guidance_scale: float
    right: bool | None  # whether it shows all that its prompt says; None where that is not known
    bucket: str  # name of its shape, such as 17x64x64@8


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
