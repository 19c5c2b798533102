"""Clips full of text are left out: subtitles and credits, drawn into real H.264 files."""

import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from test_road import ROOT, TINY, launch

from data.curation.config import FilterConfig
from data.curation.ledger import read_rejections
from data.curation.sources import list_folder
from data.curation.text_area import covered_fraction, find_text, text_fraction
from data.dataset.buckets import Bucket
from data.dataset.index import read_index
from data.synthetic import combinations, random_scene, render
from data.video.augment import AugmentConfig
from data.video.codec import encode_clip
from data.video.extract import Span, read_spans
from launch.inspect import describe_folder
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.prepare import CutConfig, prepare_source
from pipeline.ingest.shard import make_shards

BUCKET = Bucket(num_frames=9, height=64, width=64, fps=8)
FONT = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
CREDITS = ("DIRECTED BY", "ANNA KARLSSON", "PRODUCED BY", "PETER NOWAK")


def moving(width: int = 320, number: int = 0) -> np.ndarray:
    """12 frames of 240 x `width` pixels."""
    return render(random_scene(0, number, combinations()), 12, max(240, width))[:, :240, :width]


def written(frames: np.ndarray, lines: tuple[str, ...], pixels: int, left: int = 10, top: int = 10) -> np.ndarray:
    """The frames with text over them, as subtitles are burnt in."""
    font, drawn = ImageFont.truetype(str(FONT), pixels), []
    for frame in frames:
        image = Image.fromarray(frame)
        for number, line in enumerate(lines):
            place = (left, top + round(1.3 * pixels) * number)
            ImageDraw.Draw(image).text(place, line, "white", font, stroke_width=1, stroke_fill="black")
        drawn.append(np.asarray(image))
    return np.stack(drawn)


def spans_of(path: Path, frames: np.ndarray, augment: AugmentConfig | None = None) -> list[Span]:
    path.write_bytes(encode_clip(frames, 8))
    return read_spans(path, [BUCKET], 1, text_fraction=text_fraction, augment=augment or AugmentConfig())


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
    frames = [moving(240, number)[6] for number in range(0, 96, 8)]
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
    assert within[0].text_fraction > 0.15
    assert text_fraction(outside[0], (0, 0, 640, 240)) > 0.05


def test_images_are_looked_at_too(tmp_path):
    image = Bucket(num_frames=1, height=64, width=64)
    (tmp_path / "clean").mkdir()
    Image.fromarray(moving()[0]).save(tmp_path / "clean.png")
    Image.fromarray(written(moving()[:1], CREDITS, 30)[0]).save(tmp_path / "poster.png")
    config = ShardConfig(buckets=(image,), filters=FilterConfig(text_fraction=0.1))
    sources = list_folder(tmp_path, config.suffixes)
    reports = [prepare_source(CutConfig((image,), {}, config), source)[0] for source in sources]
    assert [len(report.clips) for report in reports] == [1, 0]
    assert [rejection.reason for rejection in reports[1].filtered] == ["text_heavy"]


def test_the_ledger_counts_what_is_full_of_text(cluster, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    clips = {
        "clean": moving(),
        "credits": written(moving(), CREDITS, 30),
        "sign": written(moving(), ("exit",), 12),
        "subtitles": written(moving(), ("And so it was, that", "night on the river"), 30, top=150),
    }
    for name, frames in clips.items():
        (videos / f"{name}.mp4").write_bytes(encode_clip(frames, 8))
    config = ShardConfig(buckets=(BUCKET,), filters=FilterConfig(text_fraction=0.1))
    manifest = make_shards(list_folder(videos), tmp_path / "clips", config, 2)
    assert [row.source for row in read_index(tmp_path / "clips")] == ["clean.mp4", "sign.mp4"]
    filtered = read_rejections(tmp_path / "clips" / "filtered.jsonl")
    assert [(r.source, r.stage, r.reason, r.start_seconds) for r in filtered] == [
        ("credits.mp4", "filter", "text_heavy", 0.0),
        ("subtitles.mp4", "filter", "text_heavy", 0.0),
    ]
    for rejection in filtered:
        share, told = rejection.detail.split("% of its picture is text, ")
        assert 10 < float(share) < 70
        assert told == "more than 10%"
        assert "data.filters.text_fraction higher" in rejection.retry
    assert manifest.filtered == {"text_heavy": 2}
    assert manifest.ledger is not None
    assert manifest.ledger.model_dump() == {"sources": 4, "shards": 2, "filtered": 2, "quarantine": 0}
    assert "2 text_heavy" in describe_folder(tmp_path / "clips")
    off = make_shards(list_folder(videos), tmp_path / "clips", ShardConfig(buckets=(BUCKET,)), 2)
    assert (off.num_samples, off.filtered) == (4, {})  # the settings are part of what a shard is made from


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


def test_a_missing_package_is_told_before_work_starts(tmp_path, monkeypatch):
    (tmp_path / "rapidocr_onnxruntime.py").write_text("raise ImportError('there is no such package')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(runs=tmp_path / "runs"), encoding="utf-8")
    done = launch("shard", str(config), "--set", "data.filters.text_fraction=0.1", "--set", f"data.source={tmp_path}")
    assert done.returncode != 0
    assert "data.filters.text_fraction needs RapidOCR (there is no such package): pip install" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "tiny" / "clips").exists()


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_fraction_lies_between_0_and_1(value):
    with pytest.raises(ValueError, match="text_fraction"):
        FilterConfig(text_fraction=value)
