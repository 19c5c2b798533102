"""Tables of every format give the same numbered rows; bad ones are named with file and line or row."""

import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.files.tables import TableError, read_table, table_content

ROWS = [{"path": "a.mp4", "caption": "one\u2028two"}, {"path": "b.mp4", "caption": None}]


def parquet(rows: list[dict[str, str | None]]) -> bytes:
    return stored(pa.Table.from_pylist(rows))


def stored(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


DAMAGED = bytearray(stored(pa.table({"file": [f"v{number}.mp4" for number in range(50)]})))
DAMAGED[4:12] = b"\xff" * 8
FAR = stored(pa.table({"file": ["a"], "t": pa.array([2**62], pa.timestamp("us"))}))
TWICE = stored(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["file", "file"]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "\ufeffpath,caption\na.mp4,one\u2028two\nb.mp4,\n".encode()),
        ("T.CSV", "path,caption\r\na.mp4,one\u2028two\r\nb.mp4,\r\n".encode()),
        ("t.TSV", " Path\tCAPTION \na.mp4\tone\u2028two\nb.mp4\n\t\n".encode()),
        ("t.csv", ",path,caption\n0,a.mp4,one\u2028two\n1,b.mp4,\n".encode()),
        ("t.jsonl", "\ufeff".encode() + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()),
        ("t.json", json.dumps(ROWS).encode()),
        ("s3://bucket/t.parquet", parquet(ROWS)),
    ],
)
def test_every_format_gives_the_same_rows(name, content):
    assert [row for _, row in read_table(name, content)] == ROWS


def test_rows_are_numbered_as_an_editor_shows_them():
    assert read_table("t.csv", b'path,caption\n\na,"two\nlines"\nb,x\n') == [
        (3, {"path": "a", "caption": "two\nlines"}),
        (4, {"path": "b", "caption": "x"}),
    ]
    with pytest.raises(TableError, match=r"t\.csv, row 3 \(line 4\): 3 fields"):
        read_table("t.csv", b'path,caption\na,"two\nlines"\nb,x,y\n')
    assert [number for number, _ in read_table("t.json", json.dumps(ROWS).encode())] == [1, 2]
    assert read_table("t.jsonl", b'\n{"path": "a"}\n\n{"path": "b"}\n') == [(2, {"path": "a"}), (4, {"path": "b"})]


def test_an_object_is_a_table_of_pairs_where_the_columns_are_named():
    content = b'{"a.mp4": "one"}'
    assert read_table("t.json", content, ("file", "caption")) == [(1, {"file": "a.mp4", "caption": "one"})]
    assert read_table("t.json", content) == [(1, {"a.mp4": "one"})]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.txt", b"", r"t\.txt: a table is \.csv, \.tsv, \.jsonl, \.json or \.parquet, not '\.txt'"),
        ("t.csv", b"path\ncaf\xe9.mp4\n", r"t\.csv: it cannot be read as \.csv"),
        ("t.jsonl", b'{"path": 1}\n{', r"t\.jsonl: it cannot be read as \.jsonl: line 2: Expecting"),
        ("t.json", b"[", r"t\.json: it cannot be read as \.json"),
        ("t.parquet", b"no", r"t\.parquet: it cannot be read as \.parquet"),
        ("t.parquet", bytes(DAMAGED), r"t\.parquet: it cannot be read as \.parquet"),
        ("t.parquet", FAR, r"t\.parquet: it cannot be read as \.parquet \(column 't'\): "),
        ("t.parquet", TWICE, r"t\.parquet: the column 'file' is there twice"),
        ("t.csv", b'path,caption\na, "red"\n', r"t\.csv, row 2: the field ' \"red\"' has a space before its quote"),
        ("t.csv", b"path,caption\na,red, moving\n", r"t\.csv, row 2: 3 fields where the header has 2"),
        ("t.csv", b"path,caption,\na,red, moving\n", r"t\.csv, row 2: 3 fields where the header has 2"),
        ("t.csv", b'path,caption\na,x\nb,"red\nc,blue\n', r"t\.csv, row 3: .*close each quote"),
        ("t.csv", b'path,caption\na,"red\nb,"blue"\n', r"t\.csv, row 2: .*close each quote"),
        ("t.csv", b"path,Path \na,b\n", r"t\.csv: the column 'path' is there twice"),
        ("t.json", b'[{"path": "a", "path": "b"}]', r"the key 'path' is there twice"),
        ("t.json", b"[" * 100000, r"nested too deeply"),
        ("t.json", b'[{"path": ' + b"1" * 5000 + b"}]", r"4300 digits"),
        ("t.csv", "path\na\n".encode("utf-16"), r"it is UTF-16; save it as UTF-8"),
        ("t.jsonl", b'{"path": "a"}\n[1]', r"t\.jsonl, row 2: \[1\] is not an object"),
    ],
)
def test_bad_tables_are_named(name, content, reason):
    with pytest.raises(TableError, match=reason):
        read_table(name, content)


def test_a_cell_that_a_row_lacks_is_told_from_an_empty_one():
    content = b"path,caption\na\nb,\n"
    assert [row for _, row in read_table("t.csv", content, missing="-")] == [
        {"path": "a", "caption": "-"},
        {"path": "b", "caption": None},
    ]


def test_a_table_that_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(TableError, match=r"t\.csv: the table is not a regular file"):
        table_content(tmp_path / "t.csv")
