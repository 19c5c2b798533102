"""The report of a source under other thresholds, without decoding it."""

from data.curation.config import Measure
from data.curation.ledger import reject
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.reports import SourceReport
from pipeline.ingest.thresholds import failed_threshold, needed


def unmeasured(report: SourceReport, config: ShardConfig) -> set[Measure]:
    """What the filters ask for, or store, and no one has measured of a source that gave spans."""
    wanted = needed(config.filters)
    starts = {clip.start_seconds for clip in report.clips}
    missing = [wanted - span.measures.keys() for span in report.measured]
    return set[Measure]().union(*missing, wanted if starts - {span.start_seconds for span in report.measured} else ())


def redecided(report: SourceReport, config: ShardConfig) -> SourceReport | None:
    """What became of a source, decided again from what was measured of its spans.

    Returns:
        None if a span passes that was left out, or something was not measured: the source has to be cut.
    """
    if unmeasured(report, config):
        return None
    if not report.measured:  # it gave no spans
        return report
    failed = {span.start_seconds: failed_threshold(span, config) for span in report.measured}
    cut = {clip.start_seconds for clip in report.clips}
    if any(failure is None and start not in cut for start, failure in failed.items()):
        return None
    clips = [clip for clip in report.clips if failed.get(clip.start_seconds) is None]
    filtered = [
        reject(report.source, "filter", *failure, start_seconds=start)
        for start, failure in failed.items()
        if failure is not None
    ]
    return report.model_copy(update={"clips": clips, "filtered": filtered})
