"""What memory it takes to cut a film into every clip that fits, by its length and the size of its clips.

    python -m benchmarks.films

A minute of moving shapes is encoded (H.264, 24 frames per second, a key frame every two seconds) and its packets are
repeated until the film is long enough. Each film is cut in a process of its own, as a worker does it: probe, decode,
resize, encode; then its shard is written. Each figure is the peak of that process, its libraries included.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import av

from data.curation.source_folders import list_folder
from data.dataset.buckets import Bucket
from data.files.publish import publish_text
from data.synthetic import combinations, random_scene, render
from pipeline.ingest.commit import ShardRecipe, commit_shard
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.prepare import PrepareConfig, prepare_source
from pipeline.ingest.reports import StoredReport
from pipeline.run.shared_files import SHARED
from testing.paths import ROOT

FPS, GROUP, PERIOD_SECONDS = 24, 48, 60
RESULT = Path(__file__).parent / "results" / "films.json"


@dataclass(frozen=True)
class Film:
    """A film and the clips that are cut from it."""

    minutes: int
    side: int  # pixels, of its frames
    bucket: str


FILMS = (
    Film(10, 128, "17x64x64@8"),
    Film(120, 128, "17x64x64@8"),
    Film(10, 480, "17x256x448@8"),
)


def write_film(path: Path, minutes: int, side: int) -> None:
    """A minute of moving shapes, repeated."""
    period = path.with_suffix(".period.mp4")
    with av.open(str(period), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(GROUP), "preset": "veryfast"})
        stream.height = stream.width = side
        stream.pix_fmt = "yuv420p"
        scenes = 12
        for number in range(scenes):
            for frame in render(random_scene(0, number, combinations()), FPS * PERIOD_SECONDS // scenes, side):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path), "w") as container:
        copy = None
        for number in range(minutes * 60 // PERIOD_SECONDS):
            with av.open(str(period)) as source:
                stream = source.streams.video[0]
                copy = copy or container.add_stream_from_template(stream)
                assert stream.time_base is not None
                shift = round(number * PERIOD_SECONDS / stream.time_base)
                for packet in source.demux(stream):
                    if packet.size:
                        assert packet.pts is not None
                        assert packet.dts is not None
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                        container.mux(packet)
    period.unlink()


def peak_mib() -> float:
    """Of the resident set of this process since it started (`ru_maxrss` includes that of its parent)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def cut(folder: Path, bucket: Bucket) -> None:
    """Cut the film in a folder and print the figures. Runs in a process of its own."""
    (source,) = list_folder(folder)
    config = ShardConfig(buckets=(bucket,), max_clips_per_video=None)
    imported, started = peak_mib(), time.process_time()
    report, clips = prepare_source(PrepareConfig(config.buckets, {}, config, spool_dir=folder), source)
    assert report.quarantined is None, report.quarantined
    seconds, prepared = time.process_time() - started, peak_mib()
    num_bytes = clips.edges[-1]
    reports = (StoredReport.of(report),)
    recipe = ShardRecipe(folder / "shard-0.tar", reports, {}, taken={}, captions={}, filters=config.filters)
    commit_shard(SHARED, recipe, clips)
    figures = {
        "clips": len(clips),
        "clips_mib": num_bytes / 2**20,
        "libraries_mib": imported,
        "peak_mib": prepared,
        "peak_with_shard_mib": peak_mib(),
        "cpu_seconds": seconds,
    }
    sys.stdout.write(json.dumps(figures))


def main() -> None:
    """Measure, print and write."""
    rows = []
    for film in FILMS:
        with tempfile.TemporaryDirectory(prefix="reelflow-") as name:
            write_film(Path(name) / "film.mp4", film.minutes, film.side)
            command = [sys.executable, "-m", "benchmarks.films", name, film.bucket]
            output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        rows.append(asdict(film) | json.loads(output))
        sys.stdout.write(f"{rows[-1]}\n")
        publish_text(RESULT, json.dumps({"films": rows}, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        cut(Path(sys.argv[1]), Bucket.of_name(sys.argv[2]))
    else:
        main()
