"""The mapped file of an index: made once, never used when it is stale or cut, and never needed."""

import logging
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.dataset import index_places
from data.dataset.index import read_index, write_index
from data.dataset.index_places import INDEX_NAME, MAPPED_NAME
from data.dataset.rows import IndexRow
from data.errors import DatasetError
from testing.records import index_row

NUMBER = 50


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def rows(tmp_path) -> list[IndexRow]:
    made = [index_row(number) for number in range(NUMBER)]
    write_index(tmp_path, made)
    return made


@pytest.fixture
def builds(monkeypatch) -> list[Path]:
    """Where files were built."""
    places, build = [], index_places.build_index_file

    def counted(parquet, path, made_from):
        places.append(path)
        build(parquet, path, made_from)

    monkeypatch.setattr(index_places, "build_index_file", counted)
    return places


def block(path: Path) -> None:
    """Make a path one that no file can be published at, also not by an administrator."""
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)


def test_the_file_is_made_when_the_index_is_written(tmp_path, rows, builds):
    assert list(read_index(tmp_path)) == rows
    assert builds == []


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_an_older_dataset_has_only_a_parquet_file(tmp_path, rows, builds, kind):
    """Columns in another order and with other types of the same meaning, rows in one group, a column too many."""
    (tmp_path / MAPPED_NAME).unlink()
    table = pa.Table.from_pylist([{"another": number, **asdict(row)} for number, row in enumerate(rows)])
    columns = {name: table[name] for name in reversed(table.column_names)}
    columns["caption"] = columns["caption"].cast(kind)
    columns["split"] = columns["split"].cast(pa.dictionary(pa.int32(), pa.string()))
    columns["height"] = columns["height"].cast(pa.int32())
    pq.write_table(pa.table(columns), tmp_path / INDEX_NAME)
    for _ in range(2):
        assert list(read_index(tmp_path)) == rows
    assert builds == [tmp_path / MAPPED_NAME]


def test_an_older_dataset_without_samples_has_no_columns(tmp_path):
    pq.write_table(pa.Table.from_pylist([]), tmp_path / INDEX_NAME)
    assert list(read_index(tmp_path)) == list(read_index(tmp_path, "train")) == []


def test_a_stale_file_is_made_again(tmp_path, rows, builds):
    """The other index has as many rows, columns and bytes, and texts of the same lengths."""
    old = read_index(tmp_path)
    other = [replace(row, caption=row.caption[::-1]) for row in rows]
    mapped = (tmp_path / MAPPED_NAME).read_bytes()
    write_index(tmp_path, other)
    assert list(read_index(tmp_path)) == other
    (tmp_path / MAPPED_NAME).write_bytes(mapped)
    builds.clear()
    assert list(read_index(tmp_path, "train")) == [row for row in other if row.split == "train"]
    assert len(builds) == 1
    assert list(old) == rows, "an index that is open stays as it was"


def test_a_dataset_that_was_copied_is_read(tmp_path, rows, builds):
    """The copy is newer, so that the file may be made again, which changes nothing."""
    time.sleep(0.01)
    (tmp_path / "copy").mkdir()
    for name in (INDEX_NAME, MAPPED_NAME):
        (tmp_path / "copy" / name).write_bytes((tmp_path / name).read_bytes())
    assert list(read_index(tmp_path / "copy")) == rows
    assert len(builds) <= 1


def test_a_cut_file_is_made_again(tmp_path, rows, builds):
    path = tmp_path / MAPPED_NAME
    whole = path.read_bytes()
    lengths = [0, 7, 8, 40, len(whole) // 2, len(whole) - 8, len(whole) - 1]
    for length in lengths:
        path.write_bytes(whole[:length])
        assert list(read_index(tmp_path)) == rows
    for begin, end in ((0, 8), (len(whole) - 40, len(whole) - 16), (len(whole) - 16, len(whole) - 8)):
        path.write_bytes(whole[:begin] + b"\xff" * (end - begin) + whole[end:])
        assert list(read_index(tmp_path)) == rows
    assert len(builds) == len(lengths) + 3
    assert path.read_bytes() == whole


def test_an_interrupted_build_leaves_nothing_that_is_read(tmp_path, rows, monkeypatch):
    (tmp_path / MAPPED_NAME).unlink()
    with monkeypatch.context() as patched:
        patched.setattr("data.dataset.index_build._write_texts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            read_index(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [INDEX_NAME]
    (tmp_path / f".tmp-{MAPPED_NAME}-0123").write_bytes(b"of a process that was killed")
    assert list(read_index(tmp_path)) == rows


def test_threads_that_wait_for_the_file_make_it_once(tmp_path, rows, builds):
    (tmp_path / MAPPED_NAME).unlink()
    with ThreadPoolExecutor(8) as pool:
        for index in pool.map(read_index, [tmp_path] * 8):
            assert list(index) == rows
    assert builds == [tmp_path / MAPPED_NAME]


PROCESS = """
import os, sys, time
from pathlib import Path
from data.dataset import index_places
from data.dataset.index import read_index

folder, build = Path(sys.argv[1]), index_places.build_index_file

def slow(*arguments):
    with (folder / "builds").open("a") as file:
        file.write("x")
    time.sleep(0.5)
    build(*arguments)

index_places.build_index_file = slow
print("ready", flush=True)
sys.stdin.readline()
print([row.key for row in read_index(folder)])
"""


@pytest.mark.slow
def test_processes_that_wait_for_the_file_make_it_once(tmp_path, rows):
    (tmp_path / MAPPED_NAME).unlink()
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate()[0].strip() for process in both]
    assert answers == [str([row.key for row in rows])] * 2
    assert (tmp_path / "builds").read_text() == "x"


def test_a_folder_that_cannot_be_written_has_its_file_in_the_cache(tmp_path, rows, builds, cache):
    block(tmp_path / MAPPED_NAME)
    for _ in range(2):
        assert list(read_index(tmp_path)) == rows
    assert builds == [tmp_path / MAPPED_NAME, *cache.rglob(f"*{MAPPED_NAME}")]
    other = [replace(row, caption="other") for row in rows]
    write_index(tmp_path, other)
    assert list(read_index(tmp_path)) == other
    assert len(list(cache.rglob("*"))) == 2, "one folder, one file"


def test_where_nothing_can_be_written_each_process_has_its_own(tmp_path, rows, builds, cache, caplog, monkeypatch):
    block(tmp_path / MAPPED_NAME)
    (cache / "reelflow").touch()
    with caplog.at_level(logging.WARNING):
        assert list(read_index(tmp_path)) == rows
    assert "each process makes an index of its own" in caplog.text
    assert str(tmp_path / MAPPED_NAME) in caplog.text
    assert len(builds) == 3
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert list(read_index(tmp_path)) == rows


def test_a_full_disk_is_told(tmp_path, rows):
    """A limit on the size of files that this process writes, which fails as a full disk does, in every folder."""
    (tmp_path / MAPPED_NAME).unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DatasetError, match=rf"no folder has room for {MAPPED_NAME} \(.*File too large"):
            read_index(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(read_index(tmp_path)) == rows


def set_column(name: str, values: pa.Array):
    return lambda table: table.set_column(table.column_names.index(name), name, values)


DAMAGE = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:500]), "is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "missing": (lambda path: path.unlink(), "holds no index"),
    "lacks": (lambda table: table.drop_columns(["fps", "split"]), "it lacks split, fps"),
    "null": (set_column("height", pa.array([None] * NUMBER, pa.int64())), "it has rows without height"),
    "null text": (set_column("caption", pa.array([None] * NUMBER, pa.string())), "it has rows without caption"),
    "type": (set_column("width", pa.array(["a"] * NUMBER)), "is damaged"),
    "fraction": (set_column("width", pa.array([0.5] * NUMBER)), "is damaged"),
    "no UTF-8": (set_column("caption", pa.array([b"\xff"] * NUMBER).view(pa.string())), "is damaged"),
    "no UTF-8 label": (set_column("bucket", pa.array([b"\xff"] * NUMBER).view(pa.string())), "is damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_index_is_named(tmp_path, rows, name, cache):
    damage, message = DAMAGE[name]
    path = tmp_path / INDEX_NAME
    if name in ("cut", "empty", "missing"):
        damage(path)
    else:
        pq.write_table(damage(pq.read_table(path)), path)
    with pytest.raises(DatasetError, match=message) as caught:
        read_index(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert not list(cache.rglob("*")), "no other folder is tried"


def test_row_groups_do_not_change_a_byte(tmp_path, rows):
    """Each is read by a reader of its own; what is written is that of one pass over all rows."""
    table, sections = pq.read_table(tmp_path / INDEX_NAME), []
    for size in (NUMBER, 7, 1):
        (tmp_path / MAPPED_NAME).unlink()
        pq.write_table(table, tmp_path / INDEX_NAME, row_group_size=size)
        assert pq.read_metadata(tmp_path / INDEX_NAME).num_row_groups == -(-NUMBER // size)
        assert list(read_index(tmp_path)) == rows
        content = (tmp_path / MAPPED_NAME).read_bytes()
        sections.append(content[: content.rindex(b'{"made_from')])
    assert sections[0] == sections[1] == sections[2]
