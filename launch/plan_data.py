"""What a plan says of the data: which clips the buckets keep, and how large their latents are."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from data.curation.ledger import FILTERS
from data.curation.source import Source, SourceError, local_copy
from data.curation.sources import list_sources
from data.dataset.buckets import Bucket, bucket_for
from data.dataset.compression import Compression
from data.dataset.manifest import MANIFEST_NAME, Manifest, read_manifest
from data.errors import VideoError
from data.video.extract import measure_source
from launch.config import RunConfig
from pipeline.ingest.config import SYNTHETIC, DataConfig

MAX_PROBED = 64
TOO_SHORT, UNREADABLE = "too short for every bucket", "unreadable"


@dataclass(frozen=True)
class BucketPlan:
    """One shape of clips."""

    bucket: str
    tokens: int
    """Of a clip, in the diffusion transformer."""
    latent_bytes: int
    """Of a clip: float32 values, and the caption's embedding."""
    num_clips: int | None
    """None: not known before the clips are cut."""


@dataclass(frozen=True)
class DataPlan:
    """The clips of a run."""

    buckets: tuple[BucketPlan, ...]
    num_clips: int | None
    counted: str
    """Where the number of clips is from."""
    latent_bytes: int | None
    kept: dict[str, int]
    """Videos or clips by bucket."""
    dropped: dict[str, int]
    """Videos or clips that are left out, by reason."""
    examined: str
    """What `kept` and `dropped` count; empty where nothing was looked at."""


def finished_clips(config: RunConfig) -> Manifest | None:
    """The manifest of the run's clips, if they have been made."""
    clips_dir = config.run_dir / "clips"
    return read_manifest(clips_dir) if (clips_dir / MANIFEST_NAME).is_file() else None


def plan_data(
    config: RunConfig,
    buckets: Iterable[Bucket],
    *,
    channels: int,
    compression: Compression,
    text_width: int | None,
    num_clips: int | None = None,
) -> DataPlan:
    """Sizes of the data, from the clips of the run if they have been made, otherwise from a look at the videos.

    Args:
        channels: of the latents.
        text_width: of a caption's embeddings; None: there are none.
        num_clips: as the user expects it; None: as counted.

    Raises:
        SourceError: the videos cannot be listed here, and no number of clips is given.
    """
    buckets, manifest, text = list(buckets), finished_clips(config), config.encode.text
    text_bytes = 0 if text is None or text_width is None else 2 * text.max_tokens * text_width
    by_name = {} if manifest is None else {record.bucket.name: record.num_samples for record in manifest.buckets}
    rows = tuple(
        BucketPlan(
            bucket.name,
            config.dit.model.num_tokens(bucket.latent_grid(compression)),
            4 * channels * prod(bucket.latent_grid(compression)) + text_bytes,
            by_name.get(bucket.name),
        )
        for bucket in buckets
    )
    unseen = ""
    if manifest is not None:
        kept, dropped = by_name, {str(reason): number for reason, number in manifest.filtered.items()}
        examined, counted, total = "clips of the run", "the run's clips", manifest.num_samples
        if manifest.ledger is not None and (failed := manifest.ledger.quarantine):
            dropped |= {"videos in quarantine": failed}
    else:
        try:
            kept, dropped, examined = _look(config, buckets)
        except SourceError as error:  # the cluster may have what this machine has not
            if num_clips is None:
                raise
            kept, dropped, examined, unseen = {}, {}, "", f"; no video was looked at: {error}"
        counted, total = _expected(config)
    if num_clips is not None:
        counted, total = f"given{unseen}", num_clips
    return DataPlan(rows, total, counted, _all_latents(rows, total, kept), kept, dropped, examined)


def _all_latents(rows: tuple[BucketPlan, ...], total: int | None, kept: dict[str, int]) -> int | None:
    """Bytes of all latents, with the clips spread over the buckets as `kept` says, or else evenly."""
    if total is None or not rows:
        return None
    weights = [kept.get(row.bucket, 0) for row in rows]
    weights = weights if any(weights) else [1] * len(rows)
    return round(sum(w * row.latent_bytes for w, row in zip(weights, rows, strict=True)) / sum(weights) * total)


def _expected(config: RunConfig) -> tuple[str, int | None]:
    data = config.data
    if data.mix or data.source != SYNTHETIC or data.max_clips_per_video is None:
        return "unknown before stage shard: give --clips", None
    return "at most, of synthetic videos", data.synthetic.num_videos * data.max_clips_per_video


def _look(config: RunConfig, buckets: list[Bucket]) -> tuple[dict[str, int], dict[str, int], str]:
    """Which bucket an even choice of the videos would go to, by size and length."""
    places = [part.source for part in config.data.mix.values()] or [config.data.source]
    kept, dropped, number, total = Counter[str](), Counter[str](), 0, 0
    for place in places:
        if place == SYNTHETIC or "://" in place:
            continue
        sources = list_sources(place, config.data.suffixes)
        total += len(sources)
        local = [source for source in sources if "://" not in source.path]  # nothing is downloaded for a plan
        for source in local[:: max(1, -(-len(local) // MAX_PROBED))]:
            number += 1
            bucket = _bucket_of(source, config.data, buckets)
            if isinstance(bucket, Bucket):
                kept[bucket.name] += 1
            else:
                dropped[bucket] += 1
    return dict(kept), dict(dropped), f"{number} of {total} videos, before scenes and filters" if number else ""


def _bucket_of(source: Source, data: DataConfig, buckets: list[Bucket]) -> Bucket | str:
    """The bucket of a video or an image, or why it has none."""
    max_pixels, crops_bars = data.filters.too_large_pixels, data.letter_box == "crop"
    try:
        with local_copy(source) as path:
            shape = measure_source(path, source.stretch, max_pixels, crops_bars)
    except OSError:
        return UNREADABLE
    except VideoError as error:
        return error.reason if error.reason in FILTERS else UNREADABLE
    return bucket_for(shape, buckets) or TOO_SHORT
