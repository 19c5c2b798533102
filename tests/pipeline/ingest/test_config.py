"""Bucket settings that cannot be satisfied are refused."""

import pytest
from pydantic import ValidationError

from pipeline.ingest.config import ShardConfig
from testing.shapes import SQUARE


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"buckets": ()}, "buckets is empty"),
        ({"buckets": (SQUARE, SQUARE)}, "names 9x48x48@8 twice"),
        ({"buckets": (SQUARE,), "choose_buckets": {}}, "keep one of them"),
        ({"clip_placement": "scenes"}, "scene_detection is off"),
        ({"choose_buckets": {"num_frames": [16]}}, "use 13 or 17"),
        ({"choose_buckets": {"num_frames": []}}, "name at least one length"),
        ({"choose_buckets": {"pixels": 300, "side_multiple": 32}}, "not even a square of 32"),
    ],
)
def test_impossible_buckets_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        ShardConfig(**fields)
