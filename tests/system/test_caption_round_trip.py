"""A caption in any kind of file, stored in a shard, is read back as it was written, or its row is refused."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.curation.caption_table import read_caption_table
from data.curation.caption_text import CaptionError
from data.curation.captions import caption_of
from data.dataset.buckets import Bucket
from data.dataset.clip import VIDEO_MEMBER, ClipRecord, clip_key
from data.dataset.index import read_index, write_index
from data.dataset.shards import write_shard

BUCKET = Bucket(num_frames=1, height=16, width=16, fps=8)
FIELDS = {"dataset": "", "split": "train", "decoder": "pyav", "variant": "", "source_height": 16, "source_width": 16}
Rows = dict[str, str]


def as_csv(rows: Rows, delimiter: str = ",") -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter).writerows([("file", "caption"), *rows.items()])
    return buffer.getvalue().encode()


def records(rows: Rows) -> list[dict[str, str]]:
    return [{"file": file, "caption": caption} for file, caption in rows.items()]


TABLES: dict[str, Callable[[Rows], bytes]] = {
    "t.csv": as_csv,
    "t.TSV": lambda rows: as_csv(rows, "\t"),
    "t.jsonl": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records(rows)).encode(),
    "t.json": lambda rows: json.dumps(rows).encode(),
    "t.parquet": lambda rows: pq_bytes(pa.Table.from_pylist(records(rows))),
}


def pq_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def stored(folder: Path, captions: Rows) -> Rows:
    """The captions as a shard and the index of a dataset give them back."""
    samples = [
        (
            ClipRecord(
                key=clip_key(source, 0, BUCKET),
                source=source,
                start_seconds=0,
                caption=caption,
                **BUCKET.model_dump(),
                **FIELDS,
            ),
            b"",
        )
        for source, caption in captions.items()
    ]
    _, rows = write_shard(folder / "shard.tar", samples, VIDEO_MEMBER)
    write_index(folder, rows)
    content = (folder / "shard.tar").read_bytes()
    with tarfile.open(folder / "shard.tar") as tar:
        files = [tar.extractfile(member) for member in tar if member.name.endswith(".json")]
        in_records = [json.loads(file.read()) for file in files if file is not None]
    for row in read_index(folder):
        assert content[row.caption_offset : row.caption_offset + row.caption_size].decode() == row.caption
    assert {record["source"]: record["caption"] for record in in_records} == captions
    return {row.source: row.caption for row in read_index(folder)}


# Everything but halves of characters, which no file can hold.
CAPTIONS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20) | st.text(
    "a ,\"'\t\n\r\\;#\ufeff\u2028", max_size=9
)
NAMES = st.integers(0, 99).map(lambda number: f"{number:02}.mp4")


def one_line(caption: str) -> str:
    """Captions are stored as one line with single spaces."""
    return " ".join(caption.split())


def is_stored(caption: str) -> bool:
    """Control characters other than white space are refused."""
    return not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in one_line(caption))


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=120, deadline=None)
@given(rows=st.dictionaries(NAMES, CAPTIONS, min_size=1, max_size=6))
def test_captions_of_a_table_are_read_back_from_the_shard(name, rows):
    with TemporaryDirectory() as folder:
        table = Path(folder) / name
        table.write_bytes(TABLES[name](rows))
        if not all(map(is_stored, rows.values())):
            with pytest.raises(CaptionError, match=rf"{name}, row \d.*control character"):
                read_caption_table(table)
            return
        read = read_caption_table(table)
        captions = {file: caption_of(Path(folder), file, read) for file in rows}
        assert stored(Path(folder), captions) == {file: one_line(caption) for file, caption in rows.items()}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".txt", ".json"])
@settings(max_examples=120, deadline=None)
@given(caption=CAPTIONS, mark=st.sampled_from(["", "\ufeff"]))
def test_captions_of_sidecars_are_read_back_from_the_shard(suffix, caption, mark):
    with TemporaryDirectory() as folder:
        text = caption if suffix == ".txt" else json.dumps({"caption": caption})
        (Path(folder) / f"a{suffix}").write_bytes((mark + text).encode())
        written = (mark + text).removeprefix("\ufeff") if suffix == ".txt" else caption
        if not is_stored(written):
            with pytest.raises(CaptionError, match="control character"):
                caption_of(Path(folder), "a.mp4", {})
            return
        captions = {"a.mp4": caption_of(Path(folder), "a.mp4", {})}
        assert stored(Path(folder), captions) == {"a.mp4": one_line(written)}
