"""What cutting clips from real files costs, beside decord and PyAV reading the frames that these clips consist of.

    python -m benchmarks.ingest_real [FOLDER]

From each folder of the test clips, up to three files are taken, evenly spaced by name, of those that decord opens and
that are long enough for a clip; the JSON names them. For each file in turn, and each of two shapes of clips, five ways
are timed one after the other in this process, on one thread each, in CPU time:

    whole   everything that becomes a clip in a shard: probe, time stamps, decode, resize, filter, encode
    read    probe, time stamps, decode, resize: what is comparable to decord
    encode  the frames that were read, as clips
    decord  the same frames at full size, in order
    pyav    the same frames at full size, in order, from the start of the file

A figure is the median over the rounds of the sum over the files; a ratio is the median of those of each round. Decord
and PyAV do not encode. How faithful the stored clips are is measured in the decoded RGB (PSNR, at most 60 dB a clip).
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import av
import decord
import numpy as np

from benchmarks.ingest import decord_asked, pyav_asked
from data.curation.source import Source
from data.curation.source_folders import list_folder
from data.dataset.buckets import Bucket
from data.errors import VideoError
from data.files.publish import publish_text
from data.video.codec import decode_clip, encode_clip
from data.video.decoders.decord_reader import DECORD_ERRORS
from data.video.extract import CutConfig, cut_file
from data.video.probe import probe_video
from data.video.spans import plan_spans
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.prepare import PrepareConfig, prepare_source
from testing.paths import CLIPS_DIR

SHAPES = (Bucket(), Bucket(height=256, width=448))
FILES_PER_FOLDER, ROUNDS = 3, 3
WAYS = ("whole", "read", "encode", "decord", "pyav")
RESULT = Path(__file__).parent / "results" / "ingest_real.json"


@dataclass(frozen=True)
class Cut:
    """One shape of clips: CPU seconds for all files, medians over the rounds."""

    bucket: str
    files: int
    clips: int
    frames: int
    seconds: dict[str, float]  # by way
    read_by_decord: float
    whole_by_decord: float
    read_by_pyav: float
    seconds_by_size: dict[str, dict[str, float]]  # by way, of the files of up to 480, of up to 720 and of more rows
    clip_kib: float  # mean, of the stored clips
    clip_psnr: float  # mean


def frames_asked(path: Path, config: ShardConfig, address: str) -> list[int]:
    """The frames that the clips of a file consist of, increasing."""
    probe = probe_video(path)
    spans = plan_spans(
        probe.times_seconds,
        (probe.height, probe.width),
        config.buckets,
        max_spans=config.max_clips_per_video,
        placement=config.clip_placement,
        address=address,
    )
    return sorted({index for span in spans for index in span.indices})


def suits(source: Source) -> bool:
    """Whether decord reads the right frames of the file, its colours aside, and a clip fits in it."""
    try:
        if not replace(probe_video(Path(source.path)), is_untagged_hd=False).suits_decord:
            return False
        frames = frames_asked(Path(source.path), ShardConfig(), source.name)
        decord_asked(Path(source.path), frames)
    except (VideoError, *DECORD_ERRORS):
        return False
    return True


def chosen(folder: Path) -> list[Source]:
    """The files that are read."""
    files: list[Source] = []
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        fit = [source for source in list_folder(part) if suits(source)]
        most = min(FILES_PER_FOLDER, len(fit))
        files += [fit[number * len(fit) // most] for number in range(most)]
    return files


def seconds(work: Callable[[], object]) -> float:
    """CPU time of this process, all its threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(bucket: Bucket, sources: Sequence[Source]) -> Cut:
    """All ways in turn, file by file."""
    config = ShardConfig(buckets=(bucket,))
    prepare = PrepareConfig(config.buckets, {}, config)
    asked = [frames_asked(Path(source.path), config, source.name) for source in sources]
    rounds: list[list[list[float]]] = []
    sizes: list[int] = []
    fidelity: list[float] = []
    for number in range(ROUNDS + 1):
        row = []
        for source, frames in zip(sources, asked, strict=True):
            path = Path(source.path)
            cut = CutConfig(max_spans=config.max_clips_per_video, placement="even", address=source.name)
            clips = [span.frames for spans in cut_file(path, config.buckets, list, cut) for span in spans]
            ways = (
                lambda source=source: prepare_source(prepare, source),
                lambda path=path, cut=cut: cut_file(path, config.buckets, len, cut),
                lambda clips=clips: [encode_clip(clip, bucket.fps) for clip in clips],
                lambda path=path, frames=frames: decord_asked(path, frames),
                lambda path=path, frames=frames: pyav_asked(path, frames),
            )
            row.append([seconds(way) for way in ways])
            if number == 0:
                stored = [content for _, content in prepare_source(prepare, source)[1]]
                sizes += [len(content) for content in stored]
                fidelity += [psnr(decode_clip(content), clip) for content, clip in zip(stored, clips, strict=True)]
        rounds.append(row)
    rounds = rounds[1:]  # the first warms up
    heights = [min(probe_video(Path(source.path)).stored_size) for source in sources]
    of_size = {
        name: [low <= height <= high for height in heights]
        for name, low, high in (("up to 480", 0, 480), ("up to 720", 481, 720), ("more", 721, 10**6))
    }
    times = np.array(rounds)  # (rounds, files, ways)
    by_round = dict(zip(WAYS, times.sum(1).T, strict=True))
    return Cut(
        bucket=bucket.name,
        files=len(sources),
        clips=len(sizes),
        frames=sum(map(len, asked)),
        seconds=medians(times),
        read_by_decord=float(np.median(by_round["read"] / by_round["decord"])),
        whole_by_decord=float(np.median(by_round["whole"] / by_round["decord"])),
        read_by_pyav=float(np.median(by_round["read"] / by_round["pyav"])),
        seconds_by_size={name: medians(times[:, kept]) for name, kept in of_size.items()},
        clip_kib=statistics.mean(sizes) / 1024,
        clip_psnr=statistics.mean(fidelity),
    )


def medians(times: np.ndarray) -> dict[str, float]:
    """Seconds by way, of times of shape (rounds, files, ways)."""
    return dict(zip(WAYS, np.median(times.sum(1), 0).round(3).tolist(), strict=True))


def psnr(stored: np.ndarray, clip: np.ndarray) -> float:
    """Of the stored clip to the frames that were encoded, in dB."""
    error = float(np.square(stored.astype(np.float32) - clip).mean())
    return min(60.0, 10 * math.log10(255**2 / error)) if error else 60.0


def main() -> None:
    """Measure, print, write down."""
    decord.logging.set_level(decord.logging.QUIET)
    av.logging.set_level(None)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else CLIPS_DIR
    sources = chosen(folder)
    cuts = [measure(bucket, sources) for bucket in SHAPES]
    for cut in cuts:
        ways = ", ".join(f"{way} {value:.2f}" for way, value in cut.seconds.items())
        sys.stdout.write(
            f"{cut.bucket}: {cut.files} files, {cut.clips} clips, {cut.frames} frames; CPU seconds: {ways}\n"
            f"    to decord: reading {cut.read_by_decord:.2f}, with encoding {cut.whole_by_decord:.2f}; reading "
            f"to PyAV {cut.read_by_pyav:.2f}; a clip has {cut.clip_kib:.1f} KiB at {cut.clip_psnr:.1f} dB\n"
        )
    figures = {
        "cuts": [asdict(cut) for cut in cuts],
        "rounds": ROUNDS,
        "files": [str(Path(source.path).relative_to(folder)) for source in sources],
        "decord": version("decord"),
        "av": version("av"),
    }
    publish_text(RESULT, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
