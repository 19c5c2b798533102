"""From one source to its clips: spans, keys, sizes and filters."""

import os
import struct
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from data.curation.config import FilterConfig
from data.curation.source import Source
from data.curation.source_folders import list_folder
from data.curation.sources import list_sources
from data.dataset.buckets import Bucket
from data.video.codec import encode_clip
from data.video.spans import Placement, Stretch
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.prepare import Allowance, PrepareConfig, prepare_source
from testing.text_frames import CREDITS, moving, written

BUCKETS = (Bucket(num_frames=5, height=32, width=32, fps=8),)

CUT = PrepareConfig(BUCKETS, {}, ShardConfig(buckets=BUCKETS, max_clips_per_video=9))


def test_names_that_are_no_unicode_are_written_in_hexadecimal(tmp_path):
    content = encode_clip(np.zeros((8, 32, 32, 3), np.uint8), 8)
    (tmp_path / os.fsdecode(b"\xff.mp4")).write_bytes(content)
    sources = list_sources(str(tmp_path))
    assert [source.name for source in sources] == ["\\xff.mp4"]
    report, clips = prepare_source(CUT, sources[0])
    assert len(clips) == 1
    assert report.model_validate_json(report.model_dump_json()) == report


def test_a_stretch_is_part_of_the_key(shapes_dir):
    whole, part = (
        Source("a.mp4", str(shapes_dir / "a.mp4"), "a.mp4", shapes_dir, ""),
        Source("a.mp4#t=0,2", str(shapes_dir / "a.mp4"), "a.mp4", shapes_dir, "", stretch=Stretch(0, 2)),
    )
    keys = [clip.key for source in (whole, part) for clip in prepare_source(CUT, source)[0].clips]
    assert len(set(keys)) == len(keys)


def test_the_size_of_a_source_is_that_of_what_it_shows(clips_dir, shapes_dir):
    turned = clips_dir / "robust_pyscenedetect" / "issue-134-rotate.mp4"
    with av.open(str(turned)) as container:
        stored = (container.streams.video[0].height, container.streams.video[0].width)
    sources = [Source(path.name, str(path), path.name, path.parent, "") for path in (turned, shapes_dir / "a.mp4")]
    sizes = [
        {(record.source_height, record.source_width) for record, _ in prepare_source(CUT, source)[1]}
        for source in sources
    ]
    assert sizes == [{stored[::-1]}, {(48, 48)}]
    assert stored[0] != stored[1]


def test_images_are_looked_at_too(tmp_path):
    image = Bucket(num_frames=1, height=64, width=64)
    (tmp_path / "clean").mkdir()
    Image.fromarray(moving()[0]).save(tmp_path / "clean.png")
    Image.fromarray(written(moving()[:1], CREDITS, 30)[0]).save(tmp_path / "poster.png")
    config = ShardConfig(buckets=(image,), filters=FilterConfig(text_fraction=0.1))
    sources = list_folder(tmp_path, config.suffixes)
    reports = [prepare_source(PrepareConfig((image,), {}, config), source)[0] for source in sources]
    assert [len(report.clips) for report in reports] == [1, 0]
    assert [rejection.reason for rejection in reports[1].filtered] == ["text_heavy"]


def test_a_name_that_several_videos_share_is_part_of_the_fingerprint():
    config = ShardConfig(buckets=BUCKETS)
    plain = PrepareConfig(BUCKETS, {"a.mp4": "one"}, config)
    shared = PrepareConfig(BUCKETS, {"a.mp4": "one"}, config, frozenset({"a.mp4"}))
    assert plain.fingerprint() != shared.fingerprint()


def test_a_video_whose_name_is_no_unicode_has_its_own_sidecar(tmp_path):
    content = encode_clip(np.zeros((8, 32, 32, 3), np.uint8), 8)
    (tmp_path / os.fsdecode(b"\xff.mp4")).write_bytes(content)
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("a red circle")
    _, clips = prepare_source(CUT, list_sources(str(tmp_path))[0])
    assert [record.caption for record, _ in clips] == ["a red circle"]


def test_a_bad_sidecar_whose_name_is_no_unicode_is_named_in_quarantine(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).write_bytes(encode_clip(np.zeros((8, 32, 32, 3), np.uint8), 8))
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"caf\xe9")
    report, _ = prepare_source(CUT, list_sources(str(tmp_path))[0])
    assert report.quarantined is not None
    assert report.quarantined.detail.startswith("its sidecar caf\\xe9.txt cannot be read: it is not UTF-8")
    assert report.model_validate_json(report.model_dump_json()) == report


def test_the_clips_of_a_long_video_are_spread_over_it(tmp_path):
    (tmp_path / "a.mp4").write_bytes(encode_clip(np.zeros((200, 32, 32, 3), np.uint8), 8))
    (source,) = list_folder(tmp_path)
    placements: tuple[tuple[Placement, int | None], ...] = (("start", 4), ("even", 4), ("random", None))
    of_placement = {
        placement: [
            clip.start_seconds
            for clip in prepare_source(
                PrepareConfig(BUCKETS, {}, ShardConfig(max_clips_per_video=most, clip_placement=placement)), source
            )[0].clips
        ]
        for placement, most in placements
    }
    assert of_placement["start"] == [0, 0.625, 1.25, 1.875]
    assert of_placement["even"] == [5 * 0.625, 15 * 0.625, 25 * 0.625, 35 * 0.625]
    assert of_placement["random"] == [number * 0.625 for number in range(40)]


def test_a_video_may_take_longer_the_longer_it_is_but_never_stand_still(monkeypatch):
    now, ends = [0.0], []
    monkeypatch.setattr("pipeline.ingest.prepare.monotonic", lambda: now[0])
    monkeypatch.setattr("pipeline.ingest.prepare.allow_until", ends.append)
    allowance = Allowance(timeout_seconds=100, seconds_per_minute=30)
    now[0] = 10
    allowance.begun(video_seconds=600)  # 100 + 10 * 30 = 400 in all
    for now[0] in (50, 299, 350):
        allowance.frame_read()
    assert ends == [110, 150, 399, 400]


@pytest.mark.parametrize("side", [10_000, 14_000])  # the second is more than Pillow opens
def test_a_large_picture_is_left_out_by_name(tmp_path, side):
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # a bit per pixel, none of which need follow
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b""))
    ]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    image = Bucket(num_frames=1, height=64, width=64)
    config = ShardConfig(buckets=(image,))
    (source,) = list_folder(tmp_path, config.suffixes)
    report, clips = prepare_source(PrepareConfig((image,), {}, config), source)
    assert ([rejection.reason for rejection in report.filtered], len(clips)) == (["too_large"], 0)
    assert report.filtered[0].retry.startswith("set data.filters.too_large_pixels higher")
