"""Properties of a video file, read from its packets and one decoded frame, and which decoders read it correctly.

Decoders make different errors: decord ignores edit lists, inserts frames into AVI files with B-frames, and is off by a
frame where groups of pictures are open; neither decord nor PyAV applies mirroring.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Literal

import av
import av.container
import numpy as np

from data.errors import VideoError
from data.video.container import open_video
from data.video.entries import ENTRY_CODECS, Entry, Packet, entries_of
from data.video.resize import Size, check_num_pixels, is_hd
from data.video.transparency import may_be_transparent

PROGRESSIVE = 1  # FFmpeg's AV_FIELD_PROGRESSIVE; 0 is unknown, higher values are orders of fields
# Containers that store presentation times (AVI, for example, stores only the order of decoding).
TIMED_CONTAINERS = frozenset({"mov", "matroska", "webm", "flv", "mpegts", "ogg"})
# What decord reads correctly: containers with an index, and codecs that its FFmpeg 4 supports completely.
DECORD_CONTAINERS = frozenset({"mov", "matroska", "webm"})
DECORD_CODECS = frozenset({"h264", "hevc", "mpeg4", "vp8", "vp9"})
# 10-bit colours differ from PyAV's at sharp edges, by up to 147 of 255.
DECORD_PIXEL_FORMATS = frozenset({"yuv420p", "yuvj420p"})
# FFmpeg decodes a frame to open a file, and the probe one more; their pixels are not used, so decoding is simplified.
OPEN_OPTIONS = {"skip_frame": "all"}
DECODE_OPTIONS = {"skip_loop_filter": "all", "skip_idct": "all"}
NO_TICKS = np.empty(0, np.int64)
# Codecs whose transparency is a second stream of pictures beside the packets, which FFmpeg's own decoders leave out.
ALPHA_LAYER_CODECS = frozenset({"vp8", "vp9"})
NO_TAG = "\0\0\0\0"  # of raw pixels in AVI without a code (BI_RGB), which have no alpha
SQUARE = Fraction(1)
Hdr = Literal["pq", "hlg"]
HDR_TRANSFERS: dict[int, Hdr] = {16: "pq", 18: "hlg"}  # by FFmpeg's number (AVColorTransferCharacteristic)
UNSPECIFIED = 2  # FFmpeg's AVCOL_SPC_UNSPECIFIED
# decord takes memory for every frame that the header, or duration and rate, promise, and aborts its process where there
# is not enough: a single time stamp that is years too late promises billions.
MAX_DECORD_FRAMES = 1_000_000
# Codecs whose frames come out of the decoder late, because later ones may have to be shown first.
REORDERING_CODECS = frozenset({"h264", "hevc"})
MAX_PIXEL_ASPECT = 16  # beyond this, and below its inverse, a pixel's aspect ratio is an error in the file


@dataclass(frozen=True)
class DisplayMatrix:
    """Rotation and mirroring for display: `x' = a x + c y`, `y' = b x + d y`, each factor -1, 0 or 1."""

    a: int = 1
    b: int = 0
    c: int = 0
    d: int = 1

    @property
    def is_transposed(self) -> bool:
        """Whether rows become columns."""
        return self.a == 0

    @property
    def is_mirrored(self) -> bool:
        """Whether it is a reflection, not a rotation."""
        return self.a * self.d - self.b * self.c < 0

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """The stored picture (h w c) as it is displayed."""
        across, down = (self.c, self.b) if self.is_transposed else (self.a, self.d)
        turned = picture.swapaxes(0, 1) if self.is_transposed else picture
        return turned[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


# Indexed by the number of quarter turns counter-clockwise.
QUARTER_TURNS = (
    DisplayMatrix(),
    DisplayMatrix(a=0, b=-1, c=1, d=0),
    DisplayMatrix(a=-1, b=0, c=0, d=-1),
    DisplayMatrix(a=0, b=1, c=-1, d=0),
)


@dataclass(frozen=True)
class Probe:
    """The best video stream of a file."""

    stream_index: int
    num_video_streams: int
    containers: frozenset[str]  # FFmpeg's names of the format, or one of them: matroska and webm, mov
    codec: str
    height: int  # as displayed: upright, in square pixels
    width: int
    upright_size: Size  # height and width of the decoded frames after rotation, before the pixels are made square
    pixel_aspect: Fraction  # width by height of a stored pixel
    coded_pixel_aspect: Fraction | None  # as above, as the bitstream says at its start; None: it does not
    seconds_per_tick: float
    # By the header, or duration times frame rate: far more than there are if these or a time stamp are false.
    promised_frames: float
    num_packets: int
    ticks: np.ndarray  # int64, strictly increasing: presentation time of each frame; empty if unknown
    pixel_format: str
    is_untagged_hd: bool  # HD in YUV that does not say by which matrix: players take BT.709, FFmpeg BT.601
    hdr: Hdr | None  # which transfer function of high dynamic range its code values follow; None: an ordinary one
    may_be_transparent: bool
    ignores_alpha: bool  # the fourth byte of its pixels, which PyAV reads as alpha, means nothing
    has_alpha_layer: bool  # in a second stream of pictures beside the packets
    matrix: DisplayMatrix
    is_interlaced: bool
    has_edit_list: bool  # some frames are decoded and not shown
    has_closed_groups: bool  # every frame is shown after the key frame that precedes it in the file
    entries: tuple[Entry, ...]  # where decoding may begin, besides the start
    is_damaged: bool  # FFmpeg reported errors before the first frame
    is_tone_mapped: bool = False  # whether frames of high dynamic range are to be tone-mapped

    @property
    def shown_size(self) -> Size:
        """Height and width as displayed."""
        return self.height, self.width

    @property
    def stored_size(self) -> Size:
        """Height and width as stored, before rotation."""
        height, width = self.upright_size
        return (width, height) if self.matrix.is_transposed else (height, width)

    @cached_property
    def times_seconds(self) -> np.ndarray:
        """Presentation time of each frame in seconds; empty if unknown."""
        return self.ticks * self.seconds_per_tick

    @property
    def shown_seconds(self) -> float:
        """How much video its packets show, if each one is shown for a second at most: headers may promise years."""
        claimed = self.times_seconds[-1] - self.times_seconds[0] if len(self.ticks) else np.inf
        return min(float(claimed), float(self.num_packets))

    @property
    def suits_decord(self) -> bool:
        """Whether decord reads exactly the frames that are shown, each at its index."""
        return (
            len(self.ticks) > 0
            and self.codec in DECORD_CODECS
            and self.pixel_format in DECORD_PIXEL_FORMATS
            and bool(self.containers & DECORD_CONTAINERS)
            and not any(side % 2 for side in self.stored_size)  # chroma is shifted if a side is odd
            and self.num_video_streams == 1
            and self.has_closed_groups
            and self.promised_frames <= MAX_DECORD_FRAMES
            and not (self.has_edit_list or self.is_interlaced or self.is_damaged or self.matrix.is_mirrored)
            and not (self.may_be_transparent or self.is_untagged_hd or self.is_tone_mapped)
        )


def probe_video(path: Path, max_pixels: int | None = None) -> Probe:
    """List the packets of a file's best video stream and decode one frame.

    Args:
        max_pixels: of a frame; where the header or the bitstream has more, nothing is decoded. None: no limit.

    Raises:
        VideoError: the file is empty, encrypted, too large, or contains no video.
        OSError: it cannot be read.
    """
    limit = {} if max_pixels is None else {"max_pixels": str(max_pixels)}
    try:
        with open_video(path, OPEN_OPTIONS | limit) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise VideoError("no_video", "it holds no video stream")
            context = stream.codec_context
            if context is None:  # pyright: ignore[reportUnnecessaryComparison] - not so in PyAV's stubs
                raise VideoError("undecodable", "its codec is unknown to FFmpeg")
            check_num_pixels(context.height, context.width, max_pixels)
            context.thread_count = 1
            context.options = DECODE_OPTIONS | limit
            packets = _read_packets(container, stream)
            if not packets.listed:
                raise VideoError("no_video", "it holds no video frames")
            first, is_damaged = packets.first, packets.is_damaged
            if first is None:  # such as one of two fields in the first packet
                first, is_damaged = _first_decoded(path, stream.index, limit)
            if first is None:
                raise VideoError("undecodable", "none of its frames can be decoded")
            return _probe_of(container, stream, packets, first, is_damaged=is_damaged)
    except av.FFmpegError as error:
        raise VideoError("undecodable", f"it cannot be decoded (FFmpeg: {error.strerror})") from error


@dataclass(frozen=True)
class _Packets:
    """The packets of a stream, and what came out of its decoder."""

    listed: list[Packet]
    first: av.VideoFrame | None  # None: no packet has given one
    is_damaged: bool  # a packet before that frame is
    have_layer: bool  # pictures beside them, which may be an alpha layer; False if the codec knows none


def _read_packets(container: av.container.InputContainer, stream: av.VideoStream) -> _Packets:
    """List the packets of a stream and decode them until there is a frame.

    Raises:
        VideoError: they are encrypted.
    """
    may_have_layer = stream.codec_context.codec.canonical_name in ALPHA_LAYER_CODECS
    listed: list[Packet] = []
    is_damaged = have_layer = False
    first: av.VideoFrame | None = None
    for packet in container.demux(stream):
        if packet.has_sidedata("encryption_info"):
            raise VideoError("encrypted", "it is encrypted")
        if packet.size > 0:  # the last packet is empty and flushes the decoder
            listed.append(Packet(packet.pts, packet.dts, packet.is_keyframe, packet.is_discard))
            have_layer |= may_have_layer and packet.has_sidedata("matroska_block_additional")
        if first is None:
            try:
                first = _first_frame(packet, stream.codec_context)
            except av.InvalidDataError:
                is_damaged = True
    return _Packets(listed, first, is_damaged, have_layer)


def _probe_of(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    packets: _Packets,
    first: av.VideoFrame,
    *,
    is_damaged: bool,
) -> Probe:
    """What the header, the packets and the first frame say together."""
    context, listed = stream.codec_context, packets.listed
    containers = frozenset(container.format.name.split(","))
    fields = context.field_order  # pyright: ignore[reportAttributeAccessIssue] - missing in PyAV's stubs
    is_interlaced = fields > PROGRESSIVE or first.interlaced_frame
    matrix = display_matrix(first)
    ticks = _shown_ticks(listed) if containers & TIMED_CONTAINERS and not is_interlaced else NO_TICKS
    seconds_per_tick = float(stream.time_base or 0)
    codec = context.codec.canonical_name
    has_alpha_layer = packets.have_layer and _says_alpha_layer(stream.metadata)
    is_opaque = codec == "rawvideo" and context.codec_tag == NO_TAG and "avi" in containers
    can_enter = len(ticks) > 0 and codec in ENTRY_CODECS and not (is_damaged or has_alpha_layer)
    coded = context.sample_aspect_ratio
    # As players do: what the container says comes before what the bitstream says.
    pixel_aspect = _plausible(stream.sample_aspect_ratio or coded or SQUARE)
    upright = (first.width, first.height) if matrix.is_transposed else (first.height, first.width)
    height, width = square_size(upright, 1 / pixel_aspect if matrix.is_transposed else pixel_aspect)
    return Probe(
        stream_index=stream.index,
        num_video_streams=len(container.streams.video),
        containers=containers,
        codec=codec,
        height=height,
        width=width,
        upright_size=upright,
        pixel_aspect=pixel_aspect,
        coded_pixel_aspect=coded,
        seconds_per_tick=seconds_per_tick,
        promised_frames=_promised_frames(container, stream, ticks, seconds_per_tick),
        num_packets=len(listed),
        ticks=ticks,
        pixel_format=first.format.name,
        is_untagged_hd=_is_untagged_hd(first),
        hdr=HDR_TRANSFERS.get(first.color_trc),
        may_be_transparent=has_alpha_layer or (may_be_transparent(first.format) and not is_opaque),
        ignores_alpha=is_opaque,
        has_alpha_layer=has_alpha_layer,
        matrix=matrix,
        is_interlaced=is_interlaced,
        has_edit_list=any(packet.is_discard for packet in listed),
        has_closed_groups=_are_groups_closed(listed),
        entries=entries_of(listed) if can_enter else (),
        is_damaged=is_damaged,
    )


def _is_untagged_hd(frame: av.VideoFrame) -> bool:
    is_yuv = not frame.format.is_rgb and len(frame.format.components) >= 3
    return is_yuv and frame.colorspace == UNSPECIFIED and is_hd(frame.height, frame.width)


def _first_frame(packet: av.Packet, context: av.VideoCodecContext) -> av.VideoFrame | None:
    """The frame of this packet; None if the decoder returns none yet.

    Raises:
        av.InvalidDataError: the packet is damaged.
    """
    decoded = packet.decode()
    if not decoded and packet.size and packet.is_keyframe and context.codec.canonical_name in REORDERING_CODECS:
        decoded = context.decode(None)  # the end of the stream: a frame that waits for earlier ones comes out
        context.flush_buffers()
    return next((frame for frame in decoded if isinstance(frame, av.VideoFrame)), None)


def _first_decoded(path: Path, stream_index: int, limit: dict[str, str]) -> tuple[av.VideoFrame | None, bool]:
    """The first frame that decoding from the start returns, if any, and whether packets before it are damaged."""
    is_damaged = False
    with open_video(path, OPEN_OPTIONS | limit) as container:
        stream = container.streams[stream_index]
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.thread_count = 1
        stream.codec_context.options = DECODE_OPTIONS | limit
        for packet in container.demux(stream):
            try:
                for frame in packet.decode():
                    assert isinstance(frame, av.VideoFrame)
                    return frame, is_damaged
            except av.InvalidDataError:
                is_damaged = True
    return None, is_damaged


def _says_alpha_layer(metadata: Mapping[str, str]) -> bool:
    """Whether the tags of a stream say that it has an alpha layer; FFmpeg gives some names of tags in upper case."""
    return any(name.lower() == "alpha_mode" and value.strip() == "1" for name, value in metadata.items())


def display_matrix(frame: av.VideoFrame) -> DisplayMatrix:
    """The display matrix of a frame; anything but quarter turns and mirroring is ignored."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV raises if any side data is newer than itself, but knows the angle
        return QUARTER_TURNS[round(frame.rotation / 90) % 4]
    if data is None:
        return DisplayMatrix()
    a, b, _, c, d = np.sign(np.frombuffer(bytes(data), np.int32)[:5]).tolist()
    is_turn = (abs(a), abs(b), abs(c), abs(d)) in {(1, 0, 0, 1), (0, 1, 1, 0)}
    return DisplayMatrix(a, b, c, d) if is_turn else DisplayMatrix()


def _promised_frames(
    container: av.container.InputContainer, stream: av.VideoStream, ticks: np.ndarray, seconds_per_tick: float
) -> float:
    """By the header, or duration times frame rate, by the largest of each that the file claims."""
    durations = [(container.duration or 0) / av.time_base, (stream.duration or 0) * seconds_per_tick]
    rates = [float(rate) for rate in (stream.average_rate, stream.base_rate) if rate]
    if len(ticks) > 1:
        durations.append(float(ticks[-1] - ticks[0]) * seconds_per_tick)
        interval = median(np.diff(ticks).tolist())  # NumPy's takes a tenth of the probe of a small file
        rates.append(1 / (interval * seconds_per_tick))
    return max(float(stream.frames), max(durations) * max(rates, default=1.0))


def square_size(size: Size, pixel_aspect: Fraction) -> Size:
    """Height and width of a picture in square pixels: one side is enlarged, so that no stored pixel is lost.

    Args:
        pixel_aspect: width by height of a pixel.
    """
    height, width = size
    return (height, round(width * pixel_aspect)) if pixel_aspect >= 1 else (round(height / pixel_aspect), width)


def _plausible(pixel_aspect: Fraction) -> Fraction:
    width, height = pixel_aspect.as_integer_ratio()
    if height > MAX_PIXEL_ASPECT * width or width > MAX_PIXEL_ASPECT * height:
        raise VideoError(
            "undecodable",
            f"it says that its pixels are {pixel_aspect.numerator}:{pixel_aspect.denominator} (width to height), which "
            f"is beyond {MAX_PIXEL_ASPECT}:1; correct it with `ffmpeg -i OLD -c copy -aspect 16:9 NEW` (its own ratio)",
        )
    return pixel_aspect


def _shown_ticks(packets: list[Packet]) -> np.ndarray:
    """Presentation times of the shown frames, in order; none if one is missing or occurs twice."""
    shown = [packet for packet in packets if not packet.is_discard]
    ticks = [packet.tick for packet in shown if packet.tick is not None]
    if len(set(ticks)) < len(shown):
        return NO_TICKS
    return np.array(sorted(ticks), np.int64)  # mostly in order


def _are_groups_closed(packets: list[Packet]) -> bool:
    """Whether no frame that follows a key frame in the file is shown before it."""
    earliest = np.inf
    for tick, _, is_keyframe, _ in reversed(packets):
        earliest = min(earliest, np.inf if tick is None else tick)
        if is_keyframe and tick is not None and earliest < tick:
            return False
    return True
