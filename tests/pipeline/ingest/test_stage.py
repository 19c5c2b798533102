"""What the stages of ingestion depend on."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.files.tables import TableError
from pipeline.ingest.stage import _table_fingerprint
from pipeline.run.fingerprints import fingerprint


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
