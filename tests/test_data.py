"""Video in and out, captions, keys: on real files."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data.curation.captions import CaptionError, caption_of, read_caption_table
from data.dataset.buckets import Bucket
from data.dataset.clip import clip_key, split_of
from data.errors import VideoError
from data.synthetic import combinations, random_scene, render
from data.video.codec import decode_clip, encode_clip
from data.video.extract import read_spans
from data.video.resize import decoding_size, resize_and_crop
from data.video.spans import plan_spans

BUCKET = Bucket(num_frames=5, height=32, width=32, fps=4)


def write_video(path: Path, frames: np.ndarray, pts: list[int], time_base_hz: int = 1000) -> None:
    """H.264 with exactly these presentation time stamps."""
    from fractions import Fraction

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


def test_consecutive_spans_do_not_overlap():
    times = np.arange(100) / 25
    spans = plan_spans(times, (64, 64), [BUCKET])
    assert [round(span.start_seconds, 3) for span in spans] == [0.0, 1.25, 2.5]
    indices = [i for span in spans for i in span.indices]
    assert len(set(indices)) == len(indices) == 15
    assert max(indices) < 100


def test_a_short_video_says_how_short():
    with pytest.raises(VideoError, match=r"too short: it shows 0\.40 s.*needs 1\.00 s"):
        plan_spans(np.arange(10) / 25, (64, 64), [BUCKET])


def test_awkward_avi_is_read_in_the_order_it_plays(clips_dir):
    """Packed B-frames: decord's stamps are nonsense and its frames repeat, so PyAV reads, in decoding order."""
    path = clips_dir / "ut_interaction" / "punch" / "set1_0_1_4.avi"
    bucket = Bucket(num_frames=17, height=64, width=64, fps=8)
    span = read_spans(path, [bucket], 1)[0]
    assert span.decoder == "pyav"
    with av.open(str(path)) as container:
        frames = [(f.dts, f.to_ndarray(format="rgb24")) for f in container.decode(video=0) if f.dts is not None]
    first = frames[0][0]
    wanted = [max(i for i, (dts, _) in enumerate(frames) if (dts - first) / 30 <= k / 8 + 5e-4) for k in range(17)]
    expected = resize_and_crop(np.stack([frames[i][1] for i in wanted]), 64, 64)
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
    np.testing.assert_array_equal(span.frames, decode_clip(content))


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


def test_resize_covers_and_crops_the_middle():
    frames = np.zeros((1, 40, 100, 3), np.uint8)
    frames[:, :, 30:70] = 200  # the middle square
    out = resize_and_crop(frames, 32, 32)
    assert out.shape == (1, 32, 32, 3)
    assert out[0, :, 2:-2].min() == 200


def test_resizing_large_pictures_in_two_steps_shows_as_much_as_in_one():
    frame = render(random_scene(0, 1, combinations()), 1, 1080)[0]
    box = (0, 135, 1080, 945)
    exact = np.asarray(Image.fromarray(frame).resize((128, 96), Image.Resampling.BICUBIC, box=box))
    assert np.abs(resize_and_crop(frame[None], 96, 128)[0].astype(int) - exact).max() <= 3


@pytest.mark.parametrize(
    ("source", "shape"), [((1080, 1920), (64, 64)), ((1920, 1080), (112, 64)), ((1777, 1433), (85, 85))]
)
def test_pictures_decoded_smaller_become_the_same_clip(source, shape):
    """Rows are rounded to what the decoder can do; that changes neither the aspect ratio nor what is cut off."""
    size = decoding_size(source, [shape])
    assert 3 * max(shape) < min(size) < min(source) / 2
    frame = render(random_scene(0, 1, combinations()), 1, max(source))[0][: source[0], : source[1]]
    decoded = np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BOX))
    for position in (0, 0.5, 1):
        expected = resize_and_crop(frame[None], *shape, position)
        found = resize_and_crop(decoded[None], *shape, position, shown=source)
        assert np.abs(found.astype(int) - expected).max() <= 6


def test_pictures_are_decoded_as_they_are_where_they_are_hardly_larger_than_the_clip():
    assert decoding_size((240, 320), [(64, 64), (24, 24)]) == (240, 320)
    assert decoding_size((1080, 1920), [(24, 24), (144, 256)]) == (1080, 1920)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 13), (121, 161), (2160, 3840)])
def test_resize_takes_pictures_of_any_size(size):
    for height, width in ((32, 32), (48, 32), (64, 112)):
        assert resize_and_crop(np.zeros((1, *size, 3), np.uint8), height, width).shape == (1, height, width, 3)


def test_bucket_names_the_nearest_length():
    with pytest.raises(ValueError, match="use 13 or 17"):
        Bucket(num_frames=16)
    with pytest.raises(ValueError, match="use 64 or 80"):
        Bucket(height=70)


def test_clip_keys_depend_on_source_span_and_bucket():
    keys = {clip_key("a.mp4", 0.0, BUCKET), clip_key("a.mp4", 1.0, BUCKET), clip_key("b.mp4", 0.0, BUCKET)}
    keys.add(clip_key("a.mp4", 0.0, Bucket()))
    assert len(keys) == 4
    assert all(len(key) == 20 and "." not in key for key in keys)
    assert clip_key("a.mp4", 0.0, BUCKET) == clip_key("a.mp4", 0.0, BUCKET)


def test_split_shares():
    share = sum(split_of(f"{i}.mp4", 0.1) == "validation" for i in range(5000)) / 5000
    assert 0.08 < share < 0.12
    assert split_of("x.mp4", 0.0) == "train"


def test_captions_from_sidecars_tables_and_folders(tmp_path):
    for name in ("hug/a.mp4", "hug/b.mp4", "shake_hands/c.mp4", "d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "hug/a.txt").write_text("two people\n hug", encoding="utf-8")
    (tmp_path / "hug/b.json").write_text(json.dumps({"caption": "a long hug"}), encoding="utf-8")
    assert caption_of(tmp_path, "hug/a.mp4", {}) == "two people hug"
    assert caption_of(tmp_path, "hug/b.mp4", {}) == "a long hug"
    assert caption_of(tmp_path, "shake_hands/c.mp4", {}) == "shake hands"
    assert caption_of(tmp_path, "d.mp4", {}) == tmp_path.name.replace("_", " ").replace("-", " ")
    table = {f"{tmp_path.name}/d.mp4": "from the table", "hug/a.mp4": "also"}
    assert caption_of(tmp_path, "d.mp4", table) == "from the table"
    assert caption_of(tmp_path, "hug/a.mp4", table) == "also"
    (tmp_path / "hug/b.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CaptionError, match="no text under the key 'caption'"):
        caption_of(tmp_path, "hug/b.mp4", {})


def test_caption_tables(tmp_path, clips_dir):
    rows = read_caption_table(clips_dir / "MANIFEST.csv")
    assert rows["ut_interaction/hug/set1_10_2_1.avi"] == "two people hugging"
    for name, text in (
        ("t.csv", "file,caption\n./a.mp4,one\n"),
        ("t.jsonl", '{"path": "a.mp4", "text": "one"}\n'),
        ("t.json", '{"a.mp4": "one"}'),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_caption_table(tmp_path / name) == {"a.mp4": "one"}
    (tmp_path / "bad.csv").write_text("x,y\n1,2\n", encoding="utf-8")
    with pytest.raises(CaptionError, match="it has x, y"):
        read_caption_table(tmp_path / "bad.csv")
    with pytest.raises(CaptionError, match="no such caption table"):
        read_caption_table(tmp_path / "none.csv")
