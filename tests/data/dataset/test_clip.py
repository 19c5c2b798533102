"""Keys and splits are functions of source, span and bucket."""

from data.dataset.buckets import Bucket
from data.dataset.clip import clip_key, split_of

BUCKET = Bucket(num_frames=5, height=32, width=32, fps=4)


def test_clip_keys_depend_on_source_span_and_bucket():
    keys = {clip_key("a.mp4", 0.0, BUCKET), clip_key("a.mp4", 1.0, BUCKET), clip_key("b.mp4", 0.0, BUCKET)}
    keys.add(clip_key("a.mp4", 0.0, Bucket()))
    assert len(keys) == 4
    assert all(len(key) == 20 and "." not in key for key in keys)
    assert clip_key("a.mp4", 0.0, BUCKET) == clip_key("a.mp4", 0.0, BUCKET)


def test_split_shares():
    share = sum(split_of(f"{i}.mp4", 0.1) == "validation" for i in range(5000)) / 5000
    assert 0.08 < share < 0.12
    assert split_of("x.mp4", 0.0) == "train"
