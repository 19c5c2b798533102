"""One source becomes clips: caption, decode, cut, filter, encode. Plain functions that a worker runs.

What becomes of a source is a report, which is small and comes back, and clips, which stay where they were
made until their shard is written (`pipeline/shard.py`).
"""

from dataclasses import dataclass
from errno import ENOSPC
from functools import partial
from typing import get_args

from data.curation.captions import CaptionError, caption_of, clean_caption
from data.curation.filters import Duplicates, failed_filter, perceptual_hash
from data.curation.ledger import Filter, Rejection, reject
from data.curation.scenes import find_cuts
from data.curation.sources import Source, local_copy
from data.curation.text_area import text_fraction
from data.dataset.buckets import Bucket, SourceShape
from data.dataset.clip import ClipRecord, clip_key, split_of
from data.errors import VideoError
from data.records import Record
from data.video.augment import AS_IT_IS
from data.video.codec import encode_clip
from data.video.extract import measure_source, read_spans
from pipeline.ingest.config import ShardConfig
from pipeline.run.fingerprints import fingerprint, output_json


class PreparedClip(Record):
    """A clip on its way into a shard."""

    key: str
    start_seconds: float
    perceptual_hash: str | None = None  # hexadecimal, where duplicates are looked for; None for augmented clips


class SourceReport(Record):
    """What became of one source."""

    source: str
    clips: list[PreparedClip] = []  # in the shard
    filtered: list[Rejection] = []  # its clips, or itself, left out on purpose
    quarantined: Rejection | None = None


Clips = list[tuple[ClipRecord, bytes]]


@dataclass(frozen=True)
class CutConfig:
    """What a worker needs to know to cut a source."""

    buckets: tuple[Bucket, ...]
    table: dict[str, str]  # captions
    config: ShardConfig

    def fingerprint(self) -> str:
        """Changes with anything that changes a clip."""
        settings = output_json(self.config, layout=False, exclude=("buckets", "choose_buckets", "captions"))
        return fingerprint([sorted(bucket.name for bucket in self.buckets), sorted(self.table.items()), settings])


def prepare_source(cut: CutConfig, source: Source) -> tuple[SourceReport, Clips]:
    """Cut one video into clips. Never raises for a bad video: reports why there are none."""
    config = cut.config
    quarantine = partial(reject, source.name)
    split = split_of(source.file, config.validation_fraction)
    try:
        given = source.caption
        caption = caption_of(source.root, source.file, cut.table) if given is None else clean_caption(given)
        with local_copy(source) as path:
            spans = read_spans(
                path,
                cut.buckets,
                config.max_clips_per_video,
                stretch=source.stretch,
                min_side_pixels=config.filters.too_small_pixels or 1,
                find_cuts=find_cuts if config.scene_detection == "content" else None,
                text_fraction=text_fraction if config.filters.text_fraction is not None else None,
                augment=config.augment if split == "train" else AS_IT_IS,
            )
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
        if error.errno == ENOSPC:  # of this machine, not of the source
            raise
        detail = f"it cannot be read: {error.strerror}"
        return SourceReport(source=source.name, quarantined=quarantine("read", "unreadable", detail)), []
    clips, prepared, filtered = [], [], {}
    for span in spans:  # augmented clips stay or go with the one they are made from
        failed = failed_filter(span.frames, config.filters, span.text_fraction) if not span.variant else None
        if failed is not None:
            filtered[span.start_seconds] = quarantine("filter", *failed, start_seconds=span.start_seconds)
    for span in spans:
        if span.start_seconds in filtered:
            continue
        record = ClipRecord(
            key=clip_key(source.name, span.start_seconds, span.bucket, span.variant),
            source=source.name,
            start_seconds=span.start_seconds,
            caption=caption,
            dataset=source.dataset,
            split=split,
            decoder=span.decoder,
            variant=span.variant,
            num_frames=span.bucket.num_frames,
            height=span.bucket.height,
            width=span.bucket.width,
            fps=span.bucket.fps,
            source_height=span.source_height,
            source_width=span.source_width,
        )
        clips.append((record, encode_clip(span.frames, span.bucket.fps)))
        is_compared = config.filters.duplicate_bits is not None and not span.variant
        digits = f"{perceptual_hash(span.frames):x}" if is_compared else None
        prepared.append(PreparedClip(key=record.key, start_seconds=span.start_seconds, perceptual_hash=digits))
    return SourceReport(source=source.name, clips=prepared, filtered=list(filtered.values())), clips


def drop_duplicates(report: SourceReport, seen: Duplicates) -> SourceReport:
    """The report of a source without the clips that duplicate an earlier one; `seen` learns those that stay."""
    dropped: dict[float, Rejection] = {}  # by the start of the span
    for clip in report.clips:
        if clip.perceptual_hash is None:
            continue
        value = int(clip.perceptual_hash, 16)
        original = seen.find(value)
        if original is None:
            seen.keep(value, report.source)
        else:
            detail = f"it looks like a clip of {original}"
            start = clip.start_seconds
            dropped[start] = reject(report.source, "filter", "duplicate", detail, start)
    kept = [clip for clip in report.clips if clip.start_seconds not in dropped]
    return report.model_copy(update={"clips": kept, "filtered": [*report.filtered, *dropped.values()]})


def measure(source: Source) -> tuple[SourceShape | None, None]:
    """What a source offers; None where that cannot be told, which its turn to be cut will explain."""
    try:
        with local_copy(source) as path:
            return measure_source(path, source.stretch), None
    except VideoError:
        return None, None
    except OSError as error:
        if error.errno == ENOSPC:
            raise
        return None, None
