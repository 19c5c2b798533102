"""What cutting clips from real files costs, beside decord and PyAV reading the frames that these clips consist of.

    python -m benchmarks.ingest_real [FOLDER]

From each folder of the test clips, up to three files are taken, evenly spaced by name, of those that decord opens and
that are long enough for a clip; the JSON names them. For each file in turn, and each of two shapes of clips, four ways
are timed one after the other in this process, on one thread each, in CPU time:

    ours    everything that becomes a clip in a shard: probe, time stamps, decode, resize, filter, encode
    cut     the same without encoding: what is comparable to reading
    decord  the same frames at full size, in order
    pyav    the same frames at full size, in order, from the start of the file

A figure is the median over the rounds of the sum over the files. Encoding is work that decord does not do; it is in
`ours` all the same.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import av
import decord

from benchmarks.ingest import decord_asked, pyav_asked
from data.curation.sources import Source, list_folder
from data.dataset.buckets import Bucket
from data.errors import VideoError
from data.files.publish import publish_text
from data.video.decoders.decord_reader import DECORD_ERRORS
from data.video.extract import CutConfig, cut_file
from data.video.probe import probe_video
from data.video.spans import plan_spans
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.prepare import PrepareConfig, prepare_source
from testing.paths import CLIPS_DIR

SHAPES = (Bucket(), Bucket(height=256, width=448))
FILES_PER_FOLDER, ROUNDS = 3, 2
RESULT = Path(__file__).parent / "results" / "ingest_real.json"


@dataclass(frozen=True)
class Cut:
    """One shape of clips: CPU seconds for all files, medians over the rounds."""

    bucket: str
    files: int
    clips: int
    frames: int
    ours: float
    cut: float
    decord: float
    pyav: float
    ours_by_decord: float  # medians of the ratios of each round
    cut_by_decord: float
    ours_by_pyav: float
    by_size: dict[str, list[float]]  # ours, cut, decord and pyav for the files of up to 480, 720 and more rows


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
    """Whether decord reads the file right, and a clip fits in it."""
    try:
        if not probe_video(Path(source.path)).suits_decord:
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
    for _ in range(ROUNDS + 1):
        row = []
        for source, frames in zip(sources, asked, strict=True):
            path = Path(source.path)
            cut = CutConfig(max_spans=config.max_clips_per_video, placement="even")
            ways = (
                lambda source=source: prepare_source(prepare, source),
                lambda path=path, cut=cut: cut_file(path, config.buckets, len, cut),
                lambda path=path, frames=frames: decord_asked(path, frames),
                lambda path=path, frames=frames: pyav_asked(path, frames),
            )
            row.append([seconds(way) for way in ways])
        rounds.append(row)
    rounds = rounds[1:]  # the first warms up
    sums = [[sum(column) for column in zip(*row, strict=True)] for row in rounds]
    heights = [min(probe_video(Path(source.path)).stored_size) for source in sources]
    by_size: dict[str, list[float]] = {}
    for name, low, high in (("up to 480", 0, 480), ("up to 720", 481, 720), ("more", 721, 10**6)):
        kept = [number for number, height in enumerate(heights) if low <= height <= high]
        of_size = [[sum(row[number][way] for number in kept) for row in rounds] for way in range(4)]
        by_size[name] = [len(kept), *(statistics.median(values) for values in of_size)]
    ours, of_cut, of_decord, of_pyav = (statistics.median(column) for column in zip(*sums, strict=True))
    return Cut(
        bucket=bucket.name,
        files=len(sources),
        clips=sum(len(prepare_source(prepare, source)[1]) for source in sources),
        frames=sum(map(len, asked)),
        ours=ours,
        cut=of_cut,
        decord=of_decord,
        pyav=of_pyav,
        ours_by_decord=statistics.median(row[0] / row[2] for row in sums),
        cut_by_decord=statistics.median(row[1] / row[2] for row in sums),
        ours_by_pyav=statistics.median(row[0] / row[3] for row in sums),
        by_size=by_size,
    )


def main() -> None:
    """Measure, print, write down."""
    decord.logging.set_level(decord.logging.QUIET)
    av.logging.set_level(None)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else CLIPS_DIR
    sources = chosen(folder)
    cuts = [measure(bucket, sources) for bucket in SHAPES]
    for cut in cuts:
        sys.stdout.write(f"{cut}\n")
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
