"""Which clips the thresholds leave out, decided from what was measured of them; also anew, with other thresholds.

A report keeps what was measured of every span, also of those that were left out. So with another threshold, or with a
filter more or less, a video is cut again only if a clip passes that was left out before, whose pixels were not kept, or
if something is asked for that was not measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from data.curation.config import THRESHOLDS, FilterConfig, Measure
from data.curation.filters import RULES, failed_filter
from data.curation.ledger import Filter
from data.records import Record
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.judge import Judgement, failed_judgement


@dataclass(frozen=True)
class Threshold:
    """A setting that only decides which of the measured clips are kept."""

    setting: str  # `part.field` of `ShardConfig`
    compared: str  # measure, or score of a model
    reason: Filter


ALL_THRESHOLDS = (
    *(Threshold(f"filters.{rule.setting}", rule.measure, rule.reason) for rule in RULES),
    Threshold("models.min_aesthetic", "aesthetic", "unaesthetic"),
    Threshold("models.min_similarity", "similarity", "caption_mismatch"),
)


class MeasuredSpan(Record):
    """What was measured of a span, before a threshold was asked."""

    start_seconds: float
    is_still: bool = False  # it has one frame
    measures: Mapping[Measure, float] = Field(default={})
    scores: Mapping[str, float] = Field(default={})  # of the models, which see only what passes the filters


def what_is_measured(filters: FilterConfig) -> dict[str, Any]:
    """What the thresholds have stored of each clip, and older versions measured, whatever their values are."""
    return {
        "measured": [measure for measure in THRESHOLDS if filters.needs(measure)],
        "stored": sorted(filters.recorded),
    }


def needed(filters: FilterConfig) -> set[Measure]:
    """What has to be known of a span: for the thresholds, and to be stored in the record of its clips."""
    return {measure for measure in THRESHOLDS if filters.needs(measure)}


def stored_measures(span: MeasuredSpan, filters: FilterConfig) -> dict[str, float] | None:
    """What the record of a clip of a span stores; None if nothing."""
    recorded = filters.recorded
    stored: dict[str, float] = {name: value for name, value in span.measures.items() if name in recorded}
    stored |= span.scores
    return {name: round(value, 6) for name, value in stored.items()} or None


def failed_threshold(span: MeasuredSpan, config: ShardConfig) -> tuple[Filter, str] | None:
    """The first threshold that leaves a span out, with the reason as a sentence; None if it passes all."""
    return failed_filter(span.measures, config.filters, span.is_still) or failed_judgement(
        Judgement("", dict(span.scores)), config.models
    )
