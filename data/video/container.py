"""Opening a file with FFmpeg as a video, and as nothing else.

FFmpeg tells the format by the content, whatever the name: a text file may be a list of other files (`ffconcat`, HLS,
DASH) or the address of a camera. Such a file would show videos that nobody named, from anywhere on the machine or the
network, so only formats that hold their own pictures are read.
"""

from collections.abc import Mapping
from pathlib import Path

import av
import av.container

from data.errors import VideoError

# FFmpeg's names of the formats that hold their own pictures. Left out are lists of other files (concat, dash, hls, imf,
# sdp, webm_dash_manifest), numbered images (image2), scripts (avisynth, vapoursynth), devices, text and sound.
FORMATS = (
    *("mov", "matroska", "avi", "flv", "live_flv", "kux", "asf", "asf_o", "mpeg", "mpegts", "ogg", "mxf", "nut", "rm"),
    *("dv", "gxf", "ivf", "nsv", "nuv", "wtv", "yuv4mpegpipe", "gif", "apng", "swf", "lxf", "pva", "ty", "bink", "smk"),
    *("h261", "h263", "h264", "hevc", "vvc", "evc", "av1", "obu", "m4v", "mpegvideo", "vc1", "vc1test", "dirac"),
    *("cavsvideo", "avs2", "avs3", "mjpeg", "mjpeg_2000", "dnxhd", "apv", "webp_anim", "jpegxl_anim"),
)
ALLOWED = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}


def open_video(path: Path, options: Mapping[str, str] | None = None) -> av.container.InputContainer:
    """Open a local file with FFmpeg, to be closed by the caller.

    Args:
        options: of FFmpeg, by name.

    Raises:
        VideoError: its content is not of a format that holds pictures itself.
        av.FFmpegError: it cannot be opened.
    """
    try:
        # Titles and the like, which are not used, may be in any encoding.
        return av.open(str(path.absolute()), options={**(options or {}), **ALLOWED}, metadata_errors="replace")
    except av.ArgumentError as error:  # how FFmpeg refuses a format that is not in the list
        raise VideoError(
            "no_video", "it is not a video file: its content is of no video format, or a list of other files"
        ) from error
