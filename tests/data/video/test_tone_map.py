"""The colours of videos: HD without a tag is read as BT.709, and high dynamic range is tone-mapped or left out."""

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace

from data.dataset.buckets import Bucket
from data.errors import VideoError
from data.video.codec import decode_clip, encode_clip
from data.video.extract import CutConfig, read_spans
from data.video.probe import probe_video
from data.video.tone_map import compress, hlg_to_scene_light, light_to_pq, pq_to_light, tone_map

COLOURS = np.array(
    [[235, 20, 20], [20, 235, 20], [20, 20, 235], [235, 235, 20], [20, 235, 235], [235, 20, 235], [128, 128, 128]],
    np.uint8,
)
ONE_IMAGE = Bucket(num_frames=1, height=16, width=112, fps=8)


def write_chart(path: Path, height: int, width: int, encoded: Colorspace, tag: int) -> None:
    """A chart of the colours, side by side, in the given matrix and with the given tag of the matrix."""
    chart = np.repeat(COLOURS[None], height, 0).repeat(width // len(COLOURS), 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.colorspace = tag
        frame = av.VideoFrame.from_ndarray(chart, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=encoded)
        frame.colorspace = tag
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def error_of(path: Path) -> int:
    (span,) = read_spans(path, [ONE_IMAGE], 1)
    centres = span.frames[0, 8, 8::16].astype(int)
    return int(np.abs(centres - COLOURS).max())


@pytest.mark.parametrize(
    ("height", "width", "encoded", "tag"),
    [
        (720, 1260, Colorspace.ITU709, 2),  # without a tag: by its size
        (534, 1288, Colorspace.ITU709, 2),
        (720, 1260, Colorspace.ITU709, 1),
        (720, 1260, Colorspace.ITU601, 6),
        (480, 840, Colorspace.ITU601, 2),
        (480, 840, Colorspace.ITU709, 1),
    ],
)
def test_colours_come_back_as_they_were(tmp_path, height, width, encoded, tag):
    path = tmp_path / "chart.mp4"
    write_chart(path, height, width, encoded, tag)
    assert probe_video(path).is_untagged_hd == (tag == 2 and encoded == Colorspace.ITU709)
    assert error_of(path) <= 6


def test_a_wrong_matrix_is_seen(tmp_path):
    """The test above can fail: the two matrices differ by more than it allows."""
    path = tmp_path / "chart.mp4"
    write_chart(path, 480, 840, Colorspace.ITU709, 2)
    assert error_of(path) > 15


def test_our_own_clips_of_hd_size_come_back_as_sources(tmp_path):
    frames = np.repeat(np.repeat(COLOURS[None, None], 720, 1).repeat(180, 2), 2, 0)
    content = encode_clip(frames, 8, crf=1)
    assert np.abs(decode_clip(content)[0, 360, 90::180].astype(int) - COLOURS).max() <= 6
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    assert error_of(path) <= 6


def test_pq_and_its_inverse_give_the_stated_light():
    assert pq_to_light(np.array([0.0, 1.0])) == pytest.approx([0, 10000])
    assert float(light_to_pq(np.array(100.0))) == pytest.approx(0.5081, abs=1e-4)  # ITU-R BT.2408, table 4
    assert float(light_to_pq(np.array(203.0))) == pytest.approx(0.5807, abs=1e-4)
    light = np.geomspace(0.01, 10000, 50)
    assert pq_to_light(light_to_pq(light)) == pytest.approx(light, rel=1e-9)


def test_hlg_gives_the_stated_light():
    # ITU-R BT.2100, table 5: the two branches meet at 1/12, and full signal is full light.
    assert hlg_to_scene_light(np.array([0.0, 0.5, 1.0])) == pytest.approx([0, 1 / 12, 1], abs=1e-6)


def test_highlights_are_compressed_and_shadows_are_not():
    light = np.geomspace(0.1, 1000, 100)
    mapped = compress(light)
    assert mapped[light < 20] == pytest.approx(light[light < 20], rel=1e-6)
    assert np.all(np.diff(mapped) > 0)
    assert mapped[-1] == pytest.approx(203, rel=1e-6)


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_tone_mapping_keeps_greys_grey_and_in_order(transfer):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    mapped = tone_map(np.repeat(ramp[None, :, None], 3, 2), transfer)[0].astype(int)
    assert np.abs(mapped - mapped[:, :1]).max() <= 1
    assert np.all(np.diff(mapped[:, 0]) >= 0)
    assert mapped[0, 0] == 0
    assert mapped[-1, 0] == 255


def write_hdr(path: Path, transfer: int) -> None:
    """Grey of 203 cd/m2 in PQ; in HLG the same code value."""
    code = round(float(light_to_pq(np.array(203.0))) * 65535)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 96, 112, "yuv420p10le"
        stream.codec_context.colorspace, stream.codec_context.color_primaries = 9, 9
        stream.codec_context.color_trc = transfer
        picture = av.VideoFrame.from_ndarray(np.full((96, 112, 3), code, np.uint16), format="rgb48le")
        frame = picture.reformat(format="yuv420p10le", dst_colorspace=Colorspace.BT2020)
        frame.colorspace, frame.color_primaries, frame.color_trc = 9, 9, transfer
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(("number", "name"), [(16, "pq"), (18, "hlg")])
def test_high_dynamic_range_is_kept_mapped_or_left_out_by_name(tmp_path, number, name):
    path = tmp_path / "hdr.mp4"
    write_hdr(path, number)
    assert probe_video(path).hdr == name
    bucket = Bucket(num_frames=1, height=96, width=112, fps=8)
    (as_sdr,) = read_spans(path, [bucket], 1)
    assert np.abs(as_sdr.frames.astype(int) - round(0.5807 * 255)).max() <= 3
    (mapped,) = read_spans(path, [bucket], 1, CutConfig(hdr="tone_map"))
    light = 203.0 if name == "pq" else 1000 * float(hlg_to_scene_light(np.array(0.5807))) ** 1.2
    expected = 255 * (float(compress(np.array(light))) / 203) ** (1 / 2.4)
    assert np.abs(mapped.frames.astype(float) - expected).max() <= 4
    with pytest.raises(VideoError, match="high dynamic range") as error:
        read_spans(path, [bucket], 1, CutConfig(hdr="drop"))
    assert error.value.reason == "hdr"
