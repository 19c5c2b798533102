"""Opening a file with FFmpeg as a video, and as nothing else.

FFmpeg tells the format by the content, whatever the name: a text file may be a list of other files (`ffconcat`, HLS,
DASH) or the address of a camera. Such a file would show videos that nobody named, from anywhere on the machine or the
network, so only formats that hold their own pictures are read.

To tell the format, FFmpeg asks each of its hundreds of demuxers, which takes a third of the probe of a small file. Two
kinds of files are told by their first bytes instead: most MP4 files, and text, which many collections hold in place of
videos that could not be downloaded.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import av
import av.container

from data.errors import VideoError, quoted

# FFmpeg's names of the formats that hold their own pictures. Left out are lists of other files (concat, dash, hls, imf,
# sdp, webm_dash_manifest), numbered images (image2), scripts (avisynth, vapoursynth), devices, text and sound.
FORMATS = (
    *("mov", "matroska", "avi", "flv", "live_flv", "kux", "asf", "asf_o", "mpeg", "mpegts", "ogg", "mxf", "nut", "rm"),
    *("dv", "gxf", "ivf", "nsv", "nuv", "wtv", "yuv4mpegpipe", "gif", "apng", "swf", "lxf", "pva", "ty", "bink", "smk"),
    *("h261", "h263", "h264", "hevc", "vvc", "evc", "av1", "obu", "m4v", "mpegvideo", "vc1", "vc1test", "dirac"),
    *("cavsvideo", "avs2", "avs3", "mjpeg", "mjpeg_2000", "dnxhd", "apv", "webp_anim", "jpegxl_anim"),
)
HEAD_BYTES = 2048  # of a file that are read first
SHOWN_CHARACTERS = 60  # of a text, in the message
CONTROLS = bytes(set(range(32)) - set(b"\b\t\n\f\r\x1b"))  # bytes that text does not have
TEXT_HEADER = b"YUV4MPEG2 "  # frames follow it, which may be of any bytes
ALLOWED = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
MP4_MARK = b"ftyp"  # type of the first box of an MP4 file, after its four bytes of length
# What the first box of an MP4 file names next. Left out are `qt  `, by which FFmpeg may find an MPEG stream inside, and
# `jp2 ` and the like, which are pictures.
MP4_BRANDS = frozenset({b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"M4V "})


def open_video(path: Path, options: Mapping[str, str] | None = None) -> av.container.InputContainer:
    """Open a local file with FFmpeg, to be closed by the caller.

    Args:
        options: of FFmpeg, by name.

    Raises:
        VideoError: it is empty, or its content is not of a format that holds pictures itself.
        av.FFmpegError: it cannot be opened.
        OSError: it cannot be read.
    """
    head = _head(path)
    if not head:
        raise VideoError("empty_file", "the file is empty")
    if _is_text(head):
        beginning = head.decode("utf-8-sig", "ignore").strip().partition("\n")[0].strip()[:SHOWN_CHARACTERS]
        which = f"which begins with {quoted(beginning)}" if beginning else "of white space alone"
        raise VideoError("no_video", f"it is not a video file but text, {which}")
    name, allowed = str(path.absolute()), {**(options or {}), **ALLOWED}
    try:
        # Titles and the like, which are not used, may be in any encoding.
        return av.open(name, format=known_format(head), options=allowed, metadata_errors="replace")
    except av.ArgumentError as error:  # how FFmpeg refuses a format that is not in the list
        raise VideoError(
            "no_video", "it is not a video file: its content is of no video format, or a list of other files"
        ) from error


def _head(path: Path) -> bytes:
    """The first bytes of a file, none of a pipe; by a file object it would take twice as long."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for
    try:
        return os.read(descriptor, HEAD_BYTES)
    finally:
        os.close(descriptor)


def known_format(head: bytes) -> str | None:
    """FFmpeg's name of the format of a file that begins like this; None: FFmpeg has to find out."""
    return "mov" if head[4:8] == MP4_MARK and head[8:12] in MP4_BRANDS else None


def _is_text(head: bytes) -> bool:
    """Whether a file that begins like this is text in UTF-8, and no video whose header is text."""
    if head.translate(None, CONTROLS) != head or head.startswith(TEXT_HEADER):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return len(head) == HEAD_BYTES and error.reason == "unexpected end of data"  # a character is cut in two
    return True
