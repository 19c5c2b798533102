"""What FFmpeg is allowed to open: files that hold their own pictures."""

import shutil

import av
import pytest

from data.errors import VideoError
from data.video.codec import decode_clip
from data.video.container import open_video
from data.video.extract import measure_source
from testing.paths import CASES_DIR

LISTS = {
    "ffconcat": "ffconcat version 1.0\nfile secret.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.ts\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_other_files_is_not_a_video(tmp_path, kind):
    shutil.copy(CASES_DIR / "plain.mp4", tmp_path / "secret.mp4")
    (tmp_path / "x.mp4").write_text(LISTS[kind])
    with pytest.raises(VideoError) as raised:
        measure_source(tmp_path / "x.mp4")
    if kind == "ffconcat":  # the others are refused by FFmpeg as well, because of the name
        assert raised.value.reason == "no_video"
        assert "not a video file" in str(raised.value)


def test_a_list_is_not_a_clip_either(tmp_path, monkeypatch):
    shutil.copy(CASES_DIR / "plain.mp4", tmp_path / "secret.mp4")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError, match="not an MP4 file"):
        decode_clip(LISTS["ffconcat"].encode())


def test_a_video_is_opened():
    with open_video(CASES_DIR / "plain.mp4") as container:
        assert container.format.name.startswith("mov")


def test_a_title_in_another_encoding_costs_nothing(tmp_path):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        container.metadata["title"] = "cafQ"
        stream = container.add_stream("mpeg4", rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.height = stream.width = 32
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode())
    content = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(content.replace(b"cafQ", b"caf\xe9"))
    assert (measure_source(tmp_path / "a.avi").height, measure_source(tmp_path / "a.avi").width) == (32, 32)
