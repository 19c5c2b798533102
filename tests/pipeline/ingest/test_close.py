"""The end of the shard stage: every source accounted for, and no shard held longer than it takes."""

import json
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from data.curation.ledger import FILTERED_NAME, QUARANTINE_NAME, LedgerError, read_rejections, reject
from data.curation.source import SourceError
from data.dataset.index import INDEX_NAME, read_index
from data.dataset.manifest import ShardRecord, count_buckets
from data.dataset.rows import IndexRow
from pipeline.ingest.close import close_dataset
from pipeline.ingest.reports import SourceReport
from testing.records import index_row
from testing.shapes import SQUARE, STILL


@dataclass(frozen=True, eq=False)
class Commit:
    shard: ShardRecord
    rows: list[IndexRow]
    reports: list[SourceReport]


def commit(number: int, num_rows: int = 10) -> Commit:
    """A shard of a source per row, the first of which has another clip that was filtered."""
    rows = [index_row(num_rows * number + place, (SQUARE, STILL)[place % 3 == 0]) for place in range(num_rows)]
    left_out = reject(rows[0].source, "filter", "static", "it does not move", 1.0)
    reports = [SourceReport(source=row.source, filtered=[left_out] * (row is rows[0])) for row in rows]
    shard = ShardRecord(name=f"shard-{number:05d}.tar", num_samples=num_rows, num_bytes=1, sha256=f"{number}")
    return Commit(shard, rows, reports)


def sources(num: int) -> list[str]:
    return [f"{number}.mp4" for number in range(num)]


def rejected(number: int, reason: str) -> SourceReport:
    name = f"{number}.mp4"
    if reason == "static":
        return SourceReport(source=name, filtered=[reject(name, "filter", reason, "it does not move")])
    return SourceReport(source=name, quarantined=reject(name, "decode", "undecodable", "it is broken"))


def test_commits_become_an_index_a_ledger_and_a_manifest(tmp_path):
    commits = [commit(number) for number in range(3)]
    commits[1].reports.extend([rejected(30, "static"), rejected(31, "undecodable")])
    manifest = close_dataset(sources(32), iter(commits), tmp_path)
    rows = [row for each in commits for row in each.rows]
    assert list(read_index(tmp_path)) == rows
    assert manifest.buckets == count_buckets(rows)
    assert (manifest.num_samples, manifest.filtered) == (30, {"static": 4})
    assert manifest.shards == [each.shard for each in commits]
    assert manifest.ledger is not None
    assert vars(manifest.ledger) == {"sources": 32, "shards": 30, "filtered": 1, "quarantine": 1}
    assert [r.source for r in read_rejections(tmp_path / QUARANTINE_NAME)] == ["31.mp4"]
    assert [r.source for r in read_rejections(tmp_path / FILTERED_NAME)] == ["0.mp4", "10.mp4", "30.mp4", "20.mp4"]


def test_one_shard_is_held_at_a_time(tmp_path):
    alive: weakref.WeakSet[Commit] = weakref.WeakSet()
    most = 0

    def commits() -> Iterator[Commit]:
        nonlocal most
        for number in range(50):
            made = commit(number, 40)
            alive.add(made)
            most = max(most, len(alive))
            yield made

    manifest = close_dataset(sources(2000), commits(), tmp_path)
    assert manifest.num_samples == 2000
    assert most <= 2, "the one that is used, and the one that is read next"


def test_a_ledger_that_does_not_add_up_and_a_dataset_without_clips_are_refused(tmp_path):
    with pytest.raises(LedgerError, match=r"1 are lost \(such as \['10.mp4'\]\)"):
        close_dataset(sources(11), iter([commit(0)]), tmp_path)
    nothing = Commit(commit(0).shard, [], [rejected(0, "static"), rejected(1, "undecodable")])
    with pytest.raises(SourceError, match=r"none of the 2 videos can be used \(the first, 1\.mp4: it is broken\)"):
        close_dataset(sources(2), iter([nothing]), tmp_path)
    (line,) = (tmp_path / QUARANTINE_NAME).read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["source"] == "1.mp4"


def test_an_error_on_the_way_publishes_nothing(tmp_path):
    def commits() -> Iterator[Commit]:
        yield commit(0)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        close_dataset(sources(20), commits(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not (tmp_path / INDEX_NAME).exists()
