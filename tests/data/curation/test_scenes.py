"""Scene cuts of a video made of three scenes, and of none."""

import numpy as np

from data.curation.scenes import find_cuts, find_scene_transitions
from data.dataset.buckets import Bucket
from data.video.codec import encode_clip
from data.video.decoders.selection import timelines
from data.video.extract import CutConfig, read_spans
from data.video.probe import probe_video
from data.video.spans import Transition
from testing.edits import draw_shot, join


def test_scene_cuts_of_a_film_made_of_two(tmp_path):
    scenes = [np.full((length, 64, 64, 3), level, np.uint8) for length, level in ((12, 20), (9, 130), (9, 240))]
    path = tmp_path / "two.mp4"
    path.write_bytes(encode_clip(np.concatenate(scenes), 8))
    timeline = next(timelines(path, probe_video(path)))
    assert find_cuts(timeline) == [Transition(12, 12), Transition(21, 21)]
    bucket = Bucket(num_frames=9, height=32, width=32, fps=8)
    spans = read_spans(path, [bucket], 9, CutConfig(find_cuts=find_cuts))
    assert [span.start_seconds for span in spans] == [0.0, 12 / 8, 21 / 8]


def test_no_clip_shows_a_frame_of_a_cross_fade(tmp_path):
    generator = np.random.default_rng(3)
    shots = [draw_shot(generator, 40, "drift") for _ in range(2)]
    frames, (edit,) = join(shots, ["dissolve"], [12])
    path = tmp_path / "two.mp4"
    path.write_bytes(encode_clip(frames, 12))
    bucket = Bucket(num_frames=5, height=32, width=32, fps=12)
    spans = read_spans(path, [bucket], 99, CutConfig(find_cuts=find_scene_transitions))
    shown = {round(span.start_seconds * 12) + step for span in spans for step in range(5)}
    assert len(shown) >= 40
    assert not shown & set(range(edit.start + 1, edit.end - 1))


def test_a_video_of_one_frame_has_no_transition(tmp_path):
    path = tmp_path / "one.mp4"
    path.write_bytes(encode_clip(np.zeros((1, 64, 64, 3), np.uint8), 8))
    assert find_scene_transitions(next(timelines(path, probe_video(path)))) == []
