"""Every decoder against one independent reading: PyAV from the first frame on, by the time stamps of the frames."""

from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from PIL import Image

from data.video.decoders.decord_reader import decord_timeline
from data.video.decoders.pyav_reader import SCALED_LAYOUT, SCALING
from data.video.decoders.pyav_stream import decode_frames
from data.video.decoders.selection import timelines
from data.video.decoders.timeline import Timeline
from data.video.probe import probe_video
from data.video.resize import reading_size
from data.video.spans import TIE_SECONDS

# (file, its next decoder): each codec, container, rotation, variable frame rate and edit list
FILES = [
    ("fixtures/bikes.mp4", "decord"),
    ("fixtures/sync_test.mkv", "decord"),  # variable frame rate
    ("fixtures/part_0.mp4", "decord"),  # variable frame rate
    ("fixtures/Big_Buck_Bunny_180_10s.webm", "decord"),  # vp9
    ("robust_moviepy/big_buck_bunny_432_433.webm", "decord"),  # vp8
    ("robust_torchcodec/h264_10bits.mp4", "pyav"),
    ("robust_torchcodec/h265_10bits.mp4", "pyav"),
    ("robust_torchcodec/h265_video.mp4", "pyav"),  # open groups of pictures
    ("robust_torchcodec/av1_video.mkv", "pyav"),
    ("robust_torchcodec/nasa_13013.mp4", "pyav"),  # two video streams
    ("robust_androidx/sample_vvc.mp4", "pyav"),
    ("robust_androidx/roadtrip-vp92-10bit.webm", "pyav"),  # hidden frames
    ("robust_androidx/dolbyVision-hdr.MOV", "pyav"),  # rotated, with an edit list
    ("robust_androidx/iibbibb_editlist_videoonly.mp4", "pyav"),
    ("robust_androidx/sample_edit_list_only_preroll_sync_sample.mp4", "pyav"),
    ("robust_androidx/sample_sef_slow_motion.mp4", "pyav"),
    ("robust_androidx/edit_list_positive_shift.mp4", "pyav"),
    ("robust_androidx/sample_android_slow_motion.mp4", "decord"),  # variable frame rate
    ("robust_androidx/fragmented_captions.mp4", "decord"),  # variable frame rate
    ("robust_androidx/bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4", "pyav"),  # starts late
    ("robust_androidx/bbb_800x640_768kbps_30fps_avc_pyramid_3b.mp4", "decord"),
    ("robust_androidx/sample_h264.ts", "pyav"),
    ("robust_androidx/sample_h265.ts", "pyav"),
    ("robust_androidx/sample_h263.ts", "pyav"),
    ("robust_androidx/sample_h262_mpeg_audio.ps", "pyav"),
    ("robust_androidx/sample_h262_mpeg_audio.ts", "pyav"),
    ("robust_androidx/sample.flv", "pyav"),
    ("robust_androidx/sample_portrait.mp4", "pyav"),
    ("robust_androidx/sample_rotate_and_reflect.mp4", "pyav"),
    ("robust_androidx/bbb_176x144_128kbps_15fps_h263.3gp", "pyav"),
    ("robust_androidx/bbb_176x144_192kbps_15fps_mpeg4.mp4", "decord"),
    ("robust_devices/100_0306.AVI", "pyav"),  # motion JPEG
    ("fixtures/video-1s.avi", "pyav"),  # Indeo 4
    ("robust_devices/FLIR_Thermal.mp4", "pyav"),  # variable frame rate
    ("robust_pyscenedetect/delayed_start.mp4", "pyav"),
    ("robust_decord/unordered.mov", "decord"),
    ("robust_decord/video_0.mov", "decord"),
    ("robust_decord/video_90.mov", "decord"),
    ("robust_decord/video_180.mov", "decord"),
    ("robust_decord/video_270.mov", "decord"),
]

UNTAGGED_HD = {
    "robust_androidx/sample.flv",
    "robust_androidx/sample_portrait.mp4",
    "robust_androidx/sample_rotate_and_reflect.mp4",
    "robust_devices/FLIR_Thermal.mp4",
}
"""Videos of high definition that do not name their colours, which are then those of BT.709."""

MAX_DIFFERENCE = 8  # of 255: the libraries bring different versions of FFmpeg's conversion to RGB

MEAN_DIFFERENCE = 1.5  # of 255, between two ways to resize: 1.06 at most where colours are saturated, else 0.9


def reference(path: Path) -> tuple[np.ndarray, list[av.VideoFrame]]:
    """Time stamps in seconds and frames of a file, in the order in which they are shown."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert stream is not None
        assert stream.time_base is not None
        frames = list(container.decode(stream))
        clock = "dts" if container.format.name == "avi" else "pts"
        frames = [frame for frame in frames if getattr(frame, clock) is not None]
        times = np.array([float(getattr(frame, clock) * stream.time_base) for frame in frames])
    order = np.argsort(times)
    return times[order], [frames[i] for i in order]


def space_of(name: str) -> Colorspace | None:
    """The colours of a file; None: those that it names, or without a name those of BT.601."""
    return Colorspace.ITU709 if name in UNTAGGED_HD else None


def upright(frame: av.VideoFrame, name: str) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24", src_colorspace=space_of(name))
    if name == "robust_androidx/sample_rotate_and_reflect.mp4":
        return pixels.transpose(1, 0, 2)  # its display matrix swaps the axes
    return np.rot90(pixels, k=round(frame.rotation / 90))


def assert_frames_equal_the_reference(timeline: Timeline, path: Path, name: str) -> None:
    """To the bit, if they are converted alike."""
    times, frames = reference(path)
    is_alike = timeline.decoder == "pyav"
    np.testing.assert_allclose(timeline.times_seconds, times, atol=TIE_SECONDS)
    chosen = sorted({0, len(times) // 3, len(times) // 2, len(times) - 1})
    for index, pixels in zip(chosen, timeline.read(chosen), strict=True):
        expected = upright(frames[index], name)
        assert pixels.shape == expected.shape
        assert np.abs(pixels.astype(int) - expected).max() <= (0 if is_alike else MAX_DIFFERENCE), index


@pytest.mark.parametrize("name", [name for name, _ in FILES])
def test_the_first_decoder_gives_the_frame_on_screen(clips_dir, name):
    path = clips_dir / name
    timeline = next(timelines(path, probe_video(path)))
    assert timeline.decoder == "pyav"
    assert_frames_equal_the_reference(timeline, path, name)


@pytest.mark.parametrize(("name", "decoder"), FILES, ids=[name for name, _ in FILES])
def test_decord_gives_the_frame_on_screen_or_is_not_tried(clips_dir, name, decoder):
    path = clips_dir / name
    timeline = decord_timeline(path, probe_video(path))
    assert (timeline is not None) == (decoder == "decord")
    if timeline is not None:
        assert_frames_equal_the_reference(timeline, path, name)


@pytest.mark.parametrize("layout", ["yuv420p", "yuvj422p", "yuv444p10le", "nv12", "gray", "bgr24"])
def test_frames_scaled_to_planes_have_the_values_of_packed_ones(layout):
    """So clips stay as they were, and datasets hold none of two kinds."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    source = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format=layout)
    for height, width in ((64, 86), (101, 135), (240, 320)):
        packed, planes = (
            source.to_ndarray(format=kind, height=height, width=width, interpolation=SCALING)
            for kind in ("rgb24", SCALED_LAYOUT)
        )
        np.testing.assert_array_equal(planes, packed)


@pytest.mark.parametrize("name", [name for name, _ in FILES if name != "robust_decord/unordered.mov"])  # 50 x 50
def test_frames_decoded_to_the_size_of_a_clip_show_the_same(clips_dir, name):
    """Whatever their rotation and the shape of their pixels: beside the same frames, resized afterwards by Pillow."""
    path = clips_dir / name
    probe = probe_video(path)
    shown, clip = (probe.height, probe.width), (probe.height // 4, probe.width // 5)
    size = reading_size(shown, *clip)
    assert size is not None
    timeline = next(timelines(path, probe))
    decoded = [frame for frame, _ in islice(decode_frames(path, probe, "pts"), 3)]
    for frame, small in zip(decoded[::2], timeline.read([0, 2], size), strict=True):
        whole = probe.matrix.apply(
            frame.to_ndarray(format="rgb24", interpolation=SCALING, src_colorspace=space_of(name))
        )
        resized = Image.fromarray(np.ascontiguousarray(whole)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        assert np.abs(small.astype(int) - np.asarray(resized)).mean() < MEAN_DIFFERENCE


def test_interlaced_frames_are_made_whole(clips_dir):
    """Neighbouring rows of two different instants differ; after deinterlacing they are of one instant."""
    path = next(clips_dir.rglob("*.mts"))
    probe = probe_video(path)
    assert probe.is_interlaced
    timeline = next(timelines(path, probe))
    times, frames = reference(path)
    np.testing.assert_allclose(timeline.times_seconds, times, atol=TIE_SECONDS)

    def combing(pixels: np.ndarray) -> float:
        rows = pixels.astype(int)
        return float(np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).mean())

    for index, pixels in enumerate(timeline.read(list(range(len(times))))):
        raw = frames[index].to_ndarray(format="rgb24")
        assert pixels.shape == raw.shape
        assert combing(pixels) < combing(raw)
