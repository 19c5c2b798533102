"""Many tiny files: how many processes run, what memory they take, and what a file costs, from the first to the last.

    python -m benchmarks.ingest_storm                    20,000 files, JSON to benchmarks/results/ingest_storm.json
    python -m benchmarks.ingest_storm --files 2000       fewer, to look at; nothing is written

Every second file is rejected: a text with the suffix of a video, an empty file, a video that is cut short, one that is
too short. The others are videos of moving shapes. A shard has few sources, so that there are many commits.
`testing/ingest_storm.py` says what is counted as a process of the run. The rate of each thousand files comes from the
modification times of the commits. CPU time is that of all processes, Ray's daemons included; what a file costs is the
difference between a large and a small folder of one kind, each with a cluster of its own, as a command has, so that the
start of the workers is not in it: where a cluster is used again, they begin at other moments of each run. Its probe is
measured in a plain loop between these runs: `probe` is `probe_video` alone, `prepare_source` is all that is done to
find out why the file is rejected, without Ray.
"""

import argparse
import json
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from data.curation.source import Source, look_again
from data.curation.source_folders import list_folder
from data.errors import VideoError
from data.files.publish import publish_text
from data.video.probe import probe_video
from pipeline.ingest.commit import commit_shard
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.plan import plan_shards
from pipeline.ingest.prepare import PrepareConfig, prepare_source, prepare_with_origin
from pipeline.ingest.verify import verified_commits
from pipeline.run.shared_files import SHARED
from testing.ingest_storm import CONFIG, NUM_WORKERS, make_files, storm

NUM_FILES = 20_000
# Files in the folders that the cost of a file is measured with. Starting the workers varies by a second.
REJECTED, GOOD = (2_000, 40_000), (500, 4_000)
NUM_PROBED, REPETITIONS = 2_000, 3
T = TypeVar("T")
RESULT = Path(__file__).parent / "results" / "ingest_storm.json"


def milliseconds(work: Callable[[Source], object], sources: Sequence[Source]) -> float:
    """CPU time of some work for one source, in this process: the mean, as the kinds of files differ."""
    started = time.process_time()
    for source in sources:
        work(source)
    return (time.process_time() - started) / len(sources) * 1e3


def probe(source: Source) -> None:
    """`probe_video` alone of a file that may be rejected."""
    with suppress(VideoError):
        probe_video(Path(source.path))


def milliseconds_per_file(config: ShardConfig, *, is_good: bool) -> dict[str, float]:
    """CPU time for one more file of a kind, by role and of all; that of Ray's daemons grows with the time alone."""
    numbers = GOOD if is_good else REJECTED
    used = []
    for number in numbers:
        with tempfile.TemporaryDirectory(prefix="ingest-storm-") as folder:
            used.append(storm(Path(folder), *((number, 0) if is_good else (1, number)), config).cpu_seconds)
    small, large = used
    by_role = {role: (large[role] - small[role]) / (numbers[1] - numbers[0]) * 1e3 for role in large}
    return {name: round(value, 3) for name, value in (by_role | {"all": sum(by_role.values())}).items()}


def probe_milliseconds(sources: Sequence[Source]) -> dict[str, float]:
    """CPU time of the probe of a rejected file in a plain loop in this process, and of all of `prepare_source`."""
    prepare = partial(prepare_source, PrepareConfig(CONFIG.buckets, {}, CONFIG))
    milliseconds(probe, sources[: len(sources) // 4])
    return {"probe": milliseconds(probe, sources), "prepare_source": milliseconds(prepare, sources)}


def costs_of_rejected(sources: Sequence[Source], processes: ProcessPoolExecutor) -> dict[str, Any]:
    """What one more rejected file costs in whole runs, with the probe alone measured before, between and after.

    Cores that share caches or execution units slow one another down, so the probe is also measured in as many processes
    at once as there are workers.
    """
    default = CONFIG.model_copy(update={"videos_per_shard": ShardConfig().videos_per_shard})
    alone, at_once, runs = [], [], {}
    for name, config in (("rejected_file", default), ("rejected_file_at_16_a_shard", CONFIG), ("", None)):
        alone.append(probe_milliseconds(sources))
        at_once += processes.map(probe_milliseconds, [sources] * NUM_WORKERS)
        if config is not None:
            runs[name] = milliseconds_per_file(config, is_good=False)
    probes = {"alone": means(alone), "in_as_many_processes_as_workers": means(at_once)}
    ratios = {
        where: {name: round(runs["rejected_file"]["all"] / value, 2) for name, value in values.items()}
        for where, values in probes.items()
    }
    return {"probes": probes, **runs, "rejected_file_by_probe": ratios}


def means(measured: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each value."""
    return {name: round(statistics.mean(some[name] for some in measured), 3) for name in measured[0]}


def medians(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each value, also within dicts."""
    of_all = {name: [some[name] for some in measured] for name in measured[0]}
    return {
        name: medians(values) if isinstance(values[0], dict) else round(statistics.median(values), 3)
        for name, values in of_all.items()
    }


def step_milliseconds(folder: Path, num_files: int = 1600) -> dict[str, float]:
    """CPU time of each step of a rejected file, in this process, without Ray; 16 files a shard."""
    make_files(folder / "videos", 1, num_files)
    output = folder / "clips"
    output.mkdir()
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        started = time.process_time()
        result = work()
        found[name] = round((time.process_time() - started) / num_files * 1e3, 3)
        return result

    sources = timed("list", lambda: list_folder(folder / "videos"))
    config = PrepareConfig(CONFIG.buckets, {}, CONFIG, spool_dir=output)
    prepare_source(config, sources[0])
    plan = timed("plan", lambda: plan_shards(sources, output, config))
    timed("prepare_source", lambda: [prepare_source(config, source) for source in sources])
    prepared = timed("with_origin", lambda: [prepare_with_origin(config, source) for source in sources])
    reports = [report for report, _ in prepared]
    timed("pickle_jobs", lambda: [pickle.loads(pickle.dumps(part)) for part in batched(sources)])
    timed("pickle_reports", lambda: [pickle.loads(pickle.dumps(part)) for part in batched(reports)])
    shard_of = plan.to_cut
    for source, (report, clips) in zip(sources, prepared, strict=True):
        shard_of[source].add(report, clips if report.has_clips else None)
    recipes = [shard.give() for shard in plan.shards]
    timed("commit", lambda: [commit_shard(SHARED, recipe, *clips) for recipe, clips in recipes])
    timed("verify", lambda: list(verified_commits(plan, look_again(sources))))
    return found


def batched(values: Sequence[T], size: int = 64) -> list[Sequence[T]]:
    """In parts, as they are sent to a worker."""
    return [values[at : at + size] for at in range(0, len(values), size)]


def main() -> None:
    """The steps of a file, the storm, then what a file costs; or one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=NUM_FILES)
    parser.add_argument("--part", choices=("storm", "costs", "steps"))
    options = parser.parse_args()
    result: dict[str, object] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    with tempfile.TemporaryDirectory(prefix="ingest-storm-") as name:
        folder = Path(name)
        if options.part in (None, "steps"):
            result["steps_cpu_milliseconds"] = step_milliseconds(folder / "steps")
        if options.part in (None, "storm"):
            whole = storm(folder / "storm", options.files // 2, options.files // 2)
            result["storm"] = asdict(whole) | {"ledger": whole.ledger.model_dump()}
        if options.part in (None, "costs"):
            make_files(folder / "probe", 0, NUM_PROBED)
            sources = list_folder(folder / "probe")
            default = CONFIG.model_copy(update={"videos_per_shard": ShardConfig().videos_per_shard})
            with ProcessPoolExecutor(NUM_WORKERS, get_context("spawn")) as processes:
                list(processes.map(probe_milliseconds, [sources] * NUM_WORKERS))  # which starts them
                repetitions = [costs_of_rejected(sources, processes) for _ in range(REPETITIONS)]
                result["cpu_milliseconds"] = {
                    "medians": medians(repetitions),
                    "repetitions": repetitions,
                    "good_file": milliseconds_per_file(default, is_good=True),
                }
    print(json.dumps(result, indent=1), flush=True)
    if options.files == NUM_FILES:
        publish_text(RESULT, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
