"""The index in memory: columns that give back the very rows."""

import pytest

from data.dataset.clip import VIDEO_MEMBER
from data.dataset.index import LOCATION_NAMES, chosen, read_index, values, write_index
from data.dataset.shards import write_shard
from data.stream.loader import subsets_of
from testing.records import made_up_clip

NUMBER = 40


@pytest.fixture
def rows(tmp_path):
    samples = []
    for number in range(NUMBER):
        record = made_up_clip(number)
        split = "validation" if number % 5 == 0 else "train"
        record = record.model_copy(update={"dataset": "ab"[number % 2], "split": split, "caption": f"é {number}"})
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
    for number, row in enumerate(rows):
        location = index.location(number)
        assert all(getattr(location, name) == getattr(row, name) for name in LOCATION_NAMES)
    for name in vars(rows[0]):
        assert index.values(name) == values(rows, name) == [getattr(row, name) for row in rows]
    for outside in (NUMBER, -NUMBER - 1):
        with pytest.raises(IndexError, match=str(NUMBER)):
            index[outside]


def test_a_split_and_a_choice_of_an_index_are_indices(tmp_path, rows):
    held_out = read_index(tmp_path, "validation")
    assert list(held_out) == rows[::5]
    assert list(chosen(held_out, [3, 0, 3])) == chosen(rows[::5], [3, 0, 3]) == [rows[15], rows[0], rows[15]]
    assert not read_index(tmp_path, "train")[:0]


def test_a_dataset_without_samples_has_an_empty_index(tmp_path):
    write_index(tmp_path, [])
    assert list(read_index(tmp_path)) == read_index(tmp_path).values("caption") == []


def test_subsets_of_an_index_are_those_of_its_rows(tmp_path, rows):
    for ours, theirs in zip(
        subsets_of(tmp_path, read_index(tmp_path), {}), subsets_of(tmp_path, rows, {}), strict=True
    ):
        assert list(ours.rows) == theirs.rows
        assert (ours.bucket, ours.part()) == (theirs.bucket, theirs.part())
