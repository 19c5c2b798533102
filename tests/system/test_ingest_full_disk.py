"""A disk that fills up is told at the first shard that does not fit, and what was written before is kept."""

import os

import numpy as np
import pytest
from ray.exceptions import RayTaskError

from data.curation.source_folders import list_folder
from data.dataset.buckets import Bucket
from data.video.codec import encode_clip
from launch.errors import describe
from pipeline.ingest import shard
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.shard import make_shards
from pipeline.run.commits import COMMIT_SUFFIX, ShardWriteError
from testing.ingest_faults import small_disk

NUM_VIDEOS, PER_SHARD = 160, 4


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of its own can be mounted by root only")
def test_a_full_disk_ends_the_run_at_once(cluster, tmp_path, monkeypatch):
    videos = tmp_path / "videos"
    videos.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), np.uint8)
    content = encode_clip(noise, 8)
    for number in range(NUM_VIDEOS):
        (videos / f"{number:03d}.mp4").write_bytes(content)
    bucket = Bucket(num_frames=5, height=64, width=64, fps=8)
    config = ShardConfig(buckets=(bucket,), max_clips_per_video=1, videos_per_shard=PER_SHARD)
    done = []
    original = shard.IsolatedPool.outcomes

    def counted(pool):
        for outcome in original(pool):
            done.append(outcome.job)
            yield outcome

    monkeypatch.setattr(shard.IsolatedPool, "outcomes", counted)
    with small_disk(tmp_path / "disk", 700_000) as resize:
        output = tmp_path / "disk" / "clips"
        with pytest.raises(RayTaskError) as caught:
            make_shards(list_folder(videos), output, config, 2)
        assert isinstance(caught.value.cause, ShardWriteError)
        told = describe(caught.value)
        assert told is not None
        assert "cannot be written to" in told
        assert f"{output} (No space left on device: 0." in told
        assert "MiB are free there" in told
        committed = {path: path.stat().st_mtime_ns for path in output.glob(f"*{COMMIT_SUFFIX}")}
        assert 1 <= len(committed) < NUM_VIDEOS // PER_SHARD // 2
        # One shard that did not fit, and what the two workers had in hand then.
        assert len(done) <= PER_SHARD * (len(committed) + 1 + 2 * 2)
        resize(NUM_VIDEOS * 100_000)
        manifest = make_shards(list_folder(videos), output, config, 2)
        assert manifest.num_samples == NUM_VIDEOS
        assert committed.items() <= {path: path.stat().st_mtime_ns for path in output.glob(f"*{COMMIT_SUFFIX}")}.items()
