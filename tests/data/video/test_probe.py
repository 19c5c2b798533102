"""The display matrix of a video, and files that cannot be probed."""

import numpy as np
import pytest

from data.errors import VideoError
from data.video.probe import QUARTER_TURNS, DisplayMatrix, probe_video
from testing.paths import CASES_DIR


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4", 1137),
        ("bbb_800x640_768kbps_30fps_avc_pyramid_3b.mp4", 1138),
        ("bbb_800x640_768kbps_30fps_vp9.mp4", 1138),
    ],
)
def test_pixels_that_are_not_square_widen_the_picture(clips_dir, name, width):
    """800 x 640 stored pixels of 64:45 or 1137:800."""
    probe = probe_video(clips_dir / "robust_androidx" / name)
    assert (probe.stored_size, probe.height, probe.width) == ((640, 800), 640, width)


def test_a_display_matrix_turns_and_mirrors():
    picture = np.arange(6).reshape(2, 3)[..., None]
    for turns, matrix in enumerate(QUARTER_TURNS):
        np.testing.assert_array_equal(matrix.apply(picture), np.rot90(picture, turns))
        assert not matrix.is_mirrored
    np.testing.assert_array_equal(DisplayMatrix(a=-1).apply(picture), picture[:, ::-1])
    np.testing.assert_array_equal(DisplayMatrix(a=0, b=1, c=1, d=0).apply(picture), picture.transpose(1, 0, 2))
    assert DisplayMatrix(a=-1).is_mirrored
    assert DisplayMatrix(a=0, b=1, c=1, d=0).is_mirrored


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("robust_mp4parse/short-cenc.mp4", "encrypted"),
        ("robust_moviepy/result.webm", "empty_file"),
        ("robust_androidx/sample_audio_only.mp4", "no_video"),
        ("robust_mp4parse/invalid_userdata.mp4", "no_video"),
        ("robust_mp4parse/chunk_out_of_range.mp4", "undecodable"),
        ("robust_androidx/invalid-bitstream.webm", "undecodable"),
    ],
)
def test_unusable_files_say_why(clips_dir, name, reason):
    with pytest.raises(VideoError) as caught:
        probe_video(clips_dir / name)
    assert caught.value.reason == reason


def test_a_codec_that_ffmpeg_does_not_know_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes((CASES_DIR / "plain.mp4").read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(VideoError, match="its codec is unknown") as caught:
        probe_video(path)
    assert caught.value.reason == "undecodable"
