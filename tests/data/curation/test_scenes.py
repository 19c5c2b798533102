"""Scene cuts of a video made of two scenes."""

import numpy as np

from data.curation.scenes import find_cuts
from data.dataset.buckets import Bucket
from data.video.codec import encode_clip
from data.video.decoders.selection import timelines
from data.video.extract import CutConfig, read_spans
from data.video.probe import probe_video


def test_scene_cuts_of_a_film_made_of_two(tmp_path):
    scenes = [np.full((length, 64, 64, 3), level, np.uint8) for length, level in ((12, 20), (9, 130), (9, 240))]
    path = tmp_path / "two.mp4"
    path.write_bytes(encode_clip(np.concatenate(scenes), 8))
    timeline = next(timelines(path, probe_video(path)))
    assert find_cuts(timeline) == [12, 21]
    bucket = Bucket(num_frames=9, height=32, width=32, fps=8)
    spans = read_spans(path, [bucket], 9, CutConfig(find_cuts=find_cuts))
    assert [span.start_seconds for span in spans] == [0.0, 12 / 8, 21 / 8]
