"""Many tiny files: how many processes run, what memory they take, and what a file costs, from the first to the last.

    python -m benchmarks.ingest_storm                    20,000 files, JSON to benchmarks/results/ingest_storm.json
    python -m benchmarks.ingest_storm --files 2000       fewer, to look at; nothing is written

Every second file is rejected: a text with the suffix of a video, an empty file, a video that is cut short, one that is
too short. The others are videos of moving shapes. A shard has few sources, so that there are many commits.
`testing/ingest_storm.py` says what is counted as a process of the run. The rate of each thousand files comes from the
modification times of the commits. CPU time is that of all processes, Ray's daemons included; what a file costs is the
difference between a large and a small folder of one kind, so that the start of the workers is not in it.
"""

import argparse
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from data.curation.sources import list_folder
from data.files.publish import publish_text
from launch.cluster import connected
from launch.config import ClusterConfig
from pipeline.ingest.commit import commit_shard
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.plan import plan_shards
from pipeline.ingest.prepare import PrepareConfig, prepare_source, prepare_with_origin
from pipeline.run.shared_files import SHARED
from testing.ingest_storm import CONFIG, make_files, storm

NUM_FILES = 20_000
# Files in the folders that the cost of a file is measured with. Starting the workers varies by a second.
REJECTED, GOOD = (2_000, 20_000), (500, 4_000)
T = TypeVar("T")
RESULT = Path(__file__).parent / "results" / "ingest_storm.json"


def probe_milliseconds(folder: Path, num_files: int = 400) -> float:
    """CPU time of `prepare_source` alone for one rejected file, in this process; the mean of the four kinds."""
    make_files(folder, 0, num_files)
    sources = list_folder(folder)
    config = PrepareConfig(CONFIG.buckets, {}, CONFIG)
    prepare_source(config, sources[0])
    started = time.process_time()
    for source in sources:
        prepare_source(config, source)
    return (time.process_time() - started) / num_files * 1e3


def milliseconds_per_file(folder: Path, config: ShardConfig, *, is_good: bool) -> dict[str, float]:
    """CPU time for one more file of a kind, by role and of all; that of Ray's daemons grows with the time alone."""
    numbers = GOOD if is_good else REJECTED
    small, large = (
        storm(folder / str(number), *((number, 0) if is_good else (1, number)), config).cpu_seconds
        for number in numbers
    )
    by_role = {role: (large[role] - small[role]) / (numbers[1] - numbers[0]) * 1e3 for role in large}
    return {name: round(value, 3) for name, value in (by_role | {"all": sum(by_role.values())}).items()}


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
    timed("probe", lambda: [prepare_source(config, source) for source in sources])
    prepared = timed("probe_and_origin", lambda: [prepare_with_origin(config, source) for source in sources])
    reports = [report for report, _ in prepared]
    timed("pickle_jobs", lambda: [pickle.loads(pickle.dumps(part)) for part in batched(sources)])
    timed("pickle_reports", lambda: [pickle.loads(pickle.dumps(part)) for part in batched(reports)])
    shard_of = plan.to_cut
    for source, (report, clips) in zip(sources, prepared, strict=True):
        shard_of[source].add(report, clips if report.clips else None)
    recipes = [shard.give() for shard in plan.shards]
    timed("commit", lambda: [commit_shard(SHARED, recipe, *clips) for recipe, clips in recipes])
    timed("plan_again", lambda: plan_shards(sources, output, config))
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
            default = CONFIG.model_copy(update={"videos_per_shard": ShardConfig().videos_per_shard})
            with connected(ClusterConfig(object_store_mib=128)):
                costs = {
                    "probe_of_a_rejected_file": round(probe_milliseconds(folder / "probe"), 3),
                    "rejected_file": milliseconds_per_file(folder / "rejected", default, is_good=False),
                    "rejected_file_at_16_a_shard": milliseconds_per_file(folder / "rejected-16", CONFIG, is_good=False),
                    "good_file": milliseconds_per_file(folder / "good", default, is_good=True),
                }
            result["cpu_milliseconds"] = costs
    print(json.dumps(result, indent=1), flush=True)
    if options.files == NUM_FILES:
        publish_text(RESULT, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
