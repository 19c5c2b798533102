"""What cutting clips costs, beside decoding alone; what a thousand hours of video would cost; and memory.

    python -m benchmarks.ingest

Sources are drawn here: H.264 at 1080p with B-frames and a key frame every ten seconds, where decoding is most of the
work, and the demo's, where opening a file is. Each is cut by `prepare_source` (probe, time stamps, decode, resize,
encode) and, in turn, read by decord alone, in the same process of a Ray worker, one thread each. Two ceilings:

    asked   decord reads the frames that the clips consist of, one by one (batches of 1080p cost it more)
    all     decord reads every frame

In one setting the clips have the frame rate of their source, so both are nearly the same. Real files are in
`benchmarks/ingest_real.py`.

Figures are CPU time; a ratio is the median over rounds of (decord's time / ours). PyAV alone, reading the same frames,
stands beside them. Memory is the proportional set size of every process, at its peak while the demo's stage
runs; what a clip takes on disk besides its own bytes is measured there too.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import decord
import numpy as np
import psutil
import ray
from av.video.reformatter import VideoReformatter
from scipy.ndimage import zoom

from data.curation.source_folders import list_folder
from data.dataset.buckets import Bucket
from data.dataset.index import read_index
from data.files.publish import publish_text
from data.video.probe import probe_video
from data.video.spans import plan_spans
from launch.cluster import connected
from launch.config import ClusterConfig
from pipeline.ingest.config import ShardConfig, SyntheticConfig
from pipeline.ingest.draw import make_videos
from pipeline.ingest.prepare import PrepareConfig, prepare_source
from pipeline.ingest.shard import make_shards

FPS, SECONDS, GROUP = 25, 10, 250
NUM_SOURCES, NUM_DEMO, NUM_STAGE, ROUNDS = 3, 40, 240, 7
HOURS = 1000  # of video, in the estimate
SAMPLE_SECONDS = 0.1
RESULT = Path(__file__).parent / "results" / "ingest.json"


@dataclass(frozen=True)
class Setting:
    """Sources of one kind, cut in one way."""

    name: str
    folder: Path
    config: ShardConfig


@dataclass(frozen=True)
class Cut:
    """One setting, measured. CPU seconds are medians for one pass over its sources."""

    name: str
    height: int
    width: int
    codec: str
    decoder: str
    sources: int
    source_seconds: float  # of all
    clips: int
    frames_asked: int
    frames_all: int
    clip_bytes: float  # mean
    ours_cpu_seconds: float
    asked_cpu_seconds: float
    all_cpu_seconds: float
    pyav_asked_cpu_seconds: float
    ratio_to_asked: float
    ratio_to_all: float
    source_hours_per_cpu_hour: float


def draw_source(path: Path, height: int, width: int, seed: int) -> None:
    """A blurred texture that sways, with a square that moves before it."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (height // 24 + 12, width // 24 + 16, 3)).astype(np.float32)
    texture = np.clip(np.asarray(zoom(coarse, (24, 24, 1), order=1)), 0, 255).astype(np.uint8)
    side = height // 4
    with av.open(str(path), "w") as container:
        options = {"g": str(GROUP), "bf": "3", "preset": "veryfast", "x264-params": "scenecut=0"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(FPS * SECONDS):
            down, right = int(96 + 90 * np.sin(number / 40)), int(160 + 150 * np.sin(number / 55))
            picture = texture[down : down + height, right : right + width].copy()
            top, left = (
                int(height * (0.35 + 0.3 * np.sin(number / 17))),
                int(width * (0.4 + 0.35 * np.cos(number / 23))),
            )
            picture[top : top + side, left : left + side] ^= 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def frames_asked(path: Path, config: ShardConfig) -> list[int]:
    """The frames that the clips of a source consist of."""
    probe = probe_video(path)
    shown = (probe.height, probe.width)
    spans = plan_spans(
        probe.times_seconds,
        shown,
        config.buckets,
        max_spans=config.max_clips_per_video,
        placement=config.clip_placement,
    )
    return sorted({index for span in spans for index in span.indices})


def decord_asked(path: Path, indices: list[int]) -> None:
    """Those frames, by decord alone."""
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    for index in indices:
        reader[index].asnumpy()


def pyav_asked(path: Path, indices: list[int]) -> None:
    """Those frames, by PyAV alone, from the start of the file."""
    wanted, reformatter = set(indices), VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            if index == indices[-1]:
                break


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process, all its threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(setting: Setting, rounds: int) -> Cut:
    """All ways in turn, in this process. Runs in a Ray worker, whose environment is the stage's."""
    decord.logging.set_level(decord.logging.QUIET)
    config, sources = setting.config, list_folder(setting.folder)
    cut = PrepareConfig(config.buckets, {}, config)
    paths = [Path(source.path) for source in sources]
    probes = [probe_video(path) for path in paths]
    asked = [frames_asked(path, config) for path in paths]
    every = [list(range(len(probe.ticks))) for probe in probes]

    def read(reader: Callable[[Path, list[int]], None], frames: list[list[int]]) -> None:
        for path, indices in zip(paths, frames, strict=True):
            reader(path, indices)

    ways = (
        lambda: [prepare_source(cut, source) for source in sources],
        lambda: read(decord_asked, asked),
        lambda: read(decord_asked, every),
        lambda: read(pyav_asked, asked),
    )
    times = [[cpu_seconds(way) for way in ways] for _ in range(rounds + 1)][1:]  # the first warms up
    ours, of_asked, of_all, of_pyav = (statistics.median(column) for column in zip(*times, strict=True))
    clips = [clip for source in sources for clip in prepare_source(cut, source)[1]]
    source_seconds = sum(float(np.median(np.diff(probe.times_seconds))) * len(probe.ticks) for probe in probes)
    return Cut(
        name=setting.name,
        height=probes[0].height,
        width=probes[0].width,
        codec=probes[0].codec,
        decoder=clips[0][0].decoder,
        sources=len(sources),
        source_seconds=source_seconds,
        clips=len(clips),
        frames_asked=sum(map(len, asked)),
        frames_all=sum(map(len, every)),
        clip_bytes=statistics.mean(len(content) for _, content in clips),
        ours_cpu_seconds=ours,
        asked_cpu_seconds=of_asked,
        all_cpu_seconds=of_all,
        pyav_asked_cpu_seconds=of_pyav,
        ratio_to_asked=statistics.median(row[1] / row[0] for row in times),
        ratio_to_all=statistics.median(row[2] / row[0] for row in times),
        source_hours_per_cpu_hour=source_seconds / ours,
    )


@contextmanager
def watched_memory() -> Iterator[dict[str, float]]:
    """The peak of all processes while the block runs, in MiB, and what it consisted of, by the name of the process."""
    peak: dict[str, float] = {"total": 0.0}
    stopped = threading.Event()

    def watch() -> None:
        own = psutil.Process()
        while not stopped.wait(SAMPLE_SECONDS):
            sizes, counts = Counter[str](), Counter[str]()
            for process in [own, *own.children(recursive=True)]:
                try:
                    name = "driver" if process == own else (process.cmdline() or [process.name()])[0].split("/")[-1]
                    sizes[name] += process.memory_full_info().pss
                    counts[name] += 1
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            if sizes.total() / 2**20 > peak["total"]:
                peak.clear()
                peak["total"] = sizes.total() / 2**20
                peak.update({f"{counts[name]} x {name}": size / 2**20 for name, size in sizes.most_common()})

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stopped.set()
        thread.join()


def measure_stage(scratch: Path) -> dict[str, Any]:
    """The demo's stage on two workers: time and memory."""
    folder = scratch / "stage"
    make_videos(folder, SyntheticConfig(num_videos=NUM_STAGE), seed=0)
    sources = list_folder(folder)
    with watched_memory() as peak:
        started = time.perf_counter()
        manifest = make_shards(sources, scratch / "clips", ShardConfig(max_clips_per_video=1), num_workers=2)
        seconds = time.perf_counter() - started
    disk = sum(path.stat().st_size for path in (scratch / "clips").rglob("*") if path.is_file())
    return {
        "videos": len(sources),
        "clips": manifest.num_samples,
        "wall_seconds": seconds,
        "overhead_bytes_per_clip": (disk - sum(read_index(scratch / "clips").values("size"))) / manifest.num_samples,
        "peak_pss_mib": peak,
    }


def estimate(cut: Cut, overhead_bytes: float) -> dict[str, float]:
    """A thousand hours of such video: see docs/reports/scale.md for the formula."""
    clips_per_hour = cut.clips / (cut.source_seconds / 3600)
    return {
        "hours": HOURS,
        "clips": HOURS * clips_per_hour,
        "cpu_core_hours": HOURS / cut.source_hours_per_cpu_hour,
        "disk_gib": HOURS * clips_per_hour * (cut.clip_bytes + overhead_bytes) / 2**30,
    }


def main() -> None:
    """Measure, print, write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name, connected(ClusterConfig()):
        scratch = Path(name)
        stage = measure_stage(scratch)
        long = scratch / "1080p"
        long.mkdir()
        for number in range(NUM_SOURCES):
            draw_source(long / f"{number}.mp4", 1080, 1920, number)
        make_videos(scratch / "demo", SyntheticConfig(num_videos=NUM_DEMO), seed=0)
        bucket = Bucket()
        settings = [
            Setting("1080p, one clip per source", long, ShardConfig(buckets=(bucket,), max_clips_per_video=1)),
            Setting("1080p, every clip that fits", long, ShardConfig(buckets=(bucket,), max_clips_per_video=1000)),
            Setting(
                "1080p, every clip that fits, every frame",
                long,
                ShardConfig(buckets=(Bucket(fps=FPS),), max_clips_per_video=1000),
            ),
            Setting(
                "demo, one clip per source", scratch / "demo", ShardConfig(buckets=(bucket,), max_clips_per_video=1)
            ),
        ]
        measuring: Any = ray.remote(measure).options(num_cpus=1)
        cuts: list[Cut] = [ray.get(measuring.remote(setting, rounds)) for setting in settings]
    for cut in cuts:
        print(
            f"{cut.name}: {cut.clips} clips, {cut.ours_cpu_seconds:.2f} CPU s ({cut.decoder}); decord alone "
            f"{cut.asked_cpu_seconds:.2f} for the frames asked for (ratio {cut.ratio_to_asked:.2f}), "
            f"{cut.all_cpu_seconds:.2f} for all (ratio {cut.ratio_to_all:.2f}); PyAV alone "
            f"{cut.pyav_asked_cpu_seconds:.2f}; {cut.source_hours_per_cpu_hour:.0f} source-hours per CPU-hour"
        )
    whole = estimate(cuts[1], stage["overhead_bytes_per_clip"])
    print(f"{HOURS} hours: {whole['cpu_core_hours']:.0f} core-hours, {whole['disk_gib']:.1f} GiB")
    print(f"stage: {stage['wall_seconds']:.1f} s, peak {stage['peak_pss_mib']}")
    figures = {
        "cuts": [asdict(cut) for cut in cuts],
        "bucket": bucket.name,
        "gop": GROUP,
        "rounds": rounds,
        "stage": stage,
        "estimate": whole,
        "decord": version("decord"),
        "av": version("av"),
    }
    publish_text(RESULT, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
