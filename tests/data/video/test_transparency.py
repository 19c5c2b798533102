"""Transparent videos and images show the same picture."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data.dataset.buckets import Bucket
from data.errors import VideoError
from data.video.extract import read_spans
from data.video.images import read_image
from data.video.probe import probe_video

GREEN = (0, 255, 0, 0)  # green that nobody is meant to see
RED = (255, 0, 0, 255)
STILL = Bucket(num_frames=1, height=64, width=64)


def picture() -> np.ndarray:
    """A red square on transparent green."""
    pixels = np.full((64, 64, 4), GREEN, np.uint8)
    pixels[16:48, 16:48] = RED
    return pixels


def write_transparent(
    path: Path,
    codec: str,
    pixel_format: str,
    options: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
    pixels: np.ndarray | None = None,
) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.height = stream.width = 64
        stream.pix_fmt = pixel_format
        stream.metadata.update(tags or {})
        shown = picture() if pixels is None else pixels
        for _ in range(9):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgba")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"), [("a.mov", "png", "rgba"), ("a.mov", "qtrle", "argb"), ("a.mkv", "ffv1", "bgra")]
)
def test_a_transparent_video_shows_what_its_frame_shows_as_an_image(tmp_path, name, codec, pixel_format):
    write_transparent(tmp_path / name, codec, pixel_format)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    shown = read_image(tmp_path / "a.png")
    assert tuple(shown[0, 0]) == (255, 255, 255)
    assert np.array_equal(read_spans(tmp_path / name, [STILL], 1)[0].frames[0], shown)
    small = Bucket(num_frames=1, height=16, width=16)  # hidden colours do not leak through the reduction either
    reduced = read_spans(tmp_path / name, [small], 1)[0].frames[0]
    assert np.array_equal(reduced, read_spans(tmp_path / "a.png", [small], 1)[0].frames[0])


def test_transparency_that_lies_beside_the_packets_is_seen(clips_dir):
    path = clips_dir / "robust_moviepy" / "transparent.webm"  # VP9; its corner is transparent
    assert probe_video(path).has_alpha_layer
    (span,) = read_spans(path, [Bucket(num_frames=1, height=192, width=192)], 1)
    assert span.decoder == "pyav"
    assert span.frames[0, 0, 0].min() > 250
    assert span.frames[0, 96, 96].tolist() == pytest.approx([232, 0, 0], abs=8)


def test_a_video_that_only_says_it_were_transparent_is_read_as_before(clips_dir):
    assert not probe_video(clips_dir / "robust_moviepy" / "no_duration.webm").may_be_transparent


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
@pytest.mark.parametrize("tag", ["alpha_mode", "ALPHA_MODE"])
def test_a_tag_for_transparency_counts_in_any_case(tmp_path, codec, tag):
    write_transparent(tmp_path / "a.webm", codec, "yuva420p", {"auto-alt-ref": "0"}, {tag: "1"})
    assert probe_video(tmp_path / "a.webm").has_alpha_layer
    (span,) = read_spans(tmp_path / "a.webm", [STILL], 1)
    assert span.frames[0, 2, 2].min() > 250
    assert span.frames[0, 32, 32].tolist() == pytest.approx([255, 0, 0], abs=12)


def test_raw_pixels_in_avi_have_no_alpha(tmp_path):
    write_transparent(tmp_path / "a.avi", "rawvideo", "bgra")
    probe = probe_video(tmp_path / "a.avi")
    assert (probe.pixel_format, probe.may_be_transparent) == ("bgra", False)
    shown = read_spans(tmp_path / "a.avi", [STILL], 1)[0].frames[0]
    assert np.array_equal(shown, picture()[..., :3])


def test_a_video_of_which_nothing_can_be_seen_is_refused(tmp_path):
    write_transparent(tmp_path / "a.mov", "qtrle", "argb", pixels=picture() * np.array([1, 1, 1, 0], np.uint8))
    with pytest.raises(VideoError, match="every pixel is transparent in all 1 frames that are used") as raised:
        read_spans(tmp_path / "a.mov", [STILL], 1)
    assert raised.value.reason == "undecodable"
