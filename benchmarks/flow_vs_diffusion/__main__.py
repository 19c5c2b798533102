"""Flow matching against diffusion: one network, one dataset, the same steps and seeds, each objective at its best.

    python -m benchmarks.checkerboard        the training-free half: only the sampler's error
    python -m benchmarks.flow_vs_diffusion   the trained half, on the latents of a finished `make demo`

Each objective chooses among the same learning rates, laws of training times and sampling grids, by trainings of one
search seed that are sampled for captions of the training split. Then it is trained with three other seeds and makes
clips for the captions of the validation split, without guidance, from the same noises, at 1 to 64 network calls: by
ODE (DDIM, which on the straight path is Euler), by SDE (ancestral: DDIM with eta = 1) and by UniPC, the flow also by
Heun and AB2, and by a few-step student that has as many steps as its teacher had. Measured: the share of clips that
show what their caption says (the demo's judge, on decoded pixels), the Fréchet distance of the latents to the training
latents in their first principal components, and bits per dimension of held-out latents along the flow.

The same command in several processes shares the work, one core each; finished trainings are kept in the work folder.
The process that finds everything done writes table, JSON and plot.
"""

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file

from benchmarks.flow_vs_diffusion import plan, report
from benchmarks.flow_vs_diffusion.latents import Demo, read_demo
from benchmarks.flow_vs_diffusion.measures import Asked, bits, cell
from benchmarks.flow_vs_diffusion.objectives import FLOW, OBJECTIVES, Objective
from benchmarks.flow_vs_diffusion.plan import Outcome, Sampling, Training
from benchmarks.flow_vs_diffusion.training import NETWORK, Trained, distilled, trained
from data.files.publish import publish_text
from models.networks.dit import DiT
from pipeline.run.precision import prepare_to_compute


def train(work_dir: Path, demo: Demo, training: Training) -> Trained:
    """As the training says; a student from its teacher's weights."""
    rate, law, seed, steps = training.learning_rate, training.law, training.seed, training.steps
    if training.teacher_rate is None:
        return trained(demo.training, objective_of(training), law, rate, seed, steps)
    teacher = DiT(NETWORK, demo.training.x.shape[1])
    teacher.load_state_dict(load_file(work_dir / f"{training.teacher.key}.safetensors"))
    return distilled(teacher, demo.training, law, rate, seed, steps)


def objective_of(training: Training) -> Objective:
    """What its network predicts: of a student, as of its teacher, the flow's velocity."""
    return next((each for each in OBJECTIVES if each.name == training.objective), FLOW)


def run(work_dir: Path, demo: Demo, training: Training, samplings: list[Sampling]) -> None:
    """Train, measure and write."""
    begun, objective = time.process_time(), objective_of(training)
    made = train(work_dir, demo, training)
    save_file(made.network.state_dict(), work_dir / f"{training.key}.safetensors")
    if training.is_search:
        asked, density = Asked(demo.training, plan.SEARCH_CLIPS, training.seed), None
    else:
        asked = Asked(demo.held_out, plan.CLIPS, training.seed)
        density = None if training.teacher_rate else bits(objective, made.network, demo.held_out)
    cells = [cell(demo, objective, made.network, s.sampler, s.grid, s.network_calls, asked) for s in samplings]
    outcome = Outcome(training, made.final_loss, made.cpu_seconds, density, cells)
    publish_text(work_dir / f"{training.key}.json", json.dumps(asdict(outcome)))
    seconds = time.process_time() - begun
    print(f"{training.key}: {seconds:.0f} s of CPU, {made.cpu_seconds:.0f} s of them training", flush=True)


def work(work_dir: Path, demo: Demo, until: float) -> bool:
    """Run what is missing and what no other process runs, until a time of the clock; whether all is done."""
    while True:
        done = plan.finished(work_dir)
        missing = [training for training in plan.planned(done) if training not in done]
        if not missing:
            return True
        for training in (each for each in missing if plan.is_ready(each, done)):
            try:
                with FileLock(work_dir / f"{training.key}.lock", timeout=0):
                    if time.monotonic() > until:
                        return False
                    if not (work_dir / f"{training.key}.json").is_file():
                        run(work_dir, demo, training, plan.samplings(training, done))
                    break
            except Timeout:
                continue
        else:
            return False


def main() -> None:
    """Run what is missing; then print the table, write the JSON and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished demo")
    parser.add_argument("--work", type=Path, default=Path("runs/flow_vs_diffusion"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="after so many, no further training is begun")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    prepare_to_compute(torch.device("cpu"), num_threads=1)
    demo = read_demo(options.run)
    if not work(options.work, demo, time.monotonic() + 60 * options.minutes):
        print("Not all is done: other processes are at it, or the time is over. The same command continues.")
    report.write(demo, plan.finished(options.work))


if __name__ == "__main__":
    main()
