"""Weights & Biases: refused without its package, one run per training with it."""

import json
import struct
import sys
from functools import partial
from pathlib import Path

import pytest

from pipeline.distributed.torchrun import train_here
from pipeline.train.monitor.events import read_events
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.monitor.wandb_sink import WandbError
from testing.records import SMALL
from testing.tiny import CONFIG
from testing.watched import WATCHED, train_watched


@pytest.mark.slow
def test_wandb_without_its_package_is_an_error_before_the_first_step(watched_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = CONFIG.model_copy(update={"wandb_project": "clips"})
    with pytest.raises(WandbError, match=r"wandb_project is 'clips', but the package wandb is not installed: run pip"):
        train_here(partial(train_watched, data=watched_runs / "data", run_dir=tmp_path, stage=2, config=config), 1)
    assert read_events(tmp_path) == []


@pytest.mark.slow
@pytest.mark.wandb
def test_wandb_offline_gets_every_step_of_one_run(watched_runs, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = WATCHED.model_copy(update={"wandb_project": "clips", "steps": 4, "schedule": "constant"})
    train_here(partial(train_watched, data=watched_runs / "data", run_dir=tmp_path, stage=2, config=config), 1)
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert (tmp_path / "wandb_id").read_text() in log.name
    rows = list(wandb_history(log))
    shown = [row["total"] for row in rows if "total" in row]
    assert shown == pytest.approx([row["total"] for row in read_metrics(tmp_path)])
    assert [row["step"] for row in rows if "total" in row] == [1, 2, 3, 4]
    assert {row["step"] for row in rows if f"validation_raw/{SMALL.name}/all" in row} == {0, 3, 4}
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/videos/**/*.gif"))) == 4


def wandb_history(path: Path):
    """The logged rows of W&B's own file: LevelDB's log format, after seven bytes, with a protobuf in each record."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportMissingImports]

    content, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768  # of the block; a header is never cut in two
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            row = Record.FromString(record)
            if row.WhichOneof("record_type") == "history":
                yield {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.history.item}
            record = b""
