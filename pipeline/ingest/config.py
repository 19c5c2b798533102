"""Settings of ingestion: drawing and sharding."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from data.curation.config import FilterConfig, SceneDetection
from data.dataset.buckets import Bucket, BucketChoice
from data.records import Layout, Runtime, Settings
from data.video.augment import AugmentConfig
from data.video.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES


class ShardConfig(Settings):
    """How videos are cut into clips."""

    buckets: tuple[Bucket, ...] = (Bucket(),)
    """TODO"""
    choose_buckets: BucketChoice | None = None
    """From the sources, instead of `buckets`."""
    captions: Path | None = None
    """A CSV, JSONL or JSON table; None: sidecar files, then folder names."""
    max_clips_per_video: int = Field(default=4, ge=1)
    """TODO"""
    videos_per_shard: Annotated[int, Layout] = Field(default=256, ge=1)
    """TODO"""
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    """TODO"""
    scene_detection: SceneDetection = "off"
    """Content: no clip reaches across a scene cut; needs PySceneDetect."""
    augment: AugmentConfig = AugmentConfig()
    """TODO"""
    filters: FilterConfig = FilterConfig()
    """TODO"""
    decode_timeout_seconds: Annotated[float, Runtime] = Field(default=120, gt=0)
    """For one video; then its process is killed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.buckets:
            raise ValueError("buckets is empty; give at least one, or choose_buckets")
        names = [bucket.name for bucket in self.buckets]
        if len(set(names)) < len(names):
            raise ValueError(f"buckets names {max(names, key=names.count)} twice; name each shape once")
        if self.choose_buckets is not None and self.buckets != (Bucket(),):
            raise ValueError("choose_buckets stands beside buckets; keep one of them")
        return self

    @property
    def suffixes(self) -> frozenset[str]:
        """What source folders are searched for: images too where a bucket takes them."""
        lengths = self.choose_buckets.num_frames if self.choose_buckets else [b.num_frames for b in self.buckets]
        return VIDEO_SUFFIXES | IMAGE_SUFFIXES if 1 in lengths else VIDEO_SUFFIXES


class SyntheticConfig(Settings):
    """The world of moving shapes."""

    num_videos: int = Field(default=1440, ge=8)
    """TODO"""
    pixels: int = Field(default=96, ge=32, multiple_of=2)
    """TODO"""
    fps: float = Field(default=16.0, gt=0)
    """TODO"""
    seconds: float = Field(default=2.25, gt=0)
    """TODO"""


SYNTHETIC = "synthetic"


DatasetName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class MixPart(Settings):
    """One dataset of a mix."""

    source: str
    """TODO"""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """How often each of its clips is seen, beside those of weight 1."""


class DataConfig(ShardConfig):
    """Where videos come from and how they are cut."""

    source: str = SYNTHETIC
    """"synthetic", or a folder, glob, table or URI of videos: see data/sources.py."""
    mix: dict[DatasetName, MixPart] = Field(default={})
    """Several datasets, instead of `source`."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """TODO"""

    @model_validator(mode="after")
    def _check_mix(self) -> Self:
        if self.mix and self.source != SYNTHETIC:
            raise ValueError(f"mix stands beside source ({self.source}); keep one of them")
        return self

    def shard(self) -> ShardConfig:
        """The part the shard stage needs."""
        return ShardConfig(**self.model_dump(exclude={"source", "mix", "synthetic"}))

    @property
    def places(self) -> dict[str, str]:
        """Where videos come from, by the name of the dataset; nameless where there is no mix."""
        return {name: part.source for name, part in self.mix.items()} or {"": self.source}

    @property
    def weights(self) -> tuple[tuple[str, float], ...]:
        """How often each sample is seen, by the name of its dataset."""
        return tuple((name, part.weight) for name, part in sorted(self.mix.items()))

    @property
    def is_synthetic(self) -> bool:
        """The videos are drawn, so what they show is known."""
        return set(self.places.values()) == {SYNTHETIC}
