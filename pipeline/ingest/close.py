"""The end of the shard stage: the commits of all shards become the index, the ledger and the manifest.

Commits are taken one at a time. Memory grows with the number of sources and shards, not with that of clips.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from data.curation.ledger import FILTERED_NAME, QUARANTINE_NAME, Reason, Rejection, balance
from data.curation.source import SourceError
from data.dataset.index import write_index
from data.dataset.manifest import BucketCounts, Manifest, ShardRecord, content_fingerprint
from data.dataset.rows import IndexRow
from data.files.jsonl import published_jsonl
from pipeline.ingest.reports import SourceReport


class FinishedShard(Protocol):
    """What is needed of the commit of a shard."""

    @property
    def shard(self) -> ShardRecord:
        """Its entry in the manifest."""
        ...

    @property
    def rows(self) -> Sequence[IndexRow]:
        """The rows of its clips."""
        ...

    @property
    def reports(self) -> Sequence[SourceReport]:
        """What became of each of its sources."""
        ...


def _left_out(report: SourceReport) -> Iterable[Rejection]:
    return report.filtered


def close_dataset(
    sources: Collection[str],
    commits: Iterable[FinishedShard],
    output_dir: Path,
    left_out: Callable[[SourceReport], Iterable[Rejection]] = _left_out,
) -> Manifest:
    """Write the index and the files of the ledger; return the manifest.

    Args:
        sources: the name of every source.
        commits: in the order of the shards.
        left_out: the clips, or the source, that were left out on purpose.

    Raises:
        LedgerError: the ledger does not account for every source exactly once.
        SourceError: no source has a clip.
    """
    shards: list[ShardRecord] = []
    counts, by_filter = BucketCounts(), Counter[Reason]()
    sharded, filtered, quarantined = set[str](), set[str](), list[str]()
    first: dict[str, Rejection] = {}
    with (
        published_jsonl(output_dir / QUARANTINE_NAME) as write_quarantined,
        published_jsonl(output_dir / FILTERED_NAME) as write_filtered,
    ):

        def rows() -> Iterator[IndexRow]:
            for commit in commits:
                shards.append(commit.shard)
                for report in commit.reports:
                    if report.quarantined is not None:
                        write_quarantined(report.quarantined)
                        quarantined.append(report.quarantined.source)
                        first.setdefault(QUARANTINE_NAME, report.quarantined)
                    for rejection in left_out(report):
                        write_filtered(rejection)
                        filtered.add(rejection.source)
                        by_filter[rejection.reason] += 1
                        first.setdefault(FILTERED_NAME, rejection)
                counts.add(commit.rows)
                sharded.update(row.source for row in commit.rows)
                yield from commit.rows

        write_index(output_dir, rows())
    ledger = balance(sources, sharded, filtered - sharded, quarantined)
    if not counts.num_samples:
        example = first.get(QUARANTINE_NAME) or first[FILTERED_NAME]
        raise SourceError(
            f"none of the {len(sources)} videos can be used (the first, {example.source}: {example.detail}); "
            f"every reason is in {output_dir / QUARANTINE_NAME} and {FILTERED_NAME}"
        )
    return Manifest(
        kind="clips",
        fingerprint=content_fingerprint(shards),
        buckets=counts.records(),
        num_samples=counts.num_samples,
        ledger=ledger,
        filtered=dict(sorted(by_filter.items())),
        shards=shards,
    )
