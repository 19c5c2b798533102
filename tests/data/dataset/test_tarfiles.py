"""A tar file without samples."""

from data.dataset.clip import VIDEO_MEMBER
from data.dataset.shards import write_shard
from data.dataset.tarfiles import read_samples


def test_a_shard_without_samples_is_read_as_none(tmp_path):
    path = tmp_path / "shard.tar"
    write_shard(path, [], VIDEO_MEMBER)
    assert list(read_samples(path, frozenset({"mp4"}))) == []
