"""Commits of shards: names on disk, and which shards can be reused."""

import json

import pytest

from data.dataset.manifest import ShardRecord
from pipeline.encode.encode import EncodedShard
from pipeline.ingest.commit import ShardCommit
from pipeline.run.commits import (
    commit_path,
    publish_commit,
    read_commit,
    remove_commit,
    remove_other_shards,
)

SHARD = ShardRecord(name="shard-00000.tar", num_samples=0, num_bytes=1, sha256="")
CLIPS = ShardCommit(input_fingerprint="abc", shard=SHARD, rows=[], reports=[])
LATENTS = EncodedShard(
    input_fingerprint="abc", shard=SHARD, rows=[], count=2, total=[1.0], total_squares=[3.0], num_truncated_captions=4
)


@pytest.mark.parametrize("commit", [CLIPS, LATENTS], ids=["clips", "latents"])
def test_a_commit_is_read_back_and_a_damaged_one_counts_as_none(tmp_path, commit):
    path, kind = tmp_path / "shard-00000.tar", type(commit)
    assert read_commit(kind, path) is None
    publish_commit(path, commit)
    assert read_commit(kind, path) == commit
    commit_path(path).write_text(commit.model_dump_json()[:-9], encoding="utf-8")
    assert read_commit(kind, path) is None
    remove_commit(path)
    remove_commit(path)
    assert not commit_path(path).exists()


def test_the_names_on_disk_are_those_of_older_versions(tmp_path):
    publish_commit(tmp_path / "shard-00000.tar", LATENTS)
    stored = json.loads((tmp_path / "shard-00000.commit.json").read_text(encoding="utf-8"))
    older = ["made_from", "shard", "rows", "count", "total", "total_squares", "num_cut_captions"]
    assert list(stored) == [*older, "latents_from"]
    assert (stored["made_from"], stored["num_cut_captions"]) == ("abc", 4)
    assert list(json.loads(CLIPS.model_dump_json())) == ["made_from", "shard", "rows", "reports"]


def test_shards_of_a_longer_plan_are_removed_with_their_commits(tmp_path):
    for number in range(3):
        (tmp_path / f"shard-{number:05d}.tar").touch()
        publish_commit(tmp_path / f"shard-{number:05d}.tar", CLIPS)
    (tmp_path / "manifest.json").touch()
    remove_other_shards(tmp_path, {"shard-00001.tar"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json",
        "shard-00001.commit.json",
        "shard-00001.tar",
    ]
