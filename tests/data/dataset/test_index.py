"""The index: rows of a mapped file that are the very rows that were written."""

import pickle
from dataclasses import replace

import pytest

from data.dataset.clip import VIDEO_MEMBER
from data.dataset.index import Index, by_group, cell_of, read_index, shard_runs, values, write_index
from data.dataset.rows import DISTINCT_TEXTS, NAMES, IndexRow
from data.dataset.shards import write_shard
from data.errors import DatasetError
from data.stream.loader import subsets_of
from testing.records import made_up_clip
from testing.shapes import SQUARE, STILL

NUMBER = 40
LOCATION = ("key", "shard", "offset", "size", "crc32")


@pytest.fixture
def rows(tmp_path) -> list[IndexRow]:
    """Of four shards, two buckets, two datasets and both splits; captions of several lengths, also empty."""
    samples = []
    for number in range(NUMBER):
        record = made_up_clip(number, (SQUARE, STILL)[number % 3 == 0])
        split = "validation" if number % 5 == 0 else "train"
        caption = ("é", "", "a\nb\u2028", "🐈‍⬛ 猫")[number % 4] * number
        record = record.model_copy(
            update={"dataset": "ab"[number % 2], "split": split, "caption": caption, "source": f"{97 * number % 7}.mp4"}
        )
        samples.append((record, bytes([number]) * (number + 1)))
    written = []
    for shard in range(4):
        name = f"shard-{shard:05d}.tar"
        written += write_shard(tmp_path / name, samples[10 * shard : 10 * shard + 10], VIDEO_MEMBER)[1]
    write_index(tmp_path, written)
    return written


def test_an_index_is_its_rows(tmp_path, rows):
    index = read_index(tmp_path)
    assert list(index) == rows
    assert [index[-1], index[-NUMBER]] == [rows[-1], rows[0]]
    assert list(index[7:30:3]) == rows[7:30:3]
    assert list(index[::-1]) == rows[::-1]
    for number, row in enumerate(rows):
        location = index.location(number)
        assert all(getattr(location, name) == getattr(row, name) for name in LOCATION)
        assert [cell_of(index, number, name) for name in NAMES] == [getattr(row, name) for name in NAMES]
        assert {name: type(value) for name, value in vars(index[number]).items()} == {
            name: type(value) for name, value in vars(row).items()
        }
    for name in NAMES:
        assert index.values(name) == list(values(rows, name)) == [getattr(row, name) for row in rows]
    for outside in (NUMBER, -NUMBER - 1):
        with pytest.raises(IndexError, match=str(NUMBER)):
            index[outside]


def test_extreme_values_are_kept(tmp_path, rows):
    odd = [
        replace(rows[0], offset=2**62, size=0, crc32=2**32 - 1, fps=1e-300, start_seconds=-0.1, caption="x" * 2**17),
        replace(rows[1], variant="flip", decoder="pillow", caption="\0", key="", source="a" * 4096),
    ]
    write_index(tmp_path, odd)
    assert list(read_index(tmp_path)) == odd


def test_a_split_and_a_choice_of_an_index_are_indices(tmp_path, rows):
    held_out = read_index(tmp_path, "validation")
    assert list(held_out) == rows[::5]
    assert [list(held_out[1:3]), list(read_index(tmp_path)[::-7])] == [rows[5:15:5], rows[::-7]]
    assert held_out.values("caption") == [row.caption for row in rows[::5]]
    assert not read_index(tmp_path, "train")[:0]
    write_index(tmp_path, rows[::5])
    assert len(read_index(tmp_path, "train")) == 0


@pytest.mark.parametrize("split", [None, "train", "validation"])
def test_rows_are_ordered_by_a_text_as_python_orders_them(tmp_path, rows, split):
    index = read_index(tmp_path, split)
    for name in DISTINCT_TEXTS:
        cells = index.values(name)
        assert index.order(name).tolist() == sorted(range(len(index)), key=cells.__getitem__)


def test_a_dataset_without_samples_has_an_empty_index(tmp_path):
    write_index(tmp_path, [])
    for split in (None, "train"):
        index = read_index(tmp_path, split)
        assert list(index) == index.values("caption") == index.shard_runs() == []
        assert index.by_group() == {}


@pytest.mark.parametrize("chunk_rows", [3, 2**16])
@pytest.mark.parametrize("split", [None, "train", "validation"])
def test_groups_and_subsets_of_an_index_are_those_of_its_rows(tmp_path, rows, split, chunk_rows, monkeypatch):
    monkeypatch.setattr("data.dataset.index_build.BATCH_ROWS", chunk_rows)
    monkeypatch.setattr("data.dataset.index.CHUNK_ROWS", chunk_rows)
    write_index(tmp_path, rows)
    index, plain = read_index(tmp_path, split), [row for row in rows if split in (None, row.split)]
    assert shard_runs(index) == shard_runs(plain)
    ours, theirs = by_group(index), by_group(plain)
    assert list(ours) == list(theirs)
    for group, expected in theirs.items():
        assert list(ours[group]) == expected
        assert shard_runs(ours[group]) == shard_runs(expected)
        assert shard_runs(ours[group][::2]) == shard_runs(expected[::2])
    for our, their in zip(subsets_of(tmp_path, index, {}), subsets_of(tmp_path, plain, {}), strict=True):
        assert list(our.rows) == list(their.rows)
        assert (our.bucket, our.part()) == (their.bucket, their.part())


def test_a_shard_that_is_met_again_is_another_run(tmp_path, rows):
    mixed = [*rows[:3], *rows[10:12], *rows[3:5]]
    write_index(tmp_path, mixed)
    assert [run.num_rows for run in read_index(tmp_path).shard_runs()] == [3, 2, 2]
    for group, part in by_group(read_index(tmp_path, "train")).items():
        same = [row for row in mixed if row.split == "train" and (row.bucket, row.dataset) == group]
        assert shard_runs(part) == shard_runs(same)


def test_a_pickled_index_holds_no_rows(tmp_path, rows):
    many = [replace(row, key=f"{number:05}") for number, row in enumerate(rows * 100)]
    write_index(tmp_path, many)
    whole, train = read_index(tmp_path), read_index(tmp_path, "train")
    for index in (whole, train, *train.by_group().values()):
        pickled = pickle.dumps(index)
        assert len(pickled) < 800
        assert list(pickle.loads(pickled)) == list(index)
        assert isinstance(index, Index)
        assert pickle.loads(pickled).shard_runs() == index.shard_runs()
    few = pickle.dumps(whole[5:9])
    assert list(pickle.loads(few)) == many[5:9]
    write_index(tmp_path, rows)
    with pytest.raises(DatasetError, match="changed while it was in use"):
        pickle.loads(few)
