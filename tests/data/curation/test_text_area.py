"""Clips full of text are left out: subtitles and credits, drawn into real H.264 files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import ImageFont

from data.curation.text_area import covered_fraction, find_text, text_fraction
from data.video.augment import AugmentConfig
from data.video.codec import encode_clip
from data.video.extract import CutConfig, Span, read_spans
from testing.paths import ROOT
from testing.text_frames import BUCKET, CREDITS, FONT, moving, written


def spans_of(path: Path, frames: np.ndarray, augment: AugmentConfig | None = None) -> list[Span]:
    path.write_bytes(encode_clip(frames, 8))
    return read_spans(path, [BUCKET], 1, CutConfig(text_fraction=text_fraction, augment=augment or AugmentConfig()))


def test_areas_count_once_and_only_within_the_box():
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], np.float64)
    box = (0.0, 0.0, 10.0, 10.0)
    assert covered_fraction([], box) == 0
    assert covered_fraction([square], box) == 0.16
    assert covered_fraction([square, square + np.array([2, 0])], box) == 0.24
    assert covered_fraction([square, square + 5], box) == 0.32
    assert covered_fraction([square[[0, 2, 1, 3]]], box) == 0.16  # corners in an order that crosses itself
    assert covered_fraction([square - 2], box) == 0.04
    assert covered_fraction([square + 20], box) == 0
    assert covered_fraction([square * 100], box) == 1
    assert covered_fraction([square], (2.0, 2.0, 6.0, 4.0)) == 0.5


def test_the_area_is_that_of_the_lines_that_were_drawn():
    frame = written(moving()[:1], CREDITS, 30)[0]
    font = ImageFont.truetype(str(FONT), 30)
    boxes = [font.getbbox(line) for line in CREDITS]
    drawn = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) / (240 * 320)
    assert len(find_text(frame)) == len(CREDITS)
    assert 0.8 * drawn < text_fraction(frame, (0, 0, 320, 240)) < 1.6 * drawn


def test_moving_shapes_are_no_text():
    frames = np.stack([moving(240, number)[6] for number in range(0, 96, 8)])
    assert [find_text(frame) for frame in frames] == [[]] * len(frames)
    (word,) = find_text(written(frames[:1], ("stop",), 40)[0])
    assert word.shape == (4, 2)


def test_text_in_two_of_three_frames_decides(tmp_path):
    clip = moving()
    last = np.concatenate([clip[:8], written(clip[8:], CREDITS, 30)])
    most = np.concatenate([clip[:3], written(clip[3:], CREDITS, 30)])
    (faded,), (full,) = (spans_of(tmp_path / "a.mp4", frames) for frames in (last, most))
    assert faded.text_fraction == 0
    assert full.text_fraction is not None
    assert full.text_fraction > 0.2
    assert read_spans(tmp_path / "a.mp4", [BUCKET], 1)[0].text_fraction is None


def test_only_text_that_the_central_crop_keeps_counts(tmp_path):
    """A picture of 240 x 640 keeps its middle 240; the crops at its ends stay or go with that."""
    outside = written(moving(640), ("NEWS", "LIVE"), 50, left=10)
    inside = written(moving(640), ("NEWS", "LIVE"), 50, left=240)
    crops = AugmentConfig(crops=3)
    beside = spans_of(tmp_path / "a.mp4", outside, crops)
    within = spans_of(tmp_path / "a.mp4", inside, crops)
    assert [span.text_fraction for span in beside] == [0, 0, 0]
    assert {span.text_fraction for span in within} == {within[0].text_fraction}
    assert within[0].text_fraction is not None
    assert within[0].text_fraction > 0.15
    assert text_fraction(outside[0], (0, 0, 640, 240)) > 0.05


def test_a_detector_starts_no_threads():
    """Workers are processes side by side: each is to take one core."""
    code = """
import cv2, onnxruntime, psutil, numpy as np
from data.curation.text_area import find_text
before = psutil.Process().num_threads()
find_text(np.zeros((480, 640, 3), np.uint8))
print(psutil.Process().num_threads() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("0", 0), done.stderr
