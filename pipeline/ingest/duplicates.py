"""Which clips look like an earlier one: a function of all reports, whatever was prepared first."""

from collections.abc import Iterable, Mapping

from data.curation.config import FilterConfig
from data.curation.filters import Duplicates
from data.curation.ledger import Rejection, reject
from data.curation.lookalikes import Lookalikes
from pipeline.ingest.reports import PreparedClip, SourceReport

Dropped = Mapping[str, Mapping[float, str]]
"""Source -> start of a clip in it, in seconds -> the source of the earlier clip that it looks like."""


def find_duplicates(reports: Iterable[SourceReport], filters: FilterConfig) -> dict[str, dict[float, str]]:
    """The clips that look like an earlier clip that is kept, as the filters say; none if they do not look for any.

    Args:
        reports: in the order of the sources, by which the first of two clips is kept.
    """
    dropped: dict[str, dict[float, str]] = {}
    bits = filters.duplicate_bits
    if bits is None:
        return dropped
    seen = Duplicates(bits) if filters.duplicate_views == "same" else Lookalikes(bits)
    for report in reports:
        for clip in report.clips:
            if clip.perceptual_hash is None:
                continue
            if (original := seen.find(clip.perceptual_hash)) is None:
                seen.keep(clip.perceptual_hash, report.source)
            else:
                dropped.setdefault(report.source, {})[clip.start_seconds] = original
    return dropped


def kept_clips(report: SourceReport, dropped: Dropped) -> list[PreparedClip]:
    """The clips of a source for its shard; augmented copies go with the clip that they are made from."""
    return [clip for clip in report.clips if clip.start_seconds not in dropped.get(report.source, {})]


def duplicates_of(report: SourceReport, dropped: Dropped) -> list[Rejection]:
    """The lines of the ledger for the clips of a source that were left out as duplicates."""
    return [
        reject(report.source, "filter", "duplicate", f"it looks like a clip of {original}", start)
        for start, original in dropped.get(report.source, {}).items()
    ]
