"""Black bars are cut off before the shape of a clip is chosen; dark scenes are left whole."""

import numpy as np
import pytest

from data.dataset.buckets import Bucket
from data.video.bars import WHOLE_PICTURE, find_picture
from data.video.codec import encode_clip
from data.video.extract import CutConfig, measure_source, read_spans
from testing.edits import draw_picture


def boxed(top: int, bottom: int, left: int, right: int, num_frames: int = 9) -> np.ndarray:
    frames = np.zeros((num_frames, 96, 128, 3), np.uint8)
    inside = frames[:, top : 96 - bottom, left : 128 - right]
    inside[:] = draw_picture(np.random.default_rng(0), *inside.shape[1:3])
    return np.maximum(frames, 16)


@pytest.mark.parametrize("edges", [(12, 12, 0, 0), (0, 0, 16, 16), (12, 4, 0, 0), (12, 12, 16, 16), (0, 0, 0, 0)])
def test_the_picture_within_the_bars_is_found(edges):
    top, bottom, left, right = edges
    picture = find_picture(list(boxed(*edges)))
    assert (picture.top, picture.bottom) == (top / 96, 1 - bottom / 96)
    assert (picture.left, picture.right) == (left / 128, 1 - right / 128)


def test_bars_are_what_all_frames_have():
    frames = [*boxed(24, 24, 0, 0), *boxed(12, 12, 0, 0)]
    assert find_picture(frames).top == 12 / 96


def test_a_dark_video_or_one_light_in_it_is_left_whole():
    dark = np.full((3, 96, 128, 3), 10, np.uint8)
    assert find_picture(list(dark)) == WHOLE_PICTURE
    dark[:, 40:50, 60:70] = 255
    assert find_picture(list(dark)) == WHOLE_PICTURE


def test_the_picture_alone_decides_the_shape(tmp_path):
    path = tmp_path / "boxed.mp4"
    path.write_bytes(encode_clip(boxed(16, 16, 0, 0), 8, crf=4))
    buckets = [Bucket(num_frames=5, height=48, width=64, fps=8), Bucket(num_frames=5, height=32, width=64, fps=8)]
    (whole,) = read_spans(path, buckets, 1)
    (cut,) = read_spans(path, buckets, 1, CutConfig(crops_bars=True))
    assert (whole.bucket, cut.bucket) == (buckets[0], buckets[1])
    assert (whole.source_height, cut.source_height) == (96, 64)
    assert (measure_source(path).height, measure_source(path, crops_bars=True).height) == (96, 64)
    assert whole.frames[:, :6].max() < 24
    assert cut.frames[:, :4].mean() > 60
