"""Encoding and decoding of clips: nearly inverse, reproducible, and in chunks."""

import io

import numpy as np
import pytest
from PIL import Image

from data.dataset.compression import COMPRESSION
from data.errors import VideoError
from data.synthetic import combinations, random_scene, render
from data.video import codec
from data.video.codec import (
    ClipEncoder,
    EncoderError,
    check_encoder,
    decode_chunks,
    decode_clip,
    encode_clip,
    read_tags,
)
from data.video.config import VideoConfig
from data.video.previews import encode_gif
from testing.clips import moving_shapes


def test_encode_and_decode_are_nearly_inverse():
    random = np.random.default_rng(0)
    smooth = np.cumsum(random.normal(size=(9, 1, 1, 3)), 0) * 20 + np.linspace(0, 120, 48)[None, :, None, None]
    frames = np.broadcast_to(smooth, (9, 48, 64, 3)).clip(0, 255).astype(np.uint8)
    content = encode_clip(frames, 8)
    decoded = decode_clip(content)
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 3
    assert encode_clip(frames, 8) == content  # the same bytes every time


@pytest.mark.parametrize("side", [32, 96])
def test_equal_frames_give_equal_bytes_whatever_lies_in_memory(side):
    """With x264's macroblock tree, two in three of these clips came out in up to ten versions."""
    random, other = np.random.default_rng(0), []
    for number in range(6):
        frames = render(random_scene(0, number, combinations()), 17, side)
        versions = set()
        for _ in range(12):
            other = [*other[-6:], random.bytes(int(random.integers(1000, 90000)))]
            versions.add(encode_clip(frames, 8))
        assert len(versions) == 1


@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 16, 16), (41, 48, 80), (41, 64, 272)])
def test_a_file_is_decoded_in_chunks(num_frames, height, width):
    content = encode_clip(moving_shapes(num_frames, 272)[:, :height, :width], 8)
    whole = decode_clip(content)
    for most in (4, 12, 44):
        lengths = COMPRESSION.chunk_lengths(num_frames, most)
        chunks = list(decode_chunks(content, lengths))
        assert [len(chunk) for chunk in chunks] == lengths
        np.testing.assert_array_equal(np.concatenate(chunks), whole)
    for wrong in {1, num_frames + 4} - {num_frames}:
        with pytest.raises(VideoError, match=f"it has {num_frames} frames and not the {wrong} of its record"):
            list(decode_chunks(content, [wrong]))


def test_a_gif_has_all_frames_and_is_made_smaller():
    frames = np.random.default_rng(0).integers(0, 255, (5, 32, 64, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_gif(frames, fps=10, max_side=32))) as picture:
        assert (picture.format, getattr(picture, "n_frames", 1), picture.size) == ("GIF", 5, (32, 16))
        assert (picture.info["duration"], picture.info["loop"]) == (100, 0)


def test_a_clip_that_comes_in_parts_has_the_bytes_of_the_whole():
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
    encoder = ClipEncoder(8)
    for part in (frames[:4], frames[4:5], frames[5:]):
        encoder.add(part)
    assert encoder.finish() == encode_clip(frames, 8)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (VideoConfig(crf=1), 1.4),  # of colours that have a quarter of the resolution
        (VideoConfig(crf=1, pixel_format="yuv444p"), 0.3),
        (VideoConfig(codec="hevc", crf=1, preset="medium"), 1.4),
        (VideoConfig(codec="hevc", crf=1, pixel_format="yuv444p"), 0.3),
        (VideoConfig(codec="av1", crf=1), 1.4),
    ],
)
def test_every_codec_gives_equal_bytes_for_equal_frames_and_is_decoded(config, error):
    frames = moving_shapes(9, 64)

    def encoded() -> bytes:
        encoder = ClipEncoder(8, config, {"title": "é", "comment": "\u6f22" * 40_000})
        for part in (frames[:4], frames[4:]):
            encoder.add(part)
        return encoder.finish()

    contents = {encoded() for _ in range(4)}
    assert len(contents) == 1
    (content,) = contents
    decoded = decode_clip(content)
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < error
    assert abs((decoded.astype(int) - frames).mean()) < 0.3


def test_tags_of_any_length_and_text_are_read_back(tmp_path):
    tags = {"title": 'a "b" \n c', "comment": "\u6f22\U0001f534\u2028" * 40_000}
    encoder = ClipEncoder(8, metadata=tags)
    encoder.add(moving_shapes(2, 32))
    (tmp_path / "a.mp4").write_bytes(encoder.finish())
    assert tags.items() <= read_tags(tmp_path / "a.mp4").items()
    (tmp_path / "b.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    with pytest.raises(VideoError, match="it is not an MP4 file"):
        read_tags(tmp_path / "b.mp4")


def test_an_encoder_that_is_not_installed_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(codec.ENCODERS, "av1", ("libnone",))
    with pytest.raises(EncoderError, match=r"codec av1: .* lacks the encoder libnone; it has those of h264, hevc"):
        check_encoder(VideoConfig(codec="av1"))
    small = ClipEncoder(8, VideoConfig(codec="hevc"))
    with pytest.raises(EncoderError, match="hevc takes frames of at least 32 pixels a side, not 16 x 16"):
        small.add(moving_shapes(1, 16))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"crf": 52}, "crf is 52, but h264 takes 0 to 51"),
        ({"codec": "av1", "preset": "fast"}, "preset is 'fast', but av1 takes 0, 1"),
        ({"codec": "av1", "pixel_format": "yuv444p"}, "the encoder of av1 does not take"),
        ({"codec": "vp9"}, "Input should be 'h264', 'hevc' or 'av1'"),
    ],
)
def test_settings_that_an_encoder_does_not_take_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        VideoConfig(**fields)
    assert VideoConfig.model_validate({"codec": "av1", "crf": 60, "preset": 5}).resolved().preset == "5"
