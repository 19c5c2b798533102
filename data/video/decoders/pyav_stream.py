"""The frames of a video stream in the order of decoding, by PyAV: from the start or from an entry, deinterlaced."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, dropwhile
from pathlib import Path
from typing import Literal

import av
import av.container
import av.filter
from av.codec.codec import UnknownCodecError

from data.errors import VideoError
from data.video.container import open_video
from data.video.entries import Entry, is_exact
from data.video.probe import OPEN_OPTIONS, Probe

ALPHA_LAYER_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # which decode both layers of a transparent video
# Containers that state one aspect ratio of the pixels for the whole video, whatever the bitstream says later.
ONE_ASPECT_CONTAINERS = frozenset({"mov", "matroska"})
MAX_GROWTH = 4  # how many times as many pixels FFmpeg may take memory for, until the change of the size is noticed

# Codecs of which a frame that no other frame refers to can be left out, as its packet says which: in HEVC, layers above
# may refer to it, and other decoders ignore the request.
SKIPPABLE_CODECS = frozenset({"h264"})

Clock = Literal["pts", "dts"]  # the time stamp of presentation, or of decoding


class NoEntryError(Exception):
    """Decoding cannot begin exactly at an entry, although the list of packets says so."""


def decode_frames(
    path: Path,
    probe: Probe,
    clock: Clock,
    entry: Entry | None = None,
    *,
    is_analysed: bool = True,
    is_needed: Callable[[int], bool] | None = None,
) -> Iterator[tuple[av.VideoFrame, int | None]]:
    """Every frame that is shown, with its time stamp in ticks; None where a frame has none.

    Args:
        clock: which time stamp.
        entry: where to begin; None: at the start of the file.
        is_analysed: FFmpeg decodes some frames to open the file, up to 15 ms of work. Without, it does not know how
            many frames wait for an earlier one in some H.264 files, and leaves out those that it then returns too late.
        is_needed: asked for the time stamp of presentation of each packet. A frame that is not needed, and that no
            other frame refers to, is not decoded if that can be known; None: all are decoded.

    Raises:
        NoEntryError: before the first frame: decoding cannot begin at the entry.
        VideoError: the file cannot be decoded, or the size of its frames or the shape of its pixels changes.
    """
    try:
        limit = {"max_pixels": str(MAX_GROWTH * probe.stored_size[0] * probe.stored_size[1])}
        is_analysed |= probe.is_interlaced  # the filter is built from what the frames are like
        with open_video(path, limit if is_analysed else OPEN_OPTIONS | limit) as container:
            stream = container.streams[probe.stream_index]
            assert isinstance(stream, av.VideoStream)
            stream.codec_context.thread_count = 1  # several processes are faster than several threads
            stream.codec_context.options = limit
            if probe.codec not in SKIPPABLE_CODECS or probe.is_interlaced:
                is_needed = None
            if entry is not None:
                frames = _frames_from(entry, container, stream, is_needed)
            elif probe.has_alpha_layer:
                frames = _with_alpha_layer(container, stream, probe.codec)
            else:
                frames = _decoded(container.demux(stream), stream, is_needed)
            has_one_aspect = bool(probe.containers & ONE_ASPECT_CONTAINERS)
            for frame in _deinterlaced(frames, stream) if probe.is_interlaced else frames:
                if (frame.height, frame.width) != probe.stored_size:
                    raise VideoError("size_changes", "its frame size changes in mid-stream")
                if not has_one_aspect and stream.codec_context.sample_aspect_ratio != probe.coded_pixel_aspect:
                    raise VideoError("size_changes", "the aspect ratio of its pixels changes in mid-stream")
                yield frame, frame.dts if clock == "dts" else frame.pts
    except av.FFmpegError as error:
        raise VideoError("undecodable", f"it cannot be decoded (FFmpeg: {error.strerror})") from error


def _decoded(
    packets: Iterable[av.Packet], stream: av.VideoStream, is_needed: Callable[[int], bool] | None
) -> Iterator[av.VideoFrame]:
    """The frames of some packets, without those that are not needed, as far as these can be left out."""
    context = stream.codec_context
    for packet in packets:
        if is_needed is not None:
            context.skip_frame = "DEFAULT" if packet.pts is None or is_needed(packet.pts) else "NONREF"
        for frame in packet.decode():
            assert isinstance(frame, av.VideoFrame)
            yield frame


def _frames_from(
    entry: Entry,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    is_needed: Callable[[int], bool] | None,
) -> Iterator[av.VideoFrame]:
    """The frames from an entry on.

    Raises:
        NoEntryError: the container cannot seek to it, or the bitstream does not allow decoding to begin there.
    """
    try:
        # The first packet names the encoder of the file; FFmpeg corrects the errors of some (4:4:4 of old x264).
        next(container.demux(stream)).decode()
        container.seek(entry.seek_tick, stream=stream)
        packets = dropwhile(lambda packet: packet.pts != entry.tick, container.demux(stream))
        first = next(packets, None)
    except av.FFmpegError as error:
        raise NoEntryError from error
    if first is None or not first.is_keyframe or not is_exact(stream.codec_context.codec.canonical_name, bytes(first)):
        raise NoEntryError
    frames = _decoded(chain((first,), packets), stream, is_needed)
    for frame in frames:
        if frame.pts is not None and frame.pts >= entry.tick:
            if frame.pts > entry.tick or not frame.key_frame:
                raise NoEntryError
            yield frame
            break
    yield from frames


def _with_alpha_layer(
    container: av.container.InputContainer, stream: av.VideoStream, codec: str
) -> Iterator[av.VideoFrame]:
    """The frames with the transparency that their packets carry beside the picture.

    Raises:
        VideoError: this build of PyAV has no decoder for it.
    """
    try:
        context = av.CodecContext.create(ALPHA_LAYER_DECODERS[codec], "r")
    except UnknownCodecError as error:
        raise VideoError(
            "undecodable", "it is transparent, which PyAV reads with libvpx only: install the wheel of `av` from PyPI"
        ) from error
    assert isinstance(context, av.VideoCodecContext)
    context.extradata = stream.codec_context.extradata
    context.thread_count = 1
    return (frame for packet in container.demux(stream) for frame in context.decode(packet))


def _deinterlaced(frames: Iterator[av.VideoFrame], stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Progressive frames: in those flagged as interlaced, bwdif interpolates the lines of the second field."""
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(template=stream),
        graph.add("bwdif", "mode=send_frame:deint=interlaced"),
        graph.add("buffersink"),
    ).configure()
    for frame in chain(frames, (None,)):  # None flushes the filter
        graph.vpush(frame)
        while (picture := _pull(graph)) is not None:
            if picture.pts is not None:  # the filter counts in half ticks
                assert picture.time_base is not None
                assert stream.time_base is not None
                picture.pts = round(picture.pts * picture.time_base / stream.time_base)
            yield picture


def _pull(graph: av.filter.Graph) -> av.VideoFrame | None:
    try:
        return graph.vpull()
    except (av.BlockingIOError, av.EOFError):
        return None
