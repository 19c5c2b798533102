"""What the stages of ingestion depend on."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.curation.caption_text import CaptionError
from data.files.tables import TableError
from launch.config import load_config
from launch.run import run_stages
from pipeline.ingest.stage import _table_fingerprint
from pipeline.run.fingerprints import fingerprint
from pipeline.run.stage_record import STAGE_RECORD_NAME, StageRecord
from testing.paths import CASES_DIR


def test_parquet_tables_of_captions_differ_in_their_fingerprint(tmp_path):
    marks = []
    for name, captions in (("1.parquet", "ABABABAB"), ("2.parquet", "ABBAABAB")):
        files = [f"v{number}.mp4" for number in range(8)]
        pq.write_table(pa.table({"file": files, "caption": list(captions)}), tmp_path / name)
        marks.append(_table_fingerprint(tmp_path / name))
    assert marks[0] != marks[1]


def test_the_fingerprint_of_a_text_table_is_that_of_its_text(tmp_path):
    text = "file,caption\r\na.mp4,caf\u00e9\n"
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert _table_fingerprint(tmp_path / "t.csv") == fingerprint(text.replace("\r\n", "\n"))
    with pytest.raises(TableError, match=r"none\.csv: there is no such table"):
        _table_fingerprint(tmp_path / "none.csv")


def test_a_caption_table_that_cannot_be_used_is_refused_before_anything_changes(tmp_path):
    """Also before a cluster starts; what was made with another table stays as it is."""
    videos, table = tmp_path / "videos", tmp_path / "t.csv"
    videos.mkdir()
    shutil.copy(CASES_DIR / "plain.mp4", videos / "a.mp4")
    folder = tmp_path / "run" / "clips"
    folder.mkdir(parents=True)
    record = StageRecord(stage="shard", complete=True, build="b", inputs={}).model_dump_json()
    (folder / STAGE_RECORD_NAME).write_text(record)
    for content in ("file,caption\na.mp4,red, moving\n", "file,caption\nb.mp4,x\n"):
        table.write_text(content)
        settings = [f"runs_dir={tmp_path}", "name=run", f"data.source={videos}", f"data.captions={table}"]
        with pytest.raises(CaptionError, match=r"t\.csv"):
            run_stages(load_config(Path("demo"), settings), ["shard"])
        assert (folder / STAGE_RECORD_NAME).read_text() == record
        assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == ["clips", "logs"]
