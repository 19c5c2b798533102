"""Settings of ingestion: drawing and sharding."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from data.curation.config import FilterConfig, SceneDetection
from data.dataset.buckets import Bucket, BucketChoice
from data.records import Settings
from data.video.augment import AugmentConfig
from data.video.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES

_PACING = {"decode_timeout_seconds", "videos_per_shard"}  # change no clip


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
    videos_per_shard: int = Field(default=256, ge=1)
    """TODO"""
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    """TODO"""
    scene_detection: SceneDetection = "off"
    """Content: no clip reaches across a scene cut; needs PySceneDetect."""
    augment: AugmentConfig = AugmentConfig()
    """TODO"""
    filters: FilterConfig = FilterConfig()
    """TODO"""
    decode_timeout_seconds: float = Field(default=120, gt=0)
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
