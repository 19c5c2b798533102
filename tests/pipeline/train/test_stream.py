"""A sample that cannot be read is replaced, counted and listed."""

import json
from functools import partial

from data.dataset.index import read_index
from data.dataset.reader import PayloadReader
from data.errors import DatasetError
from pipeline.distributed.torchrun import train_here
from pipeline.train.loop import train
from pipeline.train.monitor.events import read_events
from pipeline.train.monitor.metrics import read_metrics
from testing.tiny import CONFIG


def test_an_unreadable_sample_is_skipped_counted_and_listed(straight, tmp_path, monkeypatch):
    task, _, whole = straight
    bad, read = task.subsets()[0].rows[2].key, PayloadReader.read_into

    def refuse(self, row, buffer):
        if row.key == bad:
            raise DatasetError(f"{row.key} is damaged")
        return read(self, row, buffer)

    monkeypatch.setattr(PayloadReader, "read_into", refuse)
    train_here(partial(train, task, CONFIG.model_copy(update={"max_unreadable_share": 0.1}), tmp_path), 1)
    rows = read_metrics(tmp_path)
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert {line["key"] for line in listed} == {bad}
    assert rows[-1]["skipped_samples"] >= 1
    assert len(listed) == rows[-1]["skipped_samples"]
    assert all(0 <= row["data_wait"] <= 1 for row in rows)
    assert "skipped.jsonl" not in [path.name for path in whole.iterdir()]


def test_validation_clips_that_cannot_be_read_are_said(straight, tmp_path, monkeypatch):
    task, _, _ = straight
    monkeypatch.setattr("pipeline.train.monitor.validation.read_index", lambda folder, _: read_index(folder, "train"))
    bad, read = task.subsets()[0].rows[2].key, PayloadReader.read

    def refuse(self, row):
        if row.key == bad:
            raise DatasetError(f"{row.key} is damaged")
        return read(self, row)

    monkeypatch.setattr(PayloadReader, "read", refuse)
    train_here(partial(train, task, CONFIG.model_copy(update={"steps": 1}), tmp_path), 1)
    assert "1 of 10 validation clips cannot be read and are left out" in read_events(tmp_path)[0].note
