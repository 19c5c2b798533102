"""Settings of curation: what is kept of the sources."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data.records import AddedLater, Runtime, Settings

Measure = Literal["brightness", "change", "bars", "text", "motion", "sharpness", "clipped", "logo"]
DuplicateViews = Literal["same", "mirrored_or_cropped"]


class FilterConfig(Settings):
    """Which videos and clips are left out. Each filter is off while its threshold is None."""

    too_small_pixels: int | None = Field(default=16, ge=1)
    """Videos whose shorter side has fewer pixels than this are left out; None keeps every size."""
    too_large_pixels: Annotated[int | None, AddedLater(None)] = Field(default=2**26, ge=1)
    """Videos and images with more pixels in a frame than this are left out, before they are decoded; None keeps every
    size. A frame of this many takes 200 MB in RGB, and decoding it three times that; one of 8K video has half as many.
    """
    static_difference: float | None = Field(default=None, ge=0, le=255)
    """Clips are left out whose consecutive frames differ by at most this brightness on average, from 0 to 255."""
    black_luma: float | None = Field(default=None, ge=0, le=255)
    """Clips are left out whose mean brightness is at most this, from 0 (black) to 255 (white)."""
    letter_boxed_share: float | None = Field(default=None, ge=0, lt=1)
    """Clips are left out if more than this share of the picture, from 0 to 1, is black bars at its edges."""
    text_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Clips are left out if more than this share of the picture, from 0 to 1, is text; needs the extra `text-filter`.

    It is the median over the first, middle and last frame, measured before the frames are resized.
    """
    min_motion: Annotated[float | None, AddedLater(None)] = Field(default=None, gt=0)
    """Clips are left out that move less: mean speed by optical flow, in shorter sides of the picture a second.

    Filters on motion need the extra `motion`.
    """
    max_motion: Annotated[float | None, AddedLater(None)] = Field(default=None, gt=0)
    """Clips are left out that move more; measured as `min_motion`."""
    min_sharpness: Annotated[float | None, AddedLater(None)] = Field(default=None, gt=0, lt=1)
    """Clips are left out that are less sharp, from 0 (blurred) to 1, whatever their contrast."""
    max_clipped_share: Annotated[float | None, AddedLater(None)] = Field(default=None, ge=0, lt=1)
    """Clips are left out if more than this share of their pixels, from 0 to 1, is black or white without detail."""
    max_logo_share: Annotated[float | None, AddedLater(None)] = Field(default=None, ge=0, lt=1)
    """Clips are left out if more than this share of the picture, from 0 to 1, is a logo or watermark.

    That is a mark that stays while the rest moves; none is seen where the camera stands still.
    """
    measures: Annotated[tuple[Measure, ...], AddedLater(())] = ()
    """Measured of every clip and stored in its record, so that a threshold can be chosen; nothing is left out by them.

    What `min_motion` and the other thresholds named `min` or `max` compare is stored too. The names are `brightness`,
    `change`, `bars`, `text`, `motion`, `sharpness`, `clipped` and `logo`.
    """
    duplicate_bits: int | None = Field(default=None, ge=0, le=32)
    """Clips are left out whose perceptual hash of 189 bits differs from an earlier clip's in at most this many bits.

    Earlier in the order of the videos: by path in a folder, by row in a table.
    """
    duplicate_views: Annotated[DuplicateViews, AddedLater("same")] = "same"
    """Where duplicates are looked for: `same` compares whole pictures, `mirrored_or_cropped` also copies that are
    mirrored or lack up to 10% of the picture at any edge.

    With it, clips that show the same differently moving are told apart. A good `duplicate_bits` is 24 for it, 8 for
    `same`.
    """

    def needs(self, measure: Measure) -> bool:
        """Whether something must be measured of each clip."""
        return measure in self.measures or any(getattr(self, name) is not None for name in THRESHOLDS[measure])

    @property
    def recorded(self) -> set[Measure]:
        """What is stored in the records of clips. Of older thresholds it is not: clips made before would lack it."""
        compared = {"motion", "sharpness", "clipped", "logo"}
        return {name for name in THRESHOLDS if name in self.measures or (name in compared and self.needs(name))}


class ModelsConfig(Settings):
    """Models that look at each clip that passed the filters: at its first, middle and last frame.

    They run on the GPUs of the cluster, or in one process on the CPU if it has none. Their scores are stored in the
    record of the clip.
    """

    captioner: Annotated[Path | None, Runtime] = None
    """Folder of a model that writes the captions (BLIP, GIT or an encoder-decoder of transformers).

    Its caption of the middle frame takes the place of the one that was given.
    """
    max_caption_tokens: int = Field(default=48, ge=1, le=1024)
    """Longest caption that the captioner writes, in its tokens."""
    aesthetic: Annotated[Path | None, Runtime] = None
    """TorchScript file that scores pictures, RGB in [0, 1] of shape (b 3 s s), with one number each."""
    aesthetic_pixels: int = Field(default=224, ge=1)
    """Side of the pictures that `aesthetic` is shown, in pixels."""
    min_aesthetic: float | None = None
    """Clips are left out whose mean aesthetic score is less."""
    similarity: Annotated[Path | None, Runtime] = None
    """Folder of a CLIP model that compares the frames with the caption, by the cosine of their embeddings."""
    min_similarity: float | None = Field(default=None, ge=-1, le=1)
    """Clips are left out whose mean similarity to their caption is less."""
    batch_size: Annotated[int, Runtime] = Field(default=16, ge=1)
    """Largest number of clips that are judged at once."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for threshold, model in (("min_aesthetic", "aesthetic"), ("min_similarity", "similarity")):
            if getattr(self, threshold) is not None and getattr(self, model) is None:
                raise ValueError(f"{threshold} is given without {model}; name the model, or leave the threshold out")
        return self

    @property
    def paths(self) -> list[Path]:
        """The models that are used."""
        return [path for path in (self.captioner, self.aesthetic, self.similarity) if path is not None]


THRESHOLDS: dict[Measure, tuple[str, ...]] = {
    "brightness": ("black_luma",),
    "change": ("static_difference",),
    "bars": ("letter_boxed_share",),
    "text": ("text_fraction",),
    "motion": ("min_motion", "max_motion"),
    "sharpness": ("min_sharpness",),
    "clipped": ("max_clipped_share",),
    "logo": ("max_logo_share",),
}
"""The settings that compare each measure with a threshold."""

SceneDetection = Literal["off", "content", "transitions"]
