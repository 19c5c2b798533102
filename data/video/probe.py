"""Properties of a video file, read from its packets and one decoded frame, and which decoders read it correctly.

Decoders make different errors: decord ignores edit lists, inserts frames into AVI files with B-frames, and is off by a
frame where groups of pictures are open; neither decord nor torchcodec nor PyAV applies mirroring.
"""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from data.errors import VideoError
from data.video.entries import ENTRY_CODECS, Entry, Packet, entries_of

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
    containers: frozenset[str]  # FFmpeg's names of the format, such as mov and mp4
    codec: str
    height: int  # pixels, as displayed
    width: int
    seconds_per_tick: float
    ticks: np.ndarray  # int64, strictly increasing: presentation time of each frame; empty if unknown
    pixel_format: str
    matrix: DisplayMatrix
    is_interlaced: bool
    has_edit_list: bool  # some frames are decoded and not shown
    has_closed_groups: bool  # every frame is shown after the key frame that precedes it in the file
    entries: tuple[Entry, ...]  # where decoding may begin, besides the start
    is_damaged: bool  # FFmpeg reported errors before the first frame

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width as stored, before rotation."""
        return (self.width, self.height) if self.matrix.is_transposed else (self.height, self.width)

    @property
    def times_seconds(self) -> np.ndarray:
        """Presentation time of each frame in seconds; empty if unknown."""
        return self.ticks * self.seconds_per_tick

    @property
    def suits_decord(self) -> bool:
        """Whether decord reads exactly the frames that are shown, each at its index."""
        return (
            len(self.ticks) > 0
            and self.codec in DECORD_CODECS
            and self.pixel_format in DECORD_PIXEL_FORMATS
            and bool(self.containers & DECORD_CONTAINERS)
            and self.height % 2 == self.width % 2 == 0  # chroma is shifted if a side is odd
            and self.num_video_streams == 1
            and self.has_closed_groups
            and not (self.has_edit_list or self.is_interlaced or self.is_damaged or self.matrix.is_mirrored)
        )

    @property
    def suits_torchcodec(self) -> bool:
        """Whether torchcodec, which applies edit lists and seeks exactly, reads exactly the frames that are shown."""
        return len(self.ticks) > 0 and not (self.is_interlaced or self.is_damaged or self.matrix.is_mirrored)


def probe_video(path: Path) -> Probe:
    """List the packets of a file's best video stream and decode one frame.

    Raises:
        VideoError: the file is empty, encrypted, or contains no video.
        OSError: it cannot be read.
    """
    if path.stat().st_size == 0:
        raise VideoError("empty_file", "the file is empty")
    try:
        with av.open(str(path.resolve()), options=OPEN_OPTIONS) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream):
                raise VideoError("no_video", "it holds no video stream")
            context = stream.codec_context
            context.thread_count = 1
            context.options = DECODE_OPTIONS
            packets: list[Packet] = []
            is_damaged = False
            first: av.VideoFrame | None = None
            for packet in container.demux(stream):
                if packet.has_sidedata("encryption_info"):
                    raise VideoError("encrypted", "it is encrypted")
                if packet.size > 0:  # the last packet is empty and flushes the decoder
                    packets.append(Packet(packet.pts, packet.dts, packet.is_keyframe, packet.is_discard))
                if first is None:
                    try:
                        first = next((frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)), None)
                    except av.InvalidDataError:
                        is_damaged = True
            if not packets:
                raise VideoError("no_video", "it holds no video frames")
            if first is None:
                raise VideoError("undecodable", "none of its frames can be decoded")
            containers = frozenset(container.format.name.split(","))
            fields = context.field_order  # pyright: ignore[reportAttributeAccessIssue] - missing in PyAV's stubs
            is_interlaced = fields > PROGRESSIVE or first.interlaced_frame
            matrix = display_matrix(first)
            ticks = _shown_ticks(packets) if containers & TIMED_CONTAINERS and not is_interlaced else NO_TICKS
            codec = context.codec.canonical_name
            can_enter = len(ticks) > 0 and codec in ENTRY_CODECS and not is_damaged
            return Probe(
                stream_index=stream.index,
                num_video_streams=len(container.streams.video),
                containers=containers,
                codec=codec,
                height=first.width if matrix.is_transposed else first.height,
                width=first.height if matrix.is_transposed else first.width,
                seconds_per_tick=float(stream.time_base or 0),
                ticks=ticks,
                pixel_format=first.format.name,
                matrix=matrix,
                is_interlaced=is_interlaced,
                has_edit_list=any(packet.is_discard for packet in packets),
                has_closed_groups=_are_groups_closed(packets),
                entries=entries_of(packets) if can_enter else (),
                is_damaged=is_damaged,
            )
    except av.FFmpegError as error:
        raise VideoError("undecodable", f"it cannot be decoded (FFmpeg: {error.strerror})") from error


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


def _shown_ticks(packets: list[Packet]) -> np.ndarray:
    """Presentation times of the shown frames, in order; none if one is missing or occurs twice."""
    ticks = [packet.tick for packet in packets if not packet.is_discard]
    if None in ticks or len(set(ticks)) < len(ticks):
        return NO_TICKS
    return np.sort(np.array(ticks, np.int64))


def _are_groups_closed(packets: list[Packet]) -> bool:
    """Whether no frame that follows a key frame in the file is shown before it."""
    earliest = np.inf
    for tick, _, is_keyframe, _ in reversed(packets):
        earliest = min(earliest, np.inf if tick is None else tick)
        if is_keyframe and tick is not None and earliest < tick:
            return False
    return True
