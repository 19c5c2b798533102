"""Clips on their way to their shard: few in memory, many in a file."""

import pickle

import pytest

from pipeline.ingest import spool
from pipeline.ingest.spool import ClipSpool, SpoolError
from testing.records import made_up_clip
from testing.shapes import SQUARE

CLIPS = [(made_up_clip(number, SQUARE), bytes([number]) * (50 + number)) for number in range(9)]


@pytest.mark.parametrize("most", [0, 120, 10_000])
def test_clips_come_out_as_they_went_in(tmp_path, monkeypatch, most):
    monkeypatch.setattr(spool, "MAX_HELD_BYTES", most)
    collected = ClipSpool(tmp_path)
    for record, content in CLIPS:
        collected.add(record, content)
    clips = pickle.loads(pickle.dumps(collected.close()))
    assert list(clips) == CLIPS
    assert (len(clips), clips[-1], clips[2:4]) == (9, CLIPS[-1], CLIPS[2:4])
    assert len(list(tmp_path.iterdir())) == (most < 10_000)
    clips.remove()
    assert not list(tmp_path.iterdir())


def test_what_is_forgotten_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "MAX_HELD_BYTES", 100)
    collected = ClipSpool(tmp_path)
    for record, content in CLIPS:
        collected.add(record, content)
    collected.clear()
    assert not list(tmp_path.iterdir())
    collected.add(*CLIPS[3])
    assert list(collected.close()) == [CLIPS[3]]


def test_without_a_folder_clips_stay_in_memory(monkeypatch):
    monkeypatch.setattr(spool, "MAX_HELD_BYTES", 1)
    collected = ClipSpool(None)
    collected.add(*CLIPS[0])
    assert list(collected.close()) == CLIPS[:1]


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "MAX_HELD_BYTES", 1)
    with pytest.raises(SpoolError, match=r"cannot be written to .*gone \(No such file or directory\); make room"):
        ClipSpool(tmp_path / "gone").add(*CLIPS[0])
