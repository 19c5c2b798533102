"""Settings of ingestion: synthetic videos, the sources, and how clips are cut from them."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from data.curation.config import FilterConfig, ModelsConfig, SceneDetection
from data.dataset.buckets import Bucket, BucketChoice
from data.files.locations import Place
from data.records import AddedLater, Layout, Runtime, Settings
from data.video.augment import AugmentConfig
from data.video.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES, HdrHandling
from data.video.spans import Placement

# Part of the fingerprints of shards: it changes where the same settings give other pixels, so that one dataset never
# has clips of both kinds. A stage that is finished stays so. 2: frames are scaled while they are converted to RGB
# (before, by Pillow afterwards), and PyAV comes before decord; HD without a tag is BT.709.
PIXELS_VERSION = 2
# The same of shards with `scene_detection: transitions`. 2: cross-fades between scenes that move fast are found.
TRANSITIONS_VERSION = 2


class ShardConfig(Settings):
    """How clips are cut from videos."""

    buckets: tuple[Bucket, ...] = (Bucket(),)
    """Shapes of clips. Each scene is cut for the shape it is long enough for that crops it least."""
    choose_buckets: BucketChoice | None = None
    """Choose the shapes from the aspect ratios of the sources, instead of `buckets`; None uses `buckets`."""
    captions: Path | None = None
    """Table of captions (.csv, .tsv, .jsonl, .json or .parquet) with a file column and a caption column.

    Videos that it does not list, and all of them if it is None, take their caption from a .txt or .json file beside the
    video, otherwise from the name of their folder.
    """
    max_clips_per_video: int | None = Field(default=4, ge=1)
    """Largest number of clips cut from one video; augmented copies are not counted. None cuts every clip that fits."""
    clip_placement: Annotated[Placement, AddedLater("start")] = "even"
    """Which clips are cut from a video that has more than `max_clips_per_video`.

    `even` takes the middle one of each of so many equal parts of the video, `random` one drawn from each part by the
    name of the video, `scenes` as many of each scene as of any other (needs `scene_detection`), and `start` the first
    ones, which are often titles.
    """
    videos_per_shard: Annotated[int, Layout] = Field(default=256, ge=1)
    """Largest number of videos whose clips form one shard; most shards have more than half as many.

    Which shard a video belongs to is decided by a hash of its name, so one video more or less changes one shard.
    Finished shards are kept after an interruption.
    """
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Expected share of the videos whose clips are held out for validation, chosen by a hash of the video's name."""
    scene_detection: SceneDetection = "off"
    """How scenes are told apart, so that no clip spans two: `transitions`, `content` or `off`.

    `transitions` finds hard cuts, fades through one colour such as black, and cross-fades, and ignores flashes;
    `content` finds hard cuts with PySceneDetect (the extra `scenes`); `off` does not look for scenes.
    """
    hdr: Annotated[HdrHandling, AddedLater("as_sdr")] = "as_sdr"
    """Videos of high dynamic range (PQ, HLG): `tone_map` shows them as BT.709, `drop` leaves them out.

    `as_sdr` takes their code values for ordinary ones, which shows them pale.
    """
    letter_box: Annotated[Literal["keep", "crop"], AddedLater("keep")] = "keep"
    """`crop` cuts black bars off the edges of each video, before its shape is chosen; `keep` leaves them."""
    augment: AugmentConfig = AugmentConfig()
    """Mirrored and shifted copies of the clips of the training split."""
    filters: FilterConfig = FilterConfig()
    """Thresholds beyond which videos and clips are left out on purpose."""
    models: Annotated[ModelsConfig, AddedLater(ModelsConfig())] = ModelsConfig()
    """Models from files on this machine that write captions or score clips; none is used by default."""
    decode_timeout_seconds: Annotated[float, Runtime] = Field(default=120, gt=0)
    """Seconds that a video may take to be opened and then from one frame to the next, and in all if it is short.

    After that, its process is killed and the video is quarantined.
    """
    decode_seconds_per_minute: Annotated[float, Runtime] = Field(default=120, ge=0)
    """Seconds added to what a video may take in all, for each minute that it lasts. A frame counts as a second at most.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.buckets:
            raise ValueError("buckets is empty; give at least one, or choose_buckets")
        names = [bucket.name for bucket in self.buckets]
        if len(set(names)) < len(names):
            raise ValueError(f"buckets names {max(names, key=names.count)} twice; name each shape once")
        if self.clip_placement == "scenes" and self.scene_detection == "off":
            raise ValueError("clip_placement is scenes, but scene_detection is off; set it to content")
        if self.choose_buckets is not None and self.buckets != (Bucket(),):
            raise ValueError("both choose_buckets and buckets are given; keep one of them")
        return self

    @property
    def suffixes(self) -> frozenset[str]:
        """File suffixes that source folders are searched for: those of images only if a bucket has one frame."""
        lengths = self.choose_buckets.num_frames if self.choose_buckets else [b.num_frames for b in self.buckets]
        return VIDEO_SUFFIXES | IMAGE_SUFFIXES if 1 in lengths else VIDEO_SUFFIXES


class SyntheticConfig(Settings):
    """The synthetic videos: captioned clips of one moving shape."""

    num_videos: int = Field(default=1440, ge=8)
    """Number of videos to draw."""
    pixels: int = Field(default=96, ge=32, multiple_of=2)
    """Height and width of the videos in pixels."""
    fps: float = Field(default=16.0, gt=0)
    """Frames per second of the videos."""
    seconds: float = Field(default=2.25, gt=0)
    """Duration of each video in seconds."""
    captions: Annotated[Literal["templates", "varied"], AddedLater("templates")] = "templates"
    """How the videos are described: `templates` in seven sentences, `varied` in many wordings, with other words for
    colours, shapes and directions, parts left out, and typing errors.
    """


SYNTHETIC = "synthetic"


DatasetName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class MixPart(Settings):
    """One dataset of a mix."""

    source: Place
    """`synthetic`, or a folder, glob, table or URI of videos."""
    weight: float = Field(default=1.0, gt=0, le=1000)
    """How often each clip of this dataset is seen, relative to a clip of a dataset of weight 1."""


class DataConfig(ShardConfig):
    """Where videos come from and how clips are cut from them."""

    source: Place = SYNTHETIC
    """`synthetic`, or a folder, glob, table (.csv, .tsv, .jsonl, .json or .parquet) or URI (s3, gs, az, file) of
    videos."""
    mix: dict[DatasetName, MixPart] = Field(default={})
    """Several datasets by name, instead of `source`; empty uses `source`."""
    synthetic: SyntheticConfig = SyntheticConfig()
    """The synthetic videos, drawn where a source is `synthetic`."""

    @model_validator(mode="after")
    def _check_mix(self) -> Self:
        if self.mix and self.source != SYNTHETIC:
            raise ValueError(f"both mix and source ({self.source}) are given; keep one of them")
        return self

    def shard(self) -> ShardConfig:
        """The part that the shard stage needs."""
        return ShardConfig(**self.model_dump(exclude={"source", "mix", "synthetic"}))

    @property
    def places(self) -> dict[str, str]:
        """Sources by the name of their dataset; the name is empty where there is no mix."""
        return {name: part.source for name, part in self.mix.items()} or {"": self.source}

    @property
    def weights(self) -> tuple[tuple[str, float], ...]:
        """Weights by the name of the dataset, sorted by name; empty where there is no mix."""
        return tuple((name, part.weight) for name, part in sorted(self.mix.items()))

    @property
    def is_synthetic(self) -> bool:
        """Whether all videos are synthetic, so that what they show is known."""
        return set(self.places.values()) == {SYNTHETIC}
