"""Every clip that ingestion stores of a folder of videos, against FFmpeg's filters: aspect ratio, colour and frames.

    python -m benchmarks.stored_clips VIDEOS

The folder is ingested; then each source is decoded a second time, from its first to its last frame, by code that
shares nothing with ours: libavfilter converts the frames to RGB over white and scales them to square pixels, the
display matrix of the file is applied with NumPy, and the frame on screen at each instant of a clip is looked up by its
time stamp. The clips are read from the shards with `tarfile`. Facts of a clip, against that reference:

    psnr      of the luma of its frames
    colour    the largest difference of the mean of a channel, of 255
    frames    whether each frame is nearer to the frame on screen than to the one before and after it
    aspect    the stretch in width, from 0.7 to 1.4, at which the reference is nearest to the clip

Clips beyond one of the limits below are listed with their figures. The ledger has to account for each source.
"""

import argparse
import io
import json
import statistics
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import cast

import av
import av.filter
import numpy as np
from av.container import InputContainer
from PIL import Image

from data.curation.source_folders import list_folder
from data.dataset.buckets import Bucket
from data.files.publish import publish_text
from launch.cluster import connected
from launch.config import ClusterConfig
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.shard import make_shards

BUCKETS = (
    Bucket(num_frames=9, height=96, width=96, fps=8),
    Bucket(num_frames=9, height=96, width=160, fps=8),
    Bucket(num_frames=9, height=160, width=96, fps=8),
    Bucket(num_frames=1, height=128, width=128, fps=8),
)
TIE_SECONDS = 5e-4  # a frame that starts at most so much later counts as on screen
SAME_SECONDS = 1e-6
MIN_PSNR_DB = 27.0
MAX_COLOUR = 3.0  # of 255, between the means of a channel
MAX_STRETCH = 0.025
STRETCHES = np.geomspace(0.7, 1.4, 41)
NEARER_DB = 3.0  # by which a stretched reference has to be nearer than the reference as it is
EQUAL_DB = 40.0  # neighbouring frames that are nearer to each other than this cannot be told apart after compression
MATRICES = {1: "bt709", 9: "bt2020"}  # by AVColorSpace; FFmpeg takes BT.601 where a file says nothing
FULL_RANGE = 2
SCALING = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
AS_IT_IS = (1, 0, 0, 1)  # display matrix
RESULT = Path(__file__).parent / "results" / "stored_clips.json"


@dataclass(frozen=True)
class Clip:
    """One clip of the dataset."""

    source: str
    start_seconds: float
    fps: float
    frames: np.ndarray  # (t, h, w, 3), uint8


@dataclass(frozen=True)
class Facts:
    """What a clip is like beside its reference."""

    source: str
    start_seconds: float
    decoder: str
    psnr_db: float
    colour: float
    num_frames: int
    wrong_frames: int
    distinct_frames: int  # those that differ enough from their neighbours to be told apart
    stretch: float  # of the width, at which the reference is nearest

    @property
    def mistakes(self) -> list[str]:
        """The facts that are beyond their limit."""
        found = {
            "psnr": self.psnr_db < MIN_PSNR_DB,
            "colour": self.colour > MAX_COLOUR,
            "frames": self.wrong_frames > 0,
            "aspect": abs(np.log(self.stretch)) > MAX_STRETCH,
        }
        return [name for name, is_wrong in found.items() if is_wrong]


def stored_clips(folder: Path) -> Iterator[tuple[Clip, str]]:
    """The clips of a dataset, and the decoder of each, straight from its tar files."""
    for shard in sorted(folder.rglob("*.tar")):
        members: dict[str, dict[str, bytes]] = defaultdict(dict)
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, kind = Path(member.name).name.partition(".")
                content = tar.extractfile(member)
                assert content is not None
                members[key][kind] = content.read()
        for parts in members.values():
            record = json.loads(parts["json"])
            with av.open(io.BytesIO(parts["mp4"]), mode="r") as container:
                stream = container.streams.video[0]
                as_rgb = converter(stream, stream.width, stream.height)
                frames = np.stack([picture for frame in container.decode(stream) for picture in as_rgb(frame)])
            yield Clip(record["source"], record["start_seconds"], record["fps"], frames), record["decoder"]


def converter(
    stream: av.VideoStream, width: int, height: int, *, deinterlace: bool = False
) -> Callable[[av.VideoFrame | None], Iterator[np.ndarray]]:
    """A function that turns decoded frames into RGB pictures of this size, over white.

    It may hold frames back; called with None it gives the rest.
    """
    graph: av.filter.Graph | None = None

    def build(frame: av.VideoFrame) -> av.filter.Graph:
        made = av.filter.Graph()
        matrix = MATRICES.get(int(frame.colorspace), "bt601")
        pixels_range = "full" if int(frame.color_range) == FULL_RANGE or "yuvj" in frame.format.name else "limited"
        is_yuv = frame.format.name.startswith(("yuv", "nv", "p01"))
        color = f":in_color_matrix={matrix}:in_range={pixels_range}" if is_yuv else ""
        steps = [made.add_buffer(template=stream, format=frame.format, width=frame.width, height=frame.height)]
        if deinterlace:
            steps.append(made.add("bwdif", "mode=send_frame:deint=interlaced"))
        steps.append(made.add("scale", f"w={width}:h={height}:out_range=full{color}:flags={SCALING}"))
        steps += [made.add("format", "rgba"), made.add("buffersink")]
        made.link_nodes(*steps).configure()
        return made

    def convert(frame: av.VideoFrame | None) -> Iterator[np.ndarray]:
        nonlocal graph
        if frame is not None:
            graph = graph or build(frame)
        if graph is None:
            return
        graph.vpush(frame)
        while True:
            try:
                done = graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield over_white(done.to_ndarray())

    return convert


def over_white(pixels: np.ndarray) -> np.ndarray:
    """The RGB of an RGBA picture over white."""
    if pixels[..., 3].min() == 255:
        return pixels[..., :3]
    opaque = pixels[..., 3:].astype(np.float32) / 255
    return (pixels[..., :3] * opaque + 255 * (1 - opaque)).round().astype(np.uint8)


def decoded(container: InputContainer) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    """The frames of a video in the order in which they are shown, and their times in seconds.

    Where their time stamps are missing or do not rise, as in AVI files with B-frames, those of decoding count; a gap in
    them is a place in the file that repeats the frame before. libvpx decodes VP8 and VP9: FFmpeg's own decoders leave
    out the alpha layer.
    """
    tick = Fraction(container.streams.video[0].time_base or 1)
    with av.open(container.name) as again:
        stamps = [(frame.pts, frame.dts) for frame in frames_of(again)]
    shown = [pts for pts, _ in stamps if pts is not None]
    rises = len(shown) == len(stamps) and all(before < after for before, after in pairwise(shown))
    last = 0
    for (pts, dts), frame in zip(stamps, frames_of(container), strict=True):
        stamp = pts if rises else dts
        last = last + 1 if stamp is None else stamp  # the last frames of a decoder have no dts
        yield last * tick, frame


def frames_of(container: InputContainer) -> Iterator[av.VideoFrame]:
    """The frames of a video in the order in which they are shown."""
    stream = container.streams.video[0]
    tags = {name.lower(): value for name, value in stream.metadata.items()}
    if tags.get("alpha_mode") != "1":
        yield from container.decode(stream)
        return
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}[stream.codec_context.name]
    decoder = cast(av.VideoCodecContext, av.CodecContext.create(name, "r"))
    for packet in container.demux(stream):
        yield from decoder.decode(packet if packet.size else None)


def upright(picture: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """A picture turned and mirrored as a display matrix says: (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = matrix
    if a == 0 and d == 0:
        return picture.swapaxes(0, 1)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """The four factors of a frame's display matrix, or those that leave it as it is."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know a kind of data that FFmpeg attaches
        if frame.rotation:
            raise
        return AS_IT_IS
    if data is None:
        return AS_IT_IS
    values = np.frombuffer(data, np.int32)
    return int(values[0]), int(values[1]), int(values[3]), int(values[4])


@dataclass(frozen=True)
class Shown:
    """A frame of a source, without its pixels."""

    seconds: Fraction
    width: int
    height: int
    matrix: tuple[int, int, int, int]
    is_interlaced: bool


@dataclass(frozen=True)
class Around:
    """The pictures on screen before, at and after an instant, upright, in square pixels."""

    before: np.ndarray | None
    at: np.ndarray
    after: np.ndarray | None
    is_tie: bool
    """The next or this frame starts, within a microsecond, where frames cease to count as on screen already."""


def shown_frames(path: Path) -> list[Shown]:
    """The frames of a video, in the order in which they are shown."""
    with av.open(str(path)) as container:
        return [
            Shown(seconds, frame.width, frame.height, display_matrix(frame), frame.interlaced_frame)
            for seconds, frame in decoded(container)
        ]


def references(path: Path, clips: Sequence[Clip]) -> list[list[Around]]:
    """What is on screen around each instant of each clip of a source."""
    shown = shown_frames(path)
    times = np.array([float(frame.seconds - shown[0].seconds) for frame in shown])
    asked = [clip.start_seconds + np.arange(len(clip.frames)) / clip.fps for clip in clips]
    places = [np.searchsorted(times, instants + TIE_SECONDS, side="right") - 1 for instants in asked]
    needed = {int(place) + step for row in places for place in row for step in (-1, 0, 1)}
    deinterlace = any(frame.is_interlaced for frame in shown)
    pictures: dict[int, np.ndarray] = {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        pixel = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1
        as_rgb = converter(stream, round(shown[0].width * pixel), shown[0].height, deinterlace=deinterlace)
        place = 0  # the filter returns frames in their order, but may hold some back
        for number, frame in enumerate(chain(frames_of(container), [None])):
            if frame is None or deinterlace or number in needed:
                for picture in as_rgb(frame):
                    place = place if deinterlace else number
                    if place in needed:
                        pictures[place] = upright(picture, shown[0].matrix)
                    place += 1
    ties = [np.abs(times[:, None] - TIE_SECONDS - instants).min(0) < SAME_SECONDS for instants in asked]
    return [
        [
            Around(pictures.get(place - 1), pictures[place], pictures.get(place + 1), bool(is_tie))
            for place, is_tie in zip(*row, strict=True)
        ]
        for row in zip(places, ties, strict=True)
    ]


def resized(picture: np.ndarray, height: int, width: int, share: float = 1.0, stretch: float = 1.0) -> np.ndarray:
    """The middle of a picture that has the shape of a clip, or a share of it, stretched in width; RGB, float32."""
    rows, columns = picture.shape[:2]
    scale = max(height / rows, width / columns)
    high, wide = share * height / scale, share * width / scale / stretch
    box = ((columns - wide) / 2, (rows - high) / 2, (columns + wide) / 2, (rows + high) / 2)
    box = (max(box[0], 0), max(box[1], 0), min(box[2], columns), min(box[3], rows))
    size = (round(share * width), round(share * height))
    image = Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.LANCZOS, box=box)
    return np.asarray(image, np.float32)


def error(frame: np.ndarray, picture: np.ndarray) -> float:
    """The mean squared difference of the luma of two RGB pictures; stored clips have half the resolution of chroma."""
    return float(np.square((frame - picture) @ LUMA).mean())


def psnr(squared: float) -> float:
    """In dB, at most 99."""
    return float(min(99.0, 10 * np.log10(255**2 / max(squared, 1e-9))))


def facts_of(clip: Clip, decoder: str, around: Sequence[Around]) -> Facts:
    """Compare a clip with its reference."""
    height, width = clip.frames.shape[1:3]
    frames = clip.frames.astype(np.float32)
    references = [resized(instant.at, height, width) for instant in around]
    bias = (frames - np.stack(references)).mean((0, 1, 2))  # of the colour, which has a figure of its own
    wrong = distinct = 0
    for frame, reference, instant in zip(frames, references, around, strict=True):
        others = [resized(other, height, width) for other in (instant.before, instant.after) if other is not None]
        others = [other for other in others if psnr(error(reference, other)) < EQUAL_DB]
        distinct += bool(others)
        wrong += not instant.is_tie and any(error(frame - bias, o) < error(frame - bias, reference) for o in others)
    share = 0.6
    top, left = (height - round(share * height)) // 2, (width - round(share * width)) // 2
    middle = frames[0, top : top + round(share * height), left : left + round(share * width)]
    stretched = [error(middle, resized(around[0].at, height, width, share, stretch)) for stretch in STRETCHES]
    best = int(np.argmin(stretched))
    unstretched = error(middle, resized(around[0].at, height, width, share))
    return Facts(
        source=clip.source,
        start_seconds=clip.start_seconds,
        decoder=decoder,
        psnr_db=psnr(float(np.mean([error(*pair) for pair in zip(frames, references, strict=True)]))),
        colour=float(np.abs(frames.mean((0, 1, 2)) - np.mean(references, (0, 1, 2))).max()),
        num_frames=len(frames),
        wrong_frames=wrong,
        distinct_frames=distinct,
        stretch=float(STRETCHES[best]) if psnr(stretched[best]) > psnr(unstretched) + NEARER_DB else 1.0,
    )


def main() -> None:
    """Ingest, compare, print, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    videos = parser.parse_args().videos
    config = ShardConfig(buckets=BUCKETS, max_clips_per_video=3)
    by_source: dict[str, list[tuple[Clip, str]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch, connected(ClusterConfig()):
        sources = list_folder(videos, suffixes=config.suffixes)
        manifest = make_shards(sources, Path(scratch), config, num_workers=2)
        for clip, decoder in stored_clips(Path(scratch)):
            by_source[clip.source].append((clip, decoder))
    facts: list[Facts] = []
    not_compared: dict[str, str] = {}
    for name, clips in sorted(by_source.items()):
        try:
            around = references(videos / name, [clip for clip, _ in clips])
        except (av.FFmpegError, KeyError, IndexError, ValueError) as fault:
            not_compared[name] = repr(fault)
            continue
        facts += [facts_of(clip, decoder, row) for (clip, decoder), row in zip(clips, around, strict=True)]
    assert manifest.ledger is not None
    figures = {
        "ledger": manifest.ledger.model_dump(),
        "clips": manifest.num_samples,
        "compared": len(facts),
        "decoders": dict(Counter(row.decoder for row in facts)),
        "frames": sum(row.num_frames for row in facts),
        "distinct_frames": sum(row.distinct_frames for row in facts),
        "wrong_frames": sum(row.wrong_frames for row in facts),
        "psnr_db_median": statistics.median(row.psnr_db for row in facts),
        "psnr_db_least": min(row.psnr_db for row in facts),
        "colour_most": max(row.colour for row in facts),
        "limits": {"psnr_db": MIN_PSNR_DB, "colour": MAX_COLOUR, "log_stretch": MAX_STRETCH},
        "beyond_a_limit": [asdict(row) | {"mistakes": row.mistakes} for row in facts if row.mistakes],
        "not_compared": not_compared,
        "peer": f"libavfilter of PyAV {version('av')}",
    }
    print(json.dumps(figures, indent=1))
    publish_text(RESULT, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
