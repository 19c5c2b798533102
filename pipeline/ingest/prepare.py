"""From a source to its clips: caption, decode, cut, filter, encode. Plain functions that run in a worker.

The result is a report, which is small and returned to the driver, and the clips, which stay in the worker's object
store until their shard is written (`pipeline/ingest/shard.py`).
"""

from dataclasses import dataclass
from errno import ENOSPC
from functools import cached_property, partial
from typing import get_args

from pydantic import Field

from data.curation.caption_text import CaptionError, clean_caption
from data.curation.captions import caption_of
from data.curation.filters import failed_filter, perceptual_hash
from data.curation.ledger import Filter, Rejection, reject
from data.curation.scenes import find_cuts
from data.curation.sources import Source, content_of, local_copy
from data.curation.text_area import text_fraction
from data.dataset.buckets import Bucket, SourceShape
from data.dataset.clip import ClipRecord, clip_key, split_of
from data.errors import VideoError
from data.records import Record
from data.video.augment import AS_IT_IS
from data.video.codec import encode_clip
from data.video.extract import Span, measure_source, read_spans
from pipeline.ingest.config import ShardConfig
from pipeline.run.fingerprints import fingerprint, output_json


class PreparedClip(Record):
    """A clip that has been made and is not yet in a shard."""

    key: str
    start_seconds: float
    perceptual_hash: str | None = None  # hexadecimal; None if duplicates are not looked for, or the clip is augmented


class Origin(Record):
    """What a report was made from; it stands while the present source, settings and file are the same."""

    cut: str  # fingerprint of the source's name and span, and of the settings that decide its clips
    stamp: str  # size and modification time of the file when it was listed
    content: str | None = None  # SHA-256 of the file; None: not known


class SourceReport(Record):
    """What became of a source."""

    source: str
    origin: Origin | None = None  # None: made by an older version
    clips: list[PreparedClip] = Field(default=[])  # for the shard
    filtered: list[Rejection] = Field(default=[])  # clips, or the whole source, that were left out on purpose
    quarantined: Rejection | None = None


Clips = list[tuple[ClipRecord, bytes]]


@dataclass(frozen=True)
class PrepareConfig:
    """What a worker needs to know to prepare a source."""

    buckets: tuple[Bucket, ...]
    captions: dict[str, str]  # caption by path of the video (`read_caption_table`)
    settings: ShardConfig
    shared_names: frozenset[str] = frozenset()  # that alone mean no video in `captions` (`match_table`)

    @cached_property
    def cut(self) -> str:
        """Changes with every setting that decides the clips of a source; not with captions, nor with duplicates."""
        excluded = ("buckets", "choose_buckets", "captions", "filters.duplicate_bits")
        settings = output_json(self.settings, layout=False, exclude=excluded)
        return fingerprint([sorted(bucket.name for bucket in self.buckets), settings])

    def origin(self, source: Source) -> Origin:
        """What a report of this source would be made from now, but for the content of its file."""
        stretch = [source.stretch.start_seconds, source.stretch.end_seconds]
        cut = fingerprint([self.cut, source.name, source.file, source.dataset, *stretch])
        return Origin(cut=cut, stamp=source.file_stamp)

    def fingerprint(self) -> str:
        """As older versions stored it, of everything that changes a clip: captions too."""
        settings = output_json(self.settings, layout=False, exclude=("buckets", "choose_buckets", "captions"))
        inputs = [sorted(bucket.name for bucket in self.buckets), sorted(self.captions.items()), settings]
        return fingerprint([*inputs, sorted(self.shared_names)] if self.shared_names else inputs)


def prepare_with_origin(config: PrepareConfig, source: Source) -> tuple[SourceReport, Clips]:
    """`prepare_source`, and what the report was made from.

    The file is read a second time for its checksum, mostly from memory; one that gave no clips is not.
    """
    report, clips = prepare_source(config, source)
    origin = config.origin(source)
    if report.quarantined is None:
        origin = origin.model_copy(update={"content": content_of(source)})
    return report.model_copy(update={"origin": origin}), clips


def prepare_source(config: PrepareConfig, source: Source) -> tuple[SourceReport, Clips]:
    """Make the clips of one video.

    A video that cannot be used raises nothing: the report says why it has no clips.

    Raises:
        OSError: the disk of this machine is full.
    """
    quarantine = partial(reject, source.name)
    try:
        caption, spans = _read_source(config, source)
    except CaptionError as error:
        return SourceReport(source=source.name, quarantined=quarantine("caption", "bad_caption", str(error))), []
    except VideoError as error:
        if error.reason in get_args(Filter):
            return SourceReport(source=source.name, filtered=[quarantine("filter", error.reason, str(error))]), []
        return SourceReport(source=source.name, quarantined=quarantine("decode", error.reason, str(error))), []
    except FileNotFoundError:
        gone = f"{source.path} is gone" if "://" in source.path else "the file is gone"
        return SourceReport(source=source.name, quarantined=quarantine("read", "missing", gone)), []
    except OSError as error:
        if error.errno == ENOSPC:  # a fault of this machine, not of the source
            raise
        detail = f"it cannot be read: {error.strerror}"
        return SourceReport(source=source.name, quarantined=quarantine("read", "unreadable", detail)), []
    filtered: dict[float, Rejection] = {}  # by the start of the span
    for span in spans:  # augmented clips are kept or left out together with the clip they are made from
        failed = failed_filter(span.frames, config.settings.filters, span.text_fraction) if not span.variant else None
        if failed is not None:
            filtered[span.start_seconds] = quarantine("filter", *failed, start_seconds=span.start_seconds)
    clips, prepared = [], []
    for span in spans:
        if span.start_seconds in filtered:
            continue
        record = _clip_record(config, source, span, caption)
        clips.append((record, encode_clip(span.frames, span.bucket.fps)))
        is_compared = config.settings.filters.duplicate_bits is not None and not span.variant
        digits = f"{perceptual_hash(span.frames):x}" if is_compared else None
        prepared.append(PreparedClip(key=record.key, start_seconds=span.start_seconds, perceptual_hash=digits))
    return SourceReport(source=source.name, clips=prepared, filtered=list(filtered.values())), clips


def present_caption(config: PrepareConfig, source: Source) -> str:
    """The caption of a source.

    Raises:
        CaptionError: it cannot be used.
    """
    if source.caption is not None:
        return clean_caption(source.caption)
    return caption_of(source.root, source.file, config.captions, config.shared_names, source.path)


def _read_source(config: PrepareConfig, source: Source) -> tuple[str, list[Span]]:
    """The caption of a source and its decoded spans."""
    settings, caption = config.settings, present_caption(config, source)
    is_augmented = split_of(source.file, settings.validation_fraction) == "train"
    with local_copy(source) as path:
        spans = read_spans(
            path,
            config.buckets,
            settings.max_clips_per_video,
            stretch=source.stretch,
            min_side_pixels=settings.filters.too_small_pixels or 1,
            find_cuts=find_cuts if settings.scene_detection == "content" else None,
            text_fraction=text_fraction if settings.filters.text_fraction is not None else None,
            augment=settings.augment if is_augmented else AS_IT_IS,
        )
    return caption, spans


def _clip_record(config: PrepareConfig, source: Source, span: Span, caption: str) -> ClipRecord:
    return ClipRecord(
        key=clip_key(source.name, span.start_seconds, span.bucket, span.variant),
        source=source.name,
        start_seconds=span.start_seconds,
        caption=caption,
        dataset=source.dataset,
        split=split_of(source.file, config.settings.validation_fraction),
        decoder=span.decoder,
        variant=span.variant,
        num_frames=span.bucket.num_frames,
        height=span.bucket.height,
        width=span.bucket.width,
        fps=span.bucket.fps,
        source_height=span.source_height,
        source_width=span.source_width,
    )


def measure(source: Source) -> tuple[SourceShape | None, None]:
    """Size and duration of a source; None if it cannot be read, for which `prepare_source` reports the reason."""
    try:
        with local_copy(source) as path:
            return measure_source(path, source.stretch), None
    except VideoError:
        return None, None
    except OSError as error:
        if error.errno == ENOSPC:
            raise
        return None, None
