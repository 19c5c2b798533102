"""Each small input that once went wrong is looked at by a test; a new one fails here until a test looks at it."""

import pytest

from data.curation.source_folders import list_folder
from data.dataset.buckets import Bucket
from data.video.codec import decode_clip
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.prepare import PrepareConfig, prepare_source
from testing.paths import CASES_DIR

# The rest of each name is looked at by the tests in the file named.
LOOKED_AT = {
    "README.md": "what is right",
    "captions": "tests/system/test_caption_cases.py",
    "config": "tests/launch/test_config.py",
    "mathematics.md": "tests/models",
    "plain.mp4": "this file",
    "prompts": "tests/pipeline/sample/test_requests.py",
    "video": "this file, and tests/data/video/test_extract.py",
}
VIDEOS = ["plain.mp4", *(f"sar_{name}" for name in ("container_only.mp4", "h264.mp4", "mpeg2.mpg", "vp9.mkv"))]


def test_no_case_is_left_out():
    assert {path.name for path in CASES_DIR.iterdir()} == LOOKED_AT.keys()
    assert sorted(path.name for path in CASES_DIR.rglob("*") if path.suffix in (".mp4", ".mkv", ".mpg")) == VIDEOS


@pytest.mark.parametrize("name", VIDEOS)
def test_every_video_becomes_a_clip_of_its_shape(name):
    (source,) = (source for source in list_folder(CASES_DIR) if source.name.endswith(name))
    buckets = (Bucket(num_frames=1, height=144, width=256), Bucket(num_frames=1, height=144, width=144))
    report, ((record, payload),) = prepare_source(
        PrepareConfig(buckets, {}, ShardConfig(buckets=buckets, max_clips_per_video=1)), source
    )
    assert (report.quarantined, report.filtered) == (None, [])
    assert (record.source_height, record.source_width) == ((576, 1024) if "sar" in name else (128, 128))
    assert record.bucket == buckets["sar" not in name]
    assert decode_clip(payload).shape == (1, record.height, record.width, 3)
