"""A record of a newer version is told apart from a damaged one, and a file that a record does not list is named."""

import json
from pathlib import Path

import pytest

from pipeline.checkpoint.record import Checkpoint, CheckpointError, CheckpointRecord, FileRecord, read_checkpoint_record
from testing.often_saved import step_folder


def test_a_record_of_a_newer_program_is_told_from_damage(run_dir):
    path = step_folder(run_dir, 8) / "checkpoint.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    path.write_text(json.dumps(record | {"schema_version": 99, "news": 1}))
    with pytest.raises(CheckpointError, match="schema 99, newer than this program's 1: use a newer reelflow"):
        read_checkpoint_record(path.parent)


def test_a_file_that_a_record_does_not_list_is_named():
    file = FileRecord(num_bytes=1, sha256="0")
    checkpoint = Checkpoint(Path("x"), CheckpointRecord.model_construct(files={"a": file}))
    assert checkpoint.file("a") == file
    with pytest.raises(CheckpointError, match=r"x/checkpoint\.json is damaged: it lists no file autoencoder"):
        checkpoint.file("autoencoder.safetensors")
