"""What FFmpeg is allowed to open: files that hold their own pictures."""

import shutil
from os import mkfifo

import av
import pytest

from data.errors import VideoError
from data.video.codec import decode_clip
from data.video.container import HEAD_BYTES, SHOWN_CHARACTERS, known_format, open_video
from data.video.extract import measure_source
from testing.paths import CASES_DIR, CLIPS_DIR

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
    assert raised.value.reason == "no_video"
    assert "not a video file" in str(raised.value)


def test_ffmpeg_would_refuse_a_list_too(tmp_path, monkeypatch):
    monkeypatch.setattr("data.video.container._is_text", lambda _: False)
    shutil.copy(CASES_DIR / "plain.mp4", tmp_path / "secret.mp4")
    (tmp_path / "x.mp4").write_text(LISTS["ffconcat"])
    with pytest.raises(VideoError, match="or a list of other files"):
        measure_source(tmp_path / "x.mp4")


def test_a_list_is_not_a_clip_either(tmp_path, monkeypatch):
    shutil.copy(CASES_DIR / "plain.mp4", tmp_path / "secret.mp4")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError, match="not an MP4 file"):
        decode_clip(LISTS["ffconcat"].encode())


def test_a_video_is_opened():
    with open_video(CASES_DIR / "plain.mp4") as container:
        assert container.format.name.startswith("mov")


def test_the_first_bytes_tell_the_format_that_ffmpeg_finds():
    compared, refused = 0, 0
    for path in sorted(CLIPS_DIR.rglob("*.*")):
        with path.open("rb") as file:
            name = known_format(file.read(HEAD_BYTES))
        if name is None:
            continue
        try:
            with av.open(str(path)) as container:
                assert container.format.name.split(",")[0] == name
            compared += 1
        except av.InvalidDataError:
            refused += 1
            with pytest.raises(av.InvalidDataError):
                open_video(path)
    assert compared >= 399
    assert refused >= 4


@pytest.mark.parametrize("brand", [b"qt  ", b"jp2 ", b"xxxx"])
def test_ffmpeg_looks_at_files_whose_first_bytes_leave_a_doubt(tmp_path, brand):
    content = (CASES_DIR / "plain.mp4").read_bytes()
    head = content[:8] + brand + content[12:]
    assert known_format(content[:HEAD_BYTES]) == "mov"
    assert known_format(head[:HEAD_BYTES]) is None
    (tmp_path / "a.mp4").write_bytes(head)
    with open_video(tmp_path / "a.mp4") as container:
        assert container.streams.video[0].frames == 64


TEXTS = {
    "page": (b"\n<!DOCTYPE html>\r\n<title>404</title>", "which begins with '<!DOCTYPE html>'"),
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "which begins with 'version https://git-lfs.github.com/spec/v1'",
    ),
    "mark": ("\ufeffein Würfel\n".encode(), "which begins with 'ein Würfel'"),
    "cut": (b"a" * (HEAD_BYTES - 1) + "ü".encode() * 9, f"which begins with '{'a' * SHOWN_CHARACTERS}'"),
    "blank": (b" \n\t\n", "of white space alone"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_text_is_refused_with_its_beginning(tmp_path, kind):
    content, described = TEXTS[kind]
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(VideoError) as raised:
        measure_source(tmp_path / "a.mp4")
    assert raised.value.reason == "no_video"
    assert str(raised.value) == f"it is not a video file but text, {described}"


@pytest.mark.parametrize("content", [b"text\0", b"caf\xe9", b"a" * 9 + "ü".encode()[:1], b"\x7fELF\x02"])
def test_what_is_not_text_is_left_to_ffmpeg(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(av.InvalidDataError):
        open_video(tmp_path / "a.mp4")


def test_a_video_whose_header_is_text_is_read(tmp_path):
    picture = b"FRAME\n" + b"a" * (16 * 16 * 3 // 2)
    (tmp_path / "a.y4m").write_bytes(b"YUV4MPEG2 W16 H16 F8:1 Ip A1:1 C420jpeg\n" + picture * 8)
    assert (measure_source(tmp_path / "a.y4m").height, measure_source(tmp_path / "a.y4m").width) == (16, 16)


def test_an_empty_file_is_no_video(tmp_path):
    (tmp_path / "a.mp4").touch()
    mkfifo(tmp_path / "b.mp4")  # which would be waited for
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(VideoError, match="the file is empty"):
            open_video(tmp_path / name)


def test_what_cannot_be_read_is_an_error_of_the_file_system(tmp_path):
    for path, kind in ((tmp_path / "a.mp4", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(kind):
            open_video(path)


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
