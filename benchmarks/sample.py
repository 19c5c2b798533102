"""Batch sampling: what share of the time is spent computing, what a second actor adds, diffusers beside it, memory.

    pip install '.[dev]' -c constraints.txt
    python -m benchmarks.sample runs/demo/dit
    python -m benchmarks.sample runs/demo/dit --parts peer memory

Parts. `jobs`: whole jobs on Ray with one actor and with two, in turn; rates and shares are those of the steady state,
from the end of an actor's first batch to the end of its last. `peer`: a pipeline of Wan with random weights, written by
diffusers, through `WanPipeline` and through the sampler, with equal prompts, steps and guidance, from text to pixels in
8 bits, in turn and in one process. `machine`: the same on all cores: a job with an actor for each core, in its steady
state, and `WanPipeline` with as many threads, in turn. `memory`: an actor that makes 1,000 clips; the folder's clips in
two steps of Euler.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from data.files.publish import publish_text
from data.records import Frames
from data.synthetic import held_out_combinations
from pipeline.distributed.config import WorkersConfig
from pipeline.run.precision import prepare_to_compute
from pipeline.sample.config import SampleConfig
from pipeline.sample.job import SamplerActor, sample_clips
from pipeline.sample.model import SampledModel, open_model
from pipeline.sample.outputs import SampledClip
from pipeline.sample.plan import Plan
from pipeline.sample.prompts import PlacedPrompt, Prompt
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler, OnProgress
from testing.paths import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "sample.json"
PARTS = ("jobs", "peer", "machine", "memory")
PEER_BUCKET, PEER_SHAPE = "17x128x128@8", {"num_frames": 17, "height": 128, "width": 128}
PEER_STEPS, PEER_SCALE, PEER_PROMPTS = 8, 4.0, 4
PEER_TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 6,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "freq_dim": 256,
    "ffn_dim": 1536,
    "num_layers": 4,
}
PEER_AUTOENCODER: dict[str, Any] = {
    "base_dim": 32,
    "z_dim": 16,
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}
MEMORY_CLIPS, MEMORY_EVERY = 1000, 100


@dataclass(frozen=True)
class Batch:
    """A batch that an actor made. Times are of the system's clock, in seconds."""

    actor: int
    num_clips: int
    begin: float
    end: float
    computing: float
    """Seconds in the network and the decoder."""


class TimedActor(SamplerActor):
    """A `SamplerActor` that writes down what its batches took, beside the folder of the clips."""

    def __init__(self, model_dir: Path, output_dir: Path, *rest: Any) -> None:  # noqa: ANN401 - as of `SamplerActor`
        super().__init__(model_dir, output_dir, *rest)
        self._computing = 0.0
        self._notes = output_dir.with_suffix(".notes")
        self._notes.mkdir(exist_ok=True)
        samplers = self._process._samplers
        assert samplers is not None
        for name in ("_latents", "_decoded"):
            setattr(samplers.own, name, self._timed(getattr(samplers.own, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:  # noqa: ANN401 - whatever the sampler's method takes
            begin = time.perf_counter()
            result = call(*args)
            self._computing += time.perf_counter() - begin
            return result

        return timed

    def make(self, requests: list[PromptRequest], on_progress: OnProgress | None = None) -> list[SampledClip]:
        """As `SamplerActor.make`."""
        self._computing, begin = 0.0, time.time()
        clips = super().make(requests, on_progress)
        note = Batch(os.getpid(), len(requests), begin, time.time(), self._computing)
        with (self._notes / f"{note.actor}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(note)) + "\n")
        return clips


@dataclass(frozen=True)
class Steady:
    """A job in its steady state."""

    actors: int
    clips_per_hour: float
    share_computing: float
    """Of the wall time of its actors: in the network and the decoder."""
    clips: int
    seconds: float


def steady_state(batches: Iterable[Batch]) -> Steady:
    """Of the batches that end before the first actor has nothing left, without the first of each actor."""
    of_actor: dict[int, list[Batch]] = {}
    for batch in sorted(batches, key=lambda batch: batch.end):
        of_actor.setdefault(batch.actor, []).append(batch)
    end = min(found[-1].end for found in of_actor.values())
    rate, computing, elapsed, clips = 0.0, 0.0, 0.0, 0
    for first, *others in of_actor.values():
        counted = [batch for batch in others if batch.end <= end]
        seconds = counted[-1].end - first.end
        rate += sum(batch.num_clips for batch in counted) / seconds
        clips += sum(batch.num_clips for batch in counted)
        computing += sum(batch.computing for batch in counted)
        elapsed += seconds
    seconds = elapsed / len(of_actor)
    return Steady(len(of_actor), round(3600 * rate, 1), round(computing / elapsed, 4), clips, round(seconds, 1))


def prompts_of(number: int) -> list[PlacedPrompt]:
    """Prompts of drawn scenes, each with a seed of its own."""
    scenes = held_out_combinations()
    captions = [f"a {scene.colour} {scene.shape} moves {scene.direction}" for scene in scenes]
    return [PlacedPrompt(f"prompt {i}", Prompt(prompt=captions[i % len(captions)], seed=i)) for i in range(number)]


def run_job(model: SampledModel, config: SampleConfig, folder: Path, actors: int, clips: int) -> Steady:
    """A job on the connected cluster."""
    plan = Plan(model, config, prompts_of(clips), 0)
    samples = sample_clips(model, plan, folder, config, WorkersConfig(num_workers=actors))
    assert samples.num_clips == clips
    notes = [line for path in folder.with_suffix(".notes").iterdir() for line in path.read_text().splitlines()]
    return steady_state(Batch(**json.loads(line)) for line in notes)


def start_ray(num_cpus: int) -> None:
    """A cluster on this machine, whose actors write down what their batches took."""
    import ray

    from launch.cluster import QUIET, worker_environment
    from pipeline.sample import job

    environment = {"env_vars": worker_environment(1)}
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        runtime_env=environment,
        **QUIET,
    )
    job.SamplerActor = TimedActor


def stop_ray() -> None:
    """End it."""
    import ray

    ray.shutdown()


def jobs(model_dir: Path, rounds: int, clips: int) -> dict[str, Any]:
    """Jobs of one actor and of two in turn, with the settings that the checkpoint carries."""
    start_ray(2)
    model = open_model(model_dir)
    config = SampleConfig.model_validate(model.sampling_defaults[0])
    found: dict[int, list[Steady]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        for number in range(rounds):
            for actors in (1, 2):
                made = run_job(model, config, Path(name) / f"{number}-{actors}", actors, actors * clips)
                found[actors].append(made)
                print(made, flush=True)
    stop_ray()
    rates = {actors: statistics.median(made.clips_per_hour for made in found[actors]) for actors in found}
    return {
        "settings": {"solver": config.solver, "steps": config.steps, "guidance_scale": config.guidance_scale},
        "rounds": [asdict(made) for made in (*found[1], *found[2])],
        "share_computing": min(made.share_computing for made in found[1]),
        "share_computing_of_two_actors": min(made.share_computing for made in found[2]),
        "second_actor": round(rates[2] / rates[1], 3),
    }


@dataclass(frozen=True)
class Side:
    """The fastest round of one side."""

    processor_seconds_per_clip: float
    wall_seconds_per_clip: float


def peer(minutes: float) -> dict[str, Any]:
    """`WanPipeline` and the sampler in turn, with all prompts in one call and with one prompt in each."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        theirs, model, config = write_peer(Path(name))
        prepare_to_compute(torch.device("cpu"), 1)
        ours = ClipSampler(model, config, torch.device("cpu"))
        prompts = [placed.prompt.prompt for placed in prompts_of(PEER_PROMPTS)]

        def make_ours() -> list[Frames]:
            prepare_to_compute(torch.device("cpu"))
            return ours.sample(list(_requests(prompts, PEER_BUCKET)))[0]

        found = in_turn({"reelflow": make_ours, **sides_of_peer(theirs, prompts)}, 60 * minutes)
    best = min((name for name in found if name != "reelflow"), key=lambda name: found[name].processor_seconds_per_clip)
    mine, other = found["reelflow"], found[best]
    return {
        "clip": PEER_BUCKET,
        "steps": PEER_STEPS,
        "guidance_scale": PEER_SCALE,
        "sides": {name: asdict(side) for name, side in found.items()},
        "fastest_of_peer": best,
        "clips_per_hour_by_processor": round(other.processor_seconds_per_clip / mine.processor_seconds_per_clip, 3),
        "clips_per_hour_by_wall": round(other.wall_seconds_per_clip / mine.wall_seconds_per_clip, 3),
    }


def write_peer(folder: Path) -> tuple[Any, SampledModel, SampleConfig]:
    """The pipeline in a folder, as diffusers has it, as a model to sample, and the settings that are theirs."""
    from testing.published import write_pipeline

    pipeline: Any = write_pipeline(
        folder, scheduler="unipc", transformer=PEER_TRANSFORMER, autoencoder=PEER_AUTOENCODER
    )
    pipeline.set_progress_bar_config(disable=True)
    model = open_model(folder)
    settings, _ = model.sampling_defaults
    config = SampleConfig(
        **settings,
        steps=PEER_STEPS,
        guidance_scale=PEER_SCALE,
        precision="fp32",
        bucket=PEER_BUCKET,
        batch=PEER_PROMPTS,
    )
    return pipeline, model, config


def sides_of_peer(pipeline: Any, prompts: Sequence[str]) -> dict[str, Callable[[], list[Frames]]]:  # noqa: ANN401
    """The ways to call it: prompts together or one by one, products as they come or by oneDNN."""

    def make(size: int, products: str) -> list[Frames]:
        torch.set_float32_matmul_precision(products)
        return [
            np.asarray(clip) for at in range(0, len(prompts), size) for clip in _of_peer(pipeline, prompts, at, size)
        ]

    return {
        f"diffusers {label}, {size} together": partial(make, size, products)
        for label, products in (("default", "highest"), ("by oneDNN", "medium"))
        for size in (1, PEER_PROMPTS)
    }


def machine(rounds: int) -> dict[str, Any]:
    """Clips per hour of all cores: actors of a job in their steady state, and `WanPipeline` with a thread for each."""
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        theirs, model, config = write_peer(Path(name) / "pipeline")
        prompts = [placed.prompt.prompt for placed in prompts_of(PEER_PROMPTS)]
        rates: dict[str, list[float]] = {}
        for number in range(rounds):
            torch.set_num_threads(cores)
            for side, found in in_turn(sides_of_peer(theirs, prompts), 0).items():
                rates.setdefault(side, []).append(3600 / found.wall_seconds_per_clip)
            start_ray(cores)
            made = run_job(model, config, Path(name) / f"clips-{number}", cores, 3 * cores * PEER_PROMPTS)
            stop_ray()
            rates.setdefault("reelflow", []).append(made.clips_per_hour)
            print({side: round(found[-1], 1) for side, found in rates.items()}, flush=True)
    best = max((side for side in rates if side != "reelflow"), key=lambda side: max(rates[side]))
    return {
        "cores": cores,
        "clips_per_hour": {side: [round(rate, 1) for rate in found] for side, found in rates.items()},
        "fastest_of_peer": best,
        "ratio": round(max(rates["reelflow"]) / max(rates[best]), 3),
    }


def _of_peer(pipeline: Any, prompts: Sequence[str], at: int, size: int) -> list[Frames]:  # noqa: ANN401 - of diffusers
    noise = torch.Generator().manual_seed(at)
    made = pipeline(
        list(prompts[at : at + size]),
        num_inference_steps=PEER_STEPS,
        guidance_scale=PEER_SCALE,
        generator=noise,
        output_type="np",
        **PEER_SHAPE,
    )
    return [(255 * clip).round().astype(np.uint8) for clip in made.frames]


def _requests(
    prompts: Sequence[str], bucket: str, first: int = 0, scale: float = PEER_SCALE
) -> Iterable[PromptRequest]:
    for number, prompt in enumerate(prompts, first):
        yield PromptRequest(id=f"{number:012}", prompt=prompt, seed=number, guidance_scale=scale, bucket=bucket)


def in_turn(sides: dict[str, Callable[[], list[Frames]]], seconds: float) -> dict[str, Side]:
    """Call each in turn, after one call of each that does not count, until the time is over; at least twice."""
    times: dict[str, list[Side]] = {name: [] for name in sides}
    for make in sides.values():
        make()
    begin = time.perf_counter()
    while min(map(len, times.values())) < 2 or time.perf_counter() - begin < seconds:
        for name, make in sides.items():
            used, wall = time.process_time(), time.perf_counter()
            clips = len(make())
            times[name].append(
                Side((time.process_time() - used) / clips, (time.perf_counter() - wall) / clips),
            )
    return {
        name: Side(
            round(min(side.processor_seconds_per_clip for side in found), 4),
            round(min(side.wall_seconds_per_clip for side in found), 4),
        )
        for name, found in times.items()
    }


def memory(model_dir: Path) -> dict[str, Any]:
    """Resident memory of an actor after so many clips, in MiB."""
    model = open_model(model_dir)
    config = SampleConfig(solver="euler", steps=2, precision="fp32")
    prompts = [placed.prompt.prompt for placed in prompts_of(config.batch)]
    found: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        actor, made = SamplerActor(model_dir.resolve(), Path(name), config, 1), 0
        while made < MEMORY_CLIPS:
            requests = _requests(prompts, model.trained_buckets[0].name, made)
            made += len(actor.make(list(requests)))
            if made // MEMORY_EVERY > (made - len(prompts)) // MEMORY_EVERY:
                found[made] = round(psutil.Process().memory_info().rss / 2**20, 1)
    first, *_, last = found.values()
    return {"resident_mib": found, "growth_mib": round(last - first, 1)}


def main() -> None:
    """Measure the parts and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a training of the DiT")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=2, help="of jobs")
    parser.add_argument("--clips", type=int, default=72, help="of a job, for each actor")
    parser.add_argument("--minutes", type=float, default=2, help="of the comparison with diffusers")
    asked = parser.parse_args()
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "jobs": lambda: jobs(asked.folder, asked.rounds, asked.clips),
        "peer": lambda: peer(asked.minutes),
        "machine": lambda: machine(asked.rounds),
        "memory": lambda: memory(asked.folder),
    }
    for part in asked.parts:
        found = measures[part]()
        print(part, json.dumps(found, indent=1), flush=True)
        before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
        publish_text(RESULTS, json.dumps(before | {part: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
