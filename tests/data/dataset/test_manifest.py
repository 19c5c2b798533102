"""Manifests and indices that are malformed or point outside their folder."""

import json

import pytest

from data.dataset.clip import VIDEO_MEMBER
from data.dataset.index import IndexRow
from data.dataset.manifest import SCHEMA_VERSION, ShardRecord, read_manifest
from data.dataset.reader import PayloadReader
from data.dataset.shards import write_shard
from data.errors import DatasetError
from testing.records import made_up_clip

RECORD = made_up_clip(10)


def test_a_manifest_or_index_that_points_elsewhere_is_refused(tmp_path):
    shard = ShardRecord(name="../other/shard.tar", num_samples=0, num_bytes=0, sha256="")
    bucket = {"num_frames": 5, "height": 32, "width": 32, "fps": 8}
    content = {
        "schema_version": SCHEMA_VERSION,
        "kind": "clips",
        "fingerprint": "",
        "buckets": [{"bucket": bucket, "num_samples": 0, "num_train": 0}],
        "num_samples": 0,
    }
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "shards": [shard.model_dump()]}), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"'\.\./other/shard\.tar' is not in"):
        read_manifest(tmp_path)
    written, rows = write_shard(tmp_path / "shard.tar", [(RECORD, b"video")], VIDEO_MEMBER)
    row = IndexRow(**{**vars(rows[0]), "shard": "/etc/passwd"})
    with pytest.raises(DatasetError, match="'/etc/passwd', which is not in"):
        PayloadReader(tmp_path).read(row)
    ledger = {"sources": 3, "shards": 1, "filtered": 0, "quarantine": 0}
    text = json.dumps({**content, "shards": [written.model_dump()], "ledger": ledger})
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"sources must equal shards \+ filtered \+ quarantine"):
        read_manifest(tmp_path)


def test_manifest_errors(tmp_path):
    with pytest.raises(DatasetError, match="not a finished dataset"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 99}', encoding="utf-8")
    with pytest.raises(DatasetError, match="schema 99 is newer"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 1}', encoding="utf-8")
    with pytest.raises(DatasetError, match=f"schema 1 is older than this program's {SCHEMA_VERSION}; run the stage"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(DatasetError, match="damaged"):
        read_manifest(tmp_path)
