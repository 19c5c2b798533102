"""Video in and out, captions, keys: on real files."""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data.dataset.buckets import (
    Bucket,
    BucketChoice,
    SourceShape,
    choose_buckets,
)
from data.errors import VideoError
from data.video.augment import AugmentConfig
from data.video.codec import decode_clip, encode_clip
from data.video.decoders import selection
from data.video.decoders.pyav_reader import SCALING, packet_timeline
from data.video.decoders.pyav_stream import decode_frames
from data.video.decoders.timeline import Timeline, UnfitDecoderError
from data.video.extract import CutConfig, Progress, Span, cut_file, measure_source, read_spans
from data.video.probe import Probe, probe_video, square_size
from data.video.resize import cover_size
from testing.paths import CASES_DIR
from testing.shapes import SQUARE, WIDE


def test_a_video_of_unknown_length_is_not_taken_for_an_image(tmp_path):
    frames = np.zeros((12, 64, 64, 3), np.uint8)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height = stream.width = 64
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    shape = measure_source(tmp_path / "a.avi")
    assert shape.seconds == float("inf")
    assert [b.num_frames for b in choose_buckets([shape], BucketChoice(num_frames=(1, 9)))] == [9]


def test_an_image_is_a_video_of_one_frame_the_way_up_it_says(shape_videos):
    assert measure_source(shape_videos / "f.png") == SourceShape(64, 96, 0.0)
    (span,) = read_spans(shape_videos / "f.png", [Bucket(num_frames=1, height=64, width=96), WIDE], 4)
    assert (span.start_seconds, span.decoder, span.frames.shape) == (0.0, "pillow", (1, 64, 96, 3))
    assert np.array_equal(span.frames[0, 0, :, 0], np.arange(95, -1, -1))
    assert decode_clip(encode_clip(span.frames, 8)).shape == (1, 64, 96, 3)


def test_measured_without_decoding(shape_videos):
    assert measure_source(shape_videos / "a.mp4") == SourceShape(64, 128, 2.5)


def test_crops_lie_from_one_end_to_the_other_and_flips_mirror_them(shape_videos):
    """A ramp from left to right: the crop at the left is darker by what the one at the right is brighter."""
    kept = read_spans(shape_videos / "a.mp4", [SQUARE], 1)
    spans = read_spans(shape_videos / "a.mp4", [SQUARE], 1, CutConfig(augment=AugmentConfig(flip=True, crops=3)))
    assert [span.variant for span in spans] == ["crop 0", "crop 0 flip", "", "flip", "crop 1", "crop 1 flip"]
    assert np.array_equal(spans[2].frames, kept[0].frames)
    for plain, flipped in zip(spans[::2], spans[1::2], strict=True):
        assert np.array_equal(plain.frames[:, :, ::-1], flipped.frames)
    left, centre, right = (span.frames.mean() for span in spans[::2])
    assert left < centre < right
    assert centre == pytest.approx((left + right) / 2, abs=0.5)
    wide = read_spans(shape_videos / "a.mp4", [WIDE], 1, CutConfig(augment=AugmentConfig(crops=3)))
    assert [span.variant for span in wide] == [""]  # nothing overhangs


BUCKET = Bucket(num_frames=5, height=32, width=32, fps=4)


def write_video(path: Path, frames: np.ndarray, pts: list[int], time_base_hz: int = 1000) -> None:
    """H.264 with exactly these presentation time stamps."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, time_base_hz)
        for frame, stamp in zip(frames, pts, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = stamp, Fraction(1, time_base_hz)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def grey_frames(levels: list[int], size: int = 32) -> np.ndarray:
    return np.stack([np.full((size, size, 3), level, np.uint8) for level in levels])


def test_frames_are_chosen_by_time_not_by_index(tmp_path):
    """Variable frame rate: the frame on screen at each wanted instant, 0, 250, ... ms."""
    pts = [0, 40, 80, 240, 600, 640, 760, 1000, 1040]
    levels = [10, 35, 60, 85, 110, 135, 160, 185, 210]
    path = tmp_path / "vfr.mp4"
    write_video(path, grey_frames(levels), pts)
    span = read_spans(path, [BUCKET], 1)[0]
    shown = span.frames.mean((1, 2, 3))
    wanted = [
        max(level for level, stamp in zip(levels, pts, strict=True) if stamp <= t) for t in (0, 250, 500, 750, 1000)
    ]
    np.testing.assert_allclose(shown, wanted, atol=4)


def test_awkward_avi_is_read_in_the_order_it_plays(clips_dir):
    """Packed B-frames: decord's stamps are nonsense and its frames repeat, so PyAV reads, in decoding order."""
    path = clips_dir / "ut_interaction" / "punch" / "set1_0_1_4.avi"
    bucket = Bucket(num_frames=17, height=64, width=64, fps=8)
    span = read_spans(path, [bucket], 1)[0]
    assert span.decoder == "pyav"

    def scaled(frame: av.VideoFrame) -> np.ndarray:
        height, width = cover_size((frame.height, frame.width), 64, 64)
        return frame.to_ndarray(format="rgb24", height=height, width=width, interpolation=SCALING)

    with av.open(str(path)) as container:
        frames = [(f.dts, scaled(f)) for f in container.decode(video=0) if f.dts is not None]
    first = frames[0][0]
    wanted = [max(i for i, (dts, _) in enumerate(frames) if (dts - first) / 30 <= k / 8 + 5e-4) for k in range(17)]
    expected = np.stack([frames[i][1] for i in wanted])
    left = round((expected.shape[2] - 64) / 2)
    expected = expected[:, :64, left : left + 64]
    np.testing.assert_array_equal(span.frames, expected)


@pytest.mark.parametrize("side", [16, 32, 48, 80, 112])
def test_clips_of_any_width_survive(tmp_path, side):
    """decord cannot copy out frames whose width its padding does not divide; PyAV then reads them."""
    frames = np.broadcast_to(np.linspace(0, 200, side)[None, :, None, None], (9, side, side, 3)).astype(np.uint8)
    content = encode_clip(frames, 8)
    assert np.abs(decode_clip(content).astype(int) - frames).mean() < 3
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    span = read_spans(path, [Bucket(num_frames=9, height=side, width=side, fps=8)], 1)[0]
    np.testing.assert_allclose(span.frames.astype(int), decode_clip(content), atol=1)  # it rounds more exactly


@pytest.mark.parametrize("content", [b"", b"not a video", b"\0" * 5000])
def test_garbage_is_a_video_error(tmp_path, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError):
        read_spans(path, [BUCKET], 1)


def test_truncated_and_audio_only_files_are_video_errors(tmp_path):
    whole = tmp_path / "whole.mp4"
    write_video(whole, grey_frames(list(range(0, 250, 5))), [i * 40 for i in range(50)])
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    with pytest.raises(VideoError):
        read_spans(cut, [BUCKET], 1)
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no video stream"):
        read_spans(sound, [BUCKET], 1)


def test_a_video_smaller_than_the_limit_is_refused(clips_dir):
    path = clips_dir / "robust_moviepy" / "-video-with-dash-.mp4"
    bucket = Bucket(num_frames=5, height=32, width=32, fps=4)
    with pytest.raises(VideoError, match=r"1 x 1 pixels, and the shorter side needs 16") as caught:
        read_spans(path, [bucket], 1, CutConfig(min_side_pixels=16))
    assert caught.value.reason == "too_small"


def _circle(frame: np.ndarray) -> tuple[int, int]:
    """Height and width of what is white in a picture."""
    is_white = frame.min(-1) > 128
    rows, columns = np.flatnonzero(is_white.any(1)), np.flatnonzero(is_white.any(0))
    return int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)


TIMED = ("sar_container_only.mp4", "sar_h264.mp4", "sar_vp9.mkv")  # whose packets tell when frames are shown
READERS = [
    *(("decord_timeline", name) for name in TIMED),
    *(("packet_timeline", name) for name in TIMED),
    *(("measured_timeline", name) for name in (*TIMED, "sar_mpeg2.mpg")),
]


@pytest.mark.parametrize(("decoder", "name"), READERS)
def test_a_circle_in_pixels_that_are_not_square_is_round(monkeypatch, name, decoder):
    """720 x 576 pixels of 64:45 are a picture of 1024 x 576; each decoder that can read the file shows it so."""
    path = CASES_DIR / "video" / "sar" / name
    probe = probe_video(path)
    assert (probe.height, probe.width, probe.upright_size) == (576, 1024, (576, 720))
    only = getattr(selection, decoder)
    monkeypatch.setattr(selection, "TIMELINES", (only,))
    shapes = [(576, 1024), (576, 576), (1024, 576)]
    for height, width in shapes:
        bucket = Bucket(num_frames=1, height=height, width=width)
        (span,) = read_spans(path, [bucket], 1)
        assert (span.source_height, span.source_width) == (576, 1024)
        high, wide = _circle(span.frames[0])
        assert wide == pytest.approx(high, rel=0.02)


def test_the_bucket_of_a_video_is_chosen_by_what_it_shows():
    path = CASES_DIR / "video" / "sar" / "sar_h264.mp4"
    assert measure_source(path).width == 1024
    stored, displayed = (Bucket(num_frames=1, height=h, width=w) for h, w in ((576, 720), (576, 1024)))
    assert read_spans(path, [stored, displayed], 1)[0].bucket == displayed


def test_text_is_looked_for_in_square_pixels():
    seen = []
    read_spans(
        CASES_DIR / "video" / "sar" / "sar_h264.mp4",
        [Bucket(num_frames=1, height=576, width=1024)],
        1,
        CutConfig(text_fraction=lambda frame, box: seen.append((frame.shape[:2], box)) or 0.0),
    )
    assert seen == [((576, 1024), (0, 0, 1024, 576))]


def write_stretched(path: Path, aspect: int) -> None:
    """Nine frames of 64 x 32 pixels that are `aspect` times as wide as high."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for frame in np.zeros((9, 32, 64, 3), np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_an_aspect_ratio_that_cannot_be_meant_is_refused(tmp_path):
    write_stretched(tmp_path / "a.mp4", 20)
    with pytest.raises(VideoError, match="pixels are 20:1"):
        probe_video(tmp_path / "a.mp4")


def test_an_aspect_ratio_that_changes_in_mid_stream_is_refused(tmp_path):
    for name, aspect in (("a", 1), ("b", 2)):
        write_stretched(tmp_path / f"{name}.ts", aspect)
    whole = tmp_path / "whole.ts"
    whole.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    with pytest.raises(VideoError, match="aspect ratio of its pixels changes"):
        list(decode_frames(whole, probe_video(whole), "pts"))


def test_a_turned_video_stretches_along_its_other_side(tmp_path):
    """Stored 64 wide and 32 high, 2:1: shown 128 x 32, and after a quarter turn 32 x 128."""
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    write_stretched(plain, 2)
    with av.open(str(plain)) as source, av.open(str(turned), "w") as container:
        copy = container.add_stream_from_template(source.streams.video[0])
        copy.set_display_rotation(90)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                container.mux(packet)
    assert [(probe_video(p).height, probe_video(p).width) for p in (plain, turned)] == [(32, 128), (128, 32)]
    assert read_spans(turned, [Bucket(num_frames=1, height=128, width=32)], 1)[0].frames.shape == (1, 128, 32, 3)


@pytest.mark.parametrize(("aspect", "size"), [("1", (10, 20)), ("2", (10, 40)), ("1/2", (20, 20))])
def test_no_stored_pixel_is_lost_when_pixels_become_square(aspect, size):
    assert square_size((10, 20), Fraction(aspect)) == size


@pytest.mark.parametrize("container", ["mkv", "mp4"])
def test_the_frame_on_screen_is_taken_at_any_frame_rate(tmp_path, container):
    """Variable frame rate, with time stamps up to a millisecond around the instants: half of it counts as on time."""
    pts = [0, 100, 250, 499, 501, 749, 751, 1000, 1040]
    ticks_of = {"mkv": 1000, "mp4": 10_000}[container]
    stamps = [stamp * ticks_of // 1000 for stamp in pts]
    if container == "mp4":
        stamps[3], stamps[5] = 5004, 7506  # 0.4 ms late: on time; 0.6 ms late: not yet on screen
        stamps[4], stamps[6] = 5100, 7600
    levels = list(range(10, 235, 25))
    path = tmp_path / f"vfr.{container}"
    write_video(path, grey_frames(levels), stamps, ticks_of)
    wanted = {"mkv": [0, 2, 3, 5, 7], "mp4": [0, 2, 3, 4, 7]}[container]
    shown = read_spans(path, [BUCKET], 1)[0].frames.mean((1, 2, 3))
    np.testing.assert_allclose(shown, [levels[index] for index in wanted], atol=4)


def test_one_false_time_stamp_years_ahead_costs_nothing(tmp_path):
    """decord would take memory for every frame of 4000 days, and abort its process."""
    path = tmp_path / "years.mkv"
    write_video(path, grey_frames([10, 60, 110, 160, 200] * 5), [*range(0, 960, 40), 4000 * 86400 * 1000])
    assert not probe_video(path).suits_decord
    spans = read_spans(path, [BUCKET], 2)
    assert [span.decoder != "decord" for span in spans] == [True, True]


def test_one_span_of_a_long_video_is_in_memory_at_a_time(tmp_path):
    path = tmp_path / "long.mp4"
    write_video(path, grey_frames(list(range(250)) * 3), list(range(0, 30_000, 40)))
    earlier: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def process(spans: list[Span]) -> float:
        alive.append(sum(frames() is not None for frames in earlier))
        earlier.extend(weakref.ref(span.frames) for span in spans)
        return spans[0].start_seconds

    starts = cut_file(path, [BUCKET], process, CutConfig(max_spans=None, augment=AugmentConfig(flip=True)))
    assert starts == [number * 1.25 for number in range(24)]
    assert alive == [0] * 24


def test_when_a_decoder_fails_the_next_one_begins_at_the_first_clip(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    write_video(path, grey_frames([100] * 100), list(range(0, 4000, 40)))

    def failing(path: Path, probe: Probe) -> Timeline:
        (right,) = [packet_timeline(path, probe)]
        assert right is not None

        def read(indices: list[int], size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
            if indices[0] > 0:
                raise UnfitDecoderError("at a later place")
            return right.read(indices, size)

        return replace(right, read=read)

    monkeypatch.setattr(selection, "TIMELINES", (failing, packet_timeline))
    restarts = []
    config = CutConfig(max_spans=None)
    spans = cut_file(path, [BUCKET], lambda spans: spans[0], config, restart=lambda: restarts.append(1))
    assert [span.start_seconds for span in spans] == [0, 1.25, 2.5]
    assert restarts == [1]


def test_frames_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, grey_frames([100] * 50, 64), list(range(0, 2000, 40)))
    Image.new("1", (90, 90)).save(tmp_path / "a.png")
    for name, limit in (("a.mp4", 64 * 64 - 1), ("a.png", 90 * 90 - 1)):
        with pytest.raises(VideoError, match="it is too large") as caught:
            read_spans(tmp_path / name, [BUCKET], 1, CutConfig(max_pixels=limit))
        assert caught.value.reason == "too_large"
        assert measure_source(tmp_path / name, max_pixels=limit + 1).height in (64, 90)
    assert len(read_spans(path, [BUCKET], 1, CutConfig(max_pixels=64 * 64))) == 1


def test_a_header_that_says_fewer_pixels_than_the_bitstream_has_helps_nobody(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, grey_frames([100] * 50, 512), list(range(0, 2000, 40)))
    content = path.read_bytes()
    at = content.index(b"avc1", content.index(b"stsd")) + 28  # width and height of the sample entry
    assert content[at : at + 4] == b"\2\0\2\0"
    path.write_bytes(content[:at] + b"\0\x40\0\x40" + content[at + 4 :])
    assert probe_video(path).stored_size == (512, 512)
    with pytest.raises(VideoError):
        probe_video(path, 256 * 256)


def test_a_long_video_tells_how_long_it_is_and_every_frame_that_is_read(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, grey_frames([100] * 25), [*range(0, 960, 40), 86_400_000])
    begun, read = [], []
    progress = Progress(begun.append, lambda: read.append(1))
    cut_file(path, [BUCKET], len, progress=progress)
    assert begun == [25.0]  # a second for each frame, not a day
    assert len(read) == 5
