"""Sampling jobs whose processes are killed, compared by checksum with an undisturbed one.

Nothing is injected into the product: SIGKILL goes to an actor, to the raylet or to the command when a number of clips
is listed, and the command is repeated until it succeeds. `python -m benchmarks.sample_faults` runs the campaign.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import psutil
import torch
from safetensors.torch import save_file

from data.files.checksums import file_sha256
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.model import Autoencoder
from models.flow.spec import FlowSpec
from pipeline.distributed.torchrun import train_here
from pipeline.sample.outputs import read_samples
from pipeline.train.loop import train
from testing.commands import launch_here
from testing.paths import ROOT
from testing.processes import children_of, kill_all
from testing.records import write_random_latents
from testing.tiny import CONFIG, SHAPE, make_task

Target = Literal["actor", "member", "raylet", "driver"]  # a member shares the clips of an actor
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"steps": 3, "solver": "heun"},
    {"guidance": "cfg-zero-star", "guidance_scale": 5},
    {"guidance_scale": 1},
    {"negative_prompt": "a blue dot", "grid": "karras"},
    {"num_frames": 9},
    {"sde_sigma": 0.5, "weights": "master"},
)
OF_FEW: dict[str, Any] = {"solver": "dopri5", "tolerance": 0.05}  # computed one by one
EACH = 25  # rows of which one has those settings
END_SECONDS = 900.0  # in which a command whose raylet was killed has to end by itself


def write_model(folder: Path, flow: FlowSpec | None = None) -> Path:
    """A checkpoint of a small DiT after eight steps, with an autoencoder that was not trained; returns its folder."""
    latents = folder / "latents"
    write_random_latents(latents, 10, SHAPE, "test")
    config = AutoencoderConfig(latent_channels=4, width=8, deep_width=8, num_blocks=1)
    torch.manual_seed(0)
    weights = Autoencoder(config).state_dict()
    save_file(weights, latents / "autoencoder.safetensors", metadata={"config": config.model_dump_json()})
    task = make_task(latents)
    task = task if flow is None else replace(task, flow=flow)
    train_here(partial(train, task, CONFIG, folder / "dit"), 1)
    return folder / "dit"


def rows_of(number: int) -> list[dict[str, Any]]:
    """Rows with settings of every kind in turn."""
    settings = [OF_FEW if i % EACH == EACH - 1 else SETTINGS[i % len(SETTINGS)] for i in range(number)]
    return [{"prompt": f"dot {i}", "seed": i, "metadata": {"row": i}, **settings[i]} for i in range(number)]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A prompts file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every clip."""
    return {path.name: file_sha256(path) for path in sorted(folder.glob("*.mp4"))}


@dataclass
class SampleJob:
    """The command that samples a prompts file, and what became of its starts."""

    model: Path
    prompts: Path
    output: Path
    options: tuple[str, ...] = ()
    return_codes: list[int] = field(default_factory=list)
    said: str = ""

    @property
    def arguments(self) -> list[str]:
        """The command line after `reelflow`."""
        settings = ["sample.precision=fp32", "sample.solver=euler", "sample.steps=2", "cluster.object_store_mib=128"]
        given = [word for setting in settings for word in ("--set", setting)]
        place = ["--prompts", str(self.prompts), "--output", str(self.output)]
        return ["sample", str(self.model), *place, *given, *self.options]

    def start(self) -> "subprocess.Popen[str]":
        """Start the command in a process of its own, with a cluster of its own."""
        command = [sys.executable, "-m", "launch", *self.arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def end(self, process: "subprocess.Popen[str]", seconds: float | None = None) -> int:
        """Wait for a command; what it said is kept."""
        self.said, _ = process.communicate(timeout=seconds)
        self.return_codes.append(process.returncode)
        return process.returncode

    def run(self) -> int:
        """Start the command and wait for it."""
        return self.end(self.start())

    def run_here(self) -> int:
        """Run the command in this process, on the cluster that it is connected to: where nothing is killed."""
        done = launch_here(*self.arguments)
        self.said = done.stdout + done.stderr
        self.return_codes.append(done.returncode)
        return done.returncode

    def num_listed(self) -> int:
        """Lines of the manifest so far."""
        path = self.output / "manifest.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def strike(self, process: "subprocess.Popen[str]", target: Target) -> bool:
        """Kill a process of a running command; False: it was not there."""
        if target == "driver":
            process.kill()
            return True
        name = "raylet" if target == "raylet" else "ray::SamplerActor"
        found = [child for child in children_of(process.pid) if name in child.name() or name in _title(child)]
        if target == "member":
            found = [child for actor in found for child in children_of(actor.pid) if "spawn_main" in _line(child)]
        kill_all(found[:1])
        return bool(found)


def _title(process: psutil.Process) -> str:
    return _line(process).partition(" ")[0]


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


@dataclass(frozen=True)
class Struck:
    """What a job went through."""

    killed: dict[Target, int]
    return_codes: list[int]
    seconds: float


def strike_at(job: SampleJob, strikes: Sequence[tuple[int, Target]]) -> Struck:
    """Run a job to its end, and kill a process whenever so many clips are listed; start it again where it ended."""
    begun, killed = time.monotonic(), dict.fromkeys(get_args(Target), 0)
    process = job.start()
    for at, target in strikes:
        while True:
            if process.poll() is not None:
                assert job.end(process) != 0, f"it ended before {target} could be killed: {job.said}"
                process = job.start()
            if job.num_listed() >= at and job.strike(process, target):
                break
            time.sleep(0.05)
        killed[target] += 1
        if target in ("raylet", "driver"):
            job.end(process, END_SECONDS)
            process = job.start()
    while job.end(process) != 0:
        assert len(job.return_codes) < 3 + 2 * len(strikes), job.said
        process = job.start()
    return Struck(killed, job.return_codes, time.monotonic() - begun)


def random_strikes(number: int, num_rows: int, seed: int) -> list[tuple[int, Target]]:
    """Random moments and targets, with each target at least once where there are three or more."""
    random = np.random.default_rng(seed)
    targets: list[Target] = ["actor", "raylet", "driver"]
    chosen = [targets[i] if i < 3 else targets[random.choice(3, p=[0.6, 0.15, 0.25])] for i in range(number)]
    moments = sorted(random.integers(1, int(0.9 * num_rows), number).tolist())
    return list(zip(moments, random.permutation(np.array(chosen, dtype=object)).tolist(), strict=True))


def check_exactly_once(job: SampleJob, num_rows: int) -> None:
    """Every row has one line and one file, which holds what the line says."""
    lines, files = read_samples(job.output), digests(job.output)
    assert [line.request.metadata for line in lines] == [{"row": i} for i in range(num_rows)]
    assert {line.file: line.sha256 for line in lines} == files
    assert len(files) == num_rows
    assert not list(job.output.glob(".tmp-*"))
