"""The figures that a report shows."""

from dataclasses import dataclass

from data.records import Frames, Record

ATTRIBUTES = ("colour", "direction", "shape", "all")


class Share(Record):
    """How often each attribute was right."""

    num_clips: int
    right: dict[str, int]

    def share(self, attribute: str) -> float:
        """Right clips over all clips."""
        return self.right[attribute] / self.num_clips


class Reconstructions(Record):
    """The autoencoder on clips it never saw."""

    num_clips: int
    psnr_db: float  # mean over clips
    psnr_db_min: float


@dataclass(frozen=True)
class Shown:
    """A clip and what the autoencoder makes of it."""

    caption: str
    fps: float
    original: Frames
    reconstruction: Frames


def count(verdicts: list[dict[str, bool]]) -> Share:
    """Add up verdicts."""
    return Share(num_clips=len(verdicts), right={name: sum(v[name] for v in verdicts) for name in ATTRIBUTES})
