"""What a sampling job costs its driver for each row, with a network that costs nothing.

    python -m benchmarks.sample_driver [--rows 1000 10000 100000]

A prompts file is checked, planned, sampled on two actors that write one finished clip again and again, listed and
shown; then the command is given again, and finds all clips. Each size has a process of its own. Time is that of the
driver's processors, user and system, with the threads of Ray in it; memory is the growth of the largest resident size.
"""

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from data.files.publish import publish_text
from testing.paths import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "sample_driver.json"
WARM_UP_ROWS = 200


@dataclass(frozen=True)
class Cost:
    """Of the driver, for a start of the command."""

    start: str
    rows: int
    processor_ms_per_row: float
    memory_kib_per_row: float
    wall_seconds: float


def write_rows(path: Path, number: int) -> Path:
    """Rows of two shapes and three settings."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(number):
            row: dict[str, Any] = {"prompt": f"a red circle number {i} moves left", "seed": i}
            row |= {} if i % 3 == 0 else {"steps": 10 + i % 3}
            row |= {"metadata": {"row": i, "source": "benchmark"}} if i % 2 else {}
            file.write(json.dumps(row) + "\n")
    return path


class FreeActor:
    """In place of `SamplerActor`: one clip, under every name."""

    def __init__(self, model_dir: Path, output_dir: Path, *_: Any) -> None:  # noqa: ANN401, ARG002
        from data.video.codec import encode_clip
        from testing.clips import moving_shapes

        self._content, self._folder = encode_clip(moving_shapes(5, 32), 8), output_dir

    def make(self, requests: list[Any]) -> list[Any]:
        """Write the clip for each request."""
        from pipeline.sample.outputs import SampledClip

        digest = sha256(self._content).hexdigest()
        for request in requests:
            (self._folder / request.file_name).write_bytes(self._content)
        return [
            SampledClip(file=r.file_name, request=r, num_network_calls=40, sha256=digest, model="free")
            for r in requests
        ]


def sample(prompts_path: Path, output_dir: Path) -> int:
    """What the command does with a prompts file, but for loading a model and connecting to Ray."""
    from pipeline.distributed.config import WorkersConfig
    from pipeline.report.gallery import write_gallery
    from pipeline.sample.config import SampleConfig
    from pipeline.sample.job import sample_clips
    from pipeline.sample.plan import Plan
    from pipeline.sample.prompt_files import PromptsFile
    from pipeline.sample.shards import held_folder
    from pipeline.sample.truncation import truncation_warnings
    from testing.sampled import model_of

    output_dir.mkdir(exist_ok=True)
    model, config, prompts = model_of(), SampleConfig(), PromptsFile(str(prompts_path))
    plan = Plan(model, config, prompts, 0)
    plan.check()
    truncation_warnings(model, config, prompts)
    with held_folder(output_dir):
        samples = sample_clips(model, plan, output_dir, config, WorkersConfig(num_workers=2))
        return write_gallery(output_dir, (clip.shown() for clip in samples.all_clips))


def peak_kib(*, reset: bool = False) -> int:
    """The largest resident size of this process since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def processor_seconds() -> float:
    """User and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(number: int) -> list[Cost]:
    """The costs of a first start and of a second one, in this process."""
    import ray

    from launch.cluster import QUIET
    from pipeline.sample import job

    logging.disable(logging.WARNING)
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=128 * 2**20, **QUIET)
    job.SamplerActor = FreeActor  # pyright: ignore[reportAttributeAccessIssue] - with the same methods
    costs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample(write_rows(folder / "warm.jsonl", WARM_UP_ROWS), folder / "warm")
        prompts = write_rows(folder / "rows.jsonl", number)
        for start in ("first", "all clips are there"):
            before, used, begun = peak_kib(reset=True), processor_seconds(), time.monotonic()
            assert sample(prompts, folder / "out") == number
            costs.append(
                Cost(
                    start=start,
                    rows=number,
                    processor_ms_per_row=round(1000 * (processor_seconds() - used) / number, 3),
                    memory_kib_per_row=round((peak_kib() - before) / number, 3),
                    wall_seconds=round(time.monotonic() - begun, 1),
                )
            )
    ray.shutdown()
    return costs


def main() -> None:
    """Measure each size in a process of its own, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--one", type=int, help="measure this size in this process, and print the result")
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps([asdict(cost) for cost in measure(asked.one)]))
        return
    costs = []
    for number in asked.rows:
        command = [sys.executable, "-m", "benchmarks.sample_driver", "--one", str(number)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        costs += json.loads(done.stdout.splitlines()[-1])
        print(costs[-2:], flush=True)
    publish_text(RESULTS, json.dumps(costs, indent=1) + "\n")


if __name__ == "__main__":
    main()
