"""From a source to its clips: caption, decode, cut, filter, encode. Plain functions that run in a worker.

Each span of a video is filtered and encoded as soon as it is decoded (`_make_clips`), so that only one is in memory.
The result is a report, which is small and returned to the driver, and the clips, which stay in the worker's object
store, or in a file if they are many, until their shard is written (`pipeline/ingest/shard.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from errno import ENOSPC
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from typing import Any

from data.curation.caption_text import CaptionError, clean_caption
from data.curation.captions import caption_of
from data.curation.config import FilterConfig
from data.curation.filters import perceptual_hash
from data.curation.ledger import FILTERS, reject
from data.curation.lookalikes import describe
from data.curation.measures import measure_clip
from data.curation.scenes import SCENE_FINDERS
from data.curation.sidecars import sidecars
from data.curation.source import Source, content_of, local_copy
from data.curation.text_area import text_fraction
from data.dataset.buckets import Bucket, SourceShape
from data.dataset.clip import ClipRecord, clip_key, split_of
from data.errors import VideoError
from data.video.augment import AS_IT_IS
from data.video.codec import encode_clip
from data.video.extract import CutConfig, Progress, Span, cut_file, measure_source
from pipeline.distributed.isolated_worker import allow_until
from pipeline.ingest.config import PIXELS_VERSION, TRANSITIONS_VERSION, ShardConfig
from pipeline.ingest.judge import Judge, model_fingerprints
from pipeline.ingest.reports import Origin, PreparedClip, SourceReport, StoredReport
from pipeline.ingest.spool import Clips, ClipSpool, SpoolError
from pipeline.ingest.thresholds import (
    ALL_THRESHOLDS,
    MeasuredSpan,
    failed_threshold,
    stored_measures,
    what_is_measured,
)
from pipeline.run.fingerprints import canonical_json, fingerprint, fingerprint_of_encoded, output_json
from pipeline.run.shared_files import SHARED, RunFiles


@dataclass(frozen=True)
class PrepareConfig:
    """What a worker needs to know to prepare a source."""

    buckets: tuple[Bucket, ...]
    captions: dict[str, str]  # caption by path of the video (`read_caption_table`)
    settings: ShardConfig
    shared_names: frozenset[str] = frozenset()  # that alone mean no video in `captions` (`match_table`)
    spool_dir: Path | None = None  # where the clips of a long video are stored until their shard is written
    judge: Judge | None = None  # asks the models of `settings.models`; None: there are none
    files: RunFiles = SHARED  # of the run

    @cached_property
    def cut(self) -> str:
        """Changes with every setting that decides the clips of a source; not with captions, nor with duplicates."""
        return fingerprint(self._cutting())

    @cached_property
    def basis(self) -> str:
        """`cut` without the values of thresholds, but with what they have measured: in reports of older versions."""
        cutting = self._cutting(*(threshold.setting for threshold in ALL_THRESHOLDS))
        return fingerprint([what_is_measured(self.settings.filters), *cutting])

    @cached_property
    def spans(self) -> str:
        """`cut` without the thresholds and without what is measured: it decides which spans there are."""
        return fingerprint(self._cutting(*(threshold.setting for threshold in ALL_THRESHOLDS), "filters.measures"))

    def _cutting(self, *excluded: str) -> list[Any]:
        """What decides the clips of a source, without the settings that are named."""
        excluded = ("buckets", "choose_buckets", "captions", "filters.duplicate_bits", *excluded)
        settings = output_json(self.settings, layout=False, exclude=excluded)
        models = model_fingerprints(self.settings.models)
        found_by = [TRANSITIONS_VERSION] if self.settings.scene_detection == "transitions" else []
        return [sorted(bucket.name for bucket in self.buckets), settings, PIXELS_VERSION, *found_by, *models]

    @cached_property
    def _encoded(self) -> tuple[str, str]:
        """`cut` and `spans` as JSON."""
        return canonical_json(self.cut), canonical_json(self.spans)

    @cached_property
    def augments(self) -> bool:
        """Whether videos of the training split give further clips."""
        return self.settings.augment != AS_IT_IS

    @cached_property
    def measures_text(self) -> bool:
        """Whether the share of text is measured."""
        return self.settings.filters.needs("text")

    @cached_property
    def stored(self) -> str:
        """The names of the measures that the records of clips have."""
        return " ".join(sorted(self.settings.filters.recorded))

    def origin(self, source: Source, content: str | None = None) -> Origin:
        """What a report of this source would be made from now, with the checksum of its file where that is known."""
        inputs = canonical_json(self._inputs(source))[1:-1]  # once for both fingerprints, of [setting, *inputs]
        cut, spans = (fingerprint_of_encoded([setting, inputs]) for setting in self._encoded)
        return Origin(cut=cut, spans=spans, stored=self.stored, stamp=source.file_stamp, content=content)

    def basis_of(self, source: Source) -> str:
        """What an older version's `Origin.basis` would be now."""
        return fingerprint([self.basis, *self._inputs(source)])

    def _inputs(self, source: Source) -> list[Any]:
        stretch = [source.stretch.start_seconds, source.stretch.end_seconds]
        inputs = [source.name, source.file, source.dataset, *stretch]
        # Models are shown the caption.
        return [*inputs, _caption_or_problem(self, source)] if self.settings.models.paths else inputs

    def fingerprint(self) -> str:
        """As older versions stored it, of everything that changes a clip: captions too."""
        settings = output_json(self.settings, layout=False, exclude=("buckets", "choose_buckets", "captions"))
        inputs = [
            sorted(bucket.name for bucket in self.buckets),
            sorted(self.captions.items()),
            settings,
            PIXELS_VERSION,
            *model_fingerprints(self.settings.models),
        ]
        return fingerprint([*inputs, sorted(self.shared_names)] if self.shared_names else inputs)


@dataclass(frozen=True)
class Prepared:
    """What became of a source, before it is said what that was made from."""

    report: SourceReport
    content: str | None  # SHA-256 of its file; None: not known


def prepare_with_origin(config: PrepareConfig, source: Source) -> tuple[StoredReport, Clips]:
    """`prepare_and_hash` and `stored_reports` of one source."""
    prepared, clips = prepare_and_hash(config, source)
    return stored_reports(config, [source], [prepared])[0], clips


def prepare_and_hash(config: PrepareConfig, source: Source) -> tuple[Prepared, Clips]:
    """`prepare_source`, and the checksum of the file.

    For that it is read a second time, mostly from memory; one that is in quarantine is not.
    """
    fetch_source(config.files, source)
    report, clips = prepare_source(config, source)
    return Prepared(report, content_of(source) if report.quarantined is None else None), clips


def stored_reports(
    config: PrepareConfig, sources: Sequence[Source], prepared: Sequence[Prepared]
) -> list[StoredReport]:
    """The reports of some sources with what each was made from."""
    stored = []
    for source, done in zip(sources, prepared, strict=True):
        origin = config.origin(source, done.content)
        stored.append(StoredReport.of(done.report.model_copy(update={"origin": origin})))
    return stored


def prepare_source(config: PrepareConfig, source: Source) -> tuple[SourceReport, Clips]:
    """Make the clips of one video.

    A video that cannot be used raises nothing: the report says why it has no clips.

    Raises:
        OSError: the disk of this machine is full.
        SpoolError: the clips cannot be written.
    """
    quarantine = partial(reject, source.name)
    spool = ClipSpool(config.spool_dir)
    try:
        reports = _cut_source(config, source, spool)
    except CaptionError as error:
        failed = SourceReport(source=source.name, quarantined=quarantine("caption", "bad_caption", str(error)))
    except VideoError as error:
        if error.reason in FILTERS:
            failed = SourceReport(source=source.name, filtered=[quarantine("filter", error.reason, str(error))])
        else:
            failed = SourceReport(source=source.name, quarantined=quarantine("decode", error.reason, str(error)))
    except FileNotFoundError:
        gone = f"{source.path} is gone" if "://" in source.path else "the file is gone"
        failed = SourceReport(source=source.name, quarantined=quarantine("read", "missing", gone))
    except OSError as error:
        spool.clear()
        if error.errno == ENOSPC or isinstance(error, SpoolError):  # a fault of this machine, not of the source
            raise
        detail = f"it cannot be read: {error.strerror}"
        failed = SourceReport(source=source.name, quarantined=quarantine("read", "unreadable", detail))
    else:
        clips = [clip for report in reports for clip in report.clips]
        filtered = [rejection for report in reports for rejection in report.filtered]
        measured = [span for report in reports for span in report.measured]
        return SourceReport(source=source.name, clips=clips, filtered=filtered, measured=measured), spool.close()
    spool.clear()
    return failed, spool.close()


def present_caption(config: PrepareConfig, source: Source) -> str:
    """The caption of a source.

    Raises:
        CaptionError: it cannot be used.
    """
    if source.caption is not None:
        return clean_caption(source.caption)
    return caption_of(
        source.root,
        source.file,
        config.captions,
        config.shared_names,
        source.path,
        may_have_sidecar=source.may_have_sidecar,
    )


def _caption_or_problem(config: PrepareConfig, source: Source) -> str:
    """The caption of a source, or why there is none: another text for each."""
    try:
        return present_caption(config, source)
    except (CaptionError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def _cut_source(config: PrepareConfig, source: Source, spool: ClipSpool) -> list[SourceReport]:
    """Decode a source and store its clips in the spool; what became of each span."""
    settings, caption = config.settings, present_caption(config, source)
    is_augmented = config.augments and split_of(source.file, settings.validation_fraction) == "train"
    cut = CutConfig(
        max_spans=settings.max_clips_per_video,
        placement=settings.clip_placement,
        address=source.name,
        stretch=source.stretch,
        min_side_pixels=settings.filters.too_small_pixels or 1,
        max_pixels=settings.filters.too_large_pixels,
        find_cuts=SCENE_FINDERS[settings.scene_detection],
        text_fraction=text_fraction if config.measures_text else None,
        augment=settings.augment if is_augmented else AS_IT_IS,
        hdr=settings.hdr,
        crops_bars=settings.letter_box == "crop",
    )
    allowance = Allowance(settings.decode_timeout_seconds, settings.decode_seconds_per_minute)
    with local_copy(source) as path:
        return cut_file(
            path,
            config.buckets,
            partial(_make_clips, config, source, caption, spool),
            cut,
            restart=spool.clear,
            progress=Progress(allowance.begun, allowance.frame_read),
        )


def _make_clips(
    config: PrepareConfig, source: Source, caption: str, spool: ClipSpool, spans: list[Span]
) -> SourceReport:
    """Filter and encode the clips of one span: augmented ones are kept or left out together with what they copy."""
    filters = config.settings.filters
    (original,) = (span for span in spans if not span.variant)
    measures = measure_clip(original.frames, original.bucket.fps, filters, original.text_fraction)
    seen = MeasuredSpan(start_seconds=original.start_seconds, is_still=len(original.frames) == 1, measures=measures)
    failed, caption_by = failed_threshold(seen, config.settings), None
    if failed is None and config.judge is not None:
        judgement = config.judge(original.frames[[0, len(original.frames) // 2, -1]], caption)
        seen = seen.model_copy(update={"scores": judgement.scores})
        failed = failed_threshold(seen, config.settings)
        if judgement.caption:
            caption, caption_by = judgement.caption, "captioner"
    measured = [seen] if seen.measures or seen.scores else []
    if failed is not None:
        rejected = reject(source.name, "filter", *failed, start_seconds=original.start_seconds)
        return SourceReport(source=source.name, filtered=[rejected], measured=measured)
    prepared = []
    for span in spans:
        record = _clip_record(config, source, span, caption, seen, caption_by)
        spool.add(record, encode_clip(span.frames, span.bucket.fps))
        signature = _signature(span, filters)
        prepared.append(PreparedClip(key=record.key, start_seconds=span.start_seconds, perceptual_hash=signature))
    return SourceReport(source=source.name, clips=prepared, measured=measured)


class Allowance:
    """Keeps the deadline of this job a timeout away while frames are read, up to what the whole video may take."""

    def __init__(self, timeout_seconds: float, seconds_per_minute: float) -> None:
        self._timeout, self._per_minute = timeout_seconds, seconds_per_minute
        self._end = monotonic() + timeout_seconds

    def begun(self, video_seconds: float) -> None:
        """The video lasts so long."""
        self._end += video_seconds / 60 * self._per_minute
        self.frame_read()

    def frame_read(self) -> None:
        """The decoder is at work."""
        allow_until(min(self._end, monotonic() + self._timeout))


def _clip_record(
    config: PrepareConfig,
    source: Source,
    span: Span,
    caption: str,
    seen: MeasuredSpan,
    caption_by: str | None,
) -> ClipRecord:
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
        measures=stored_measures(seen, config.settings.filters),
        caption_by=caption_by,
    )


def _signature(span: Span, filters: FilterConfig) -> str | None:
    """What duplicates of a clip are found by, once they are looked for; None: it is not compared."""
    if span.variant:
        return None
    return f"{perceptual_hash(span.frames):x}" if filters.duplicate_views == "same" else describe(span.frames)


def fetch_source(files: RunFiles, source: Source) -> None:
    """Make a video of the run, and its caption, available on this machine."""
    if not files.is_shared and "://" not in source.path:
        files.fetch(Path(source.path), *sidecars(Path(source.path)))


def measure(
    max_pixels: int | None, crops_bars: bool, files: RunFiles, source: Source
) -> tuple[SourceShape | None, None]:
    """Size and duration of a source; None if it cannot be read, for which `prepare_source` reports the reason."""
    fetch_source(files, source)
    try:
        with local_copy(source) as path:
            return measure_source(path, source.stretch, max_pixels, crops_bars), None
    except VideoError:
        return None, None
    except OSError as error:
        if error.errno == ENOSPC:
            raise
        return None, None
