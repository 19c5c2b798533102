"""Strike a training with every known fault and check that it ends like an undisturbed one.

    python -m benchmarks.faults [--repeats 5] [--random-kills 50]

`testing.faults` says what one cell is. With random kills, one more training runs in which a worker or the command is
killed again and again at random times.
"""

import argparse
import os
import platform
import re
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from data.files.publish import publish_text
from testing.faults import (
    FAULTS,
    INTERVAL,
    TRAINING_WORKER,
    Cell,
    Fault,
    all_fed,
    compare,
    num_starts_of_the_training,
    recovery_of,
    run_undisturbed,
    steps_for,
)
from testing.paths import ROOT
from testing.processes import children_of, kill_all

LONGEST_CALM_SECONDS = 20.0  # between random kills; at times long enough to recover
STEPS_PER_RANDOM_KILL = 20  # more than are done between two kills
DRIVER_SHARE = 0.25  # of random kills


class CellResult(BaseModel):
    """The result of one fault at one ZeRO stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fault: Fault
    zero_stage: int
    num_strikes: int  # in one training
    finished: bool
    losses_bit_identical: bool
    batches_in_order: bool  # none missing or extra, and only recomputed ones seen twice
    num_starts_of_the_command: int
    num_starts_of_the_training: int  # more where Ray restarted the workers
    recomputed_steps: list[int]  # one for each fault that interrupted the training
    recovery_seconds: list[float]  # likewise, from the fault to the first new step
    said: str  # the line that the user sees


class RandomKills(BaseModel):
    """The result of one training whose processes were killed at random times."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    zero_stage: int
    num_steps: int
    workers_killed: int
    drivers_killed: int
    finished: bool
    losses_bit_identical: bool
    batches_in_order: bool
    num_starts_of_the_training: int
    num_times_a_batch_was_fed_again: int
    seconds: float


def run_cell(folder: Path, fault: Fault, zero_stage: int, undisturbed: Cell, num_strikes: int) -> CellResult:
    """Run one fault `num_strikes` times in one training; compare with an undisturbed run that is at least as long."""
    strikes: list[Fault] = [fault] * num_strikes
    cell = Cell(folder, zero_stage, strikes)
    cell.run()
    recoveries = [recovery for at in sorted(cell.struck_at.values()) if (recovery := recovery_of(cell, at)) is not None]
    return CellResult(
        fault=fault,
        zero_stage=zero_stage,
        num_strikes=num_strikes,
        **asdict(compare(cell, undisturbed)),
        num_starts_of_the_command=cell.num_starts,
        num_starts_of_the_training=num_starts_of_the_training(cell),
        recomputed_steps=[recovery.recomputed_steps for recovery in recoveries],
        recovery_seconds=[round(recovery.seconds, 1) for recovery in recoveries],
        said=_said(cell.outputs_text()),
    )


def run_random_kills(folder: Path, zero_stage: int, num_kills: int) -> RandomKills:
    """One long training whose workers, and sometimes its command, are killed at random times."""
    random = np.random.default_rng(zero_stage)
    steps = STEPS_PER_RANDOM_KILL * num_kills
    undisturbed = run_undisturbed(folder / "undisturbed", zero_stage, steps)
    cell = Cell(folder / "struck", zero_stage, steps=steps)
    started, killed = time.monotonic(), {"worker": 0, "driver": 0}
    process = cell.start()
    try:
        while sum(killed.values()) < num_kills and process.poll() is None:
            time.sleep(random.uniform(0, LONGEST_CALM_SECONDS))
            workers = [child for child in children_of(process.pid) if TRAINING_WORKER in child.name()]
            if random.random() < DRIVER_SHARE:
                cell.orphans += children_of(process.pid)
                process.kill()
                process.wait()
                process = cell.start()
                killed["driver"] += 1
            elif workers:
                kill_all([workers[random.integers(len(workers))]])
                killed["worker"] += 1
        assert cell.end_of(process) == 0, cell.outputs_text()
    finally:
        kill_all(cell.orphans)
    return RandomKills(
        zero_stage=zero_stage,
        num_steps=steps,
        workers_killed=killed["worker"],
        drivers_killed=killed["driver"],
        **asdict(compare(cell, undisturbed)),
        num_starts_of_the_training=num_starts_of_the_training(cell),
        num_times_a_batch_was_fed_again=len(all_fed(cell.folder, 0)) - steps,
        seconds=round(time.monotonic() - started, 1),
    )


def _said(output: str) -> str:
    """The line about the fault, without local folders."""
    telling = re.compile("damaged|missing|not saved|in use|stopped as asked|error|resuming from", re.IGNORECASE)
    lines = [line.strip() for line in output.splitlines() if telling.search(line) and "(raylet)" not in line]
    return re.sub(r"/\S*/run\b", "run", lines[0])[:300] if lines else ""


def _order(cell: CellResult) -> tuple[int, int]:
    return FAULTS.index(cell.fault), cell.zero_stage


class Campaign(BaseModel):
    """The content of the JSON file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmark: Literal["faults"] = "faults"
    machine: str
    num_cpus: int
    checkpoint_every_steps: int
    cells: list[CellResult]
    random_kills: list[RandomKills]


def publish_results(path: Path, cells: list[CellResult], random_kills: list[RandomKills]) -> None:
    """Write the JSON of a campaign, sorted by fault and stage."""
    campaign = Campaign(
        machine=platform.machine(),
        num_cpus=os.cpu_count() or 1,
        checkpoint_every_steps=INTERVAL,
        cells=sorted(cells, key=_order),
        random_kills=sorted(random_kills, key=lambda result: result.zero_stage),
    )
    publish_text(path, campaign.model_dump_json(indent=1) + "\n")


def main() -> None:
    """Every fault at ZeRO 1, 2 and 3, random kills, and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--faults", nargs="*", default=FAULTS, choices=FAULTS)
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--random-kills", type=int, default=0, help="over all stages together")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "faults.json")
    arguments = parser.parse_args()
    cells, random_kills = [], []
    if arguments.output.is_file():  # results that are not repeated stay in the file
        earlier = Campaign.model_validate_json(arguments.output.read_text(encoding="utf-8"))
        cells += [c for c in earlier.cells if c.fault not in arguments.faults or c.zero_stage not in arguments.stages]
        random_kills += earlier.random_kills
    with tempfile.TemporaryDirectory(prefix="reelflow-faults-") as temporary:
        folder = Path(temporary)
        for turn, stage in enumerate(arguments.stages):
            steps = steps_for(arguments.repeats)
            undisturbed = run_undisturbed(folder / f"undisturbed-{stage}", stage, steps)
            for fault in arguments.faults:
                place = folder / f"{stage}-{fault.replace(' ', '-')}"
                cells.append(run_cell(place, fault, stage, undisturbed, arguments.repeats))
                print(cells[-1].model_dump_json(), flush=True)
                publish_results(arguments.output, cells, random_kills)
            num_kills = len(range(turn, arguments.random_kills, len(arguments.stages)))
            if num_kills:
                random_kills = [result for result in random_kills if result.zero_stage != stage]
                random_kills.append(run_random_kills(folder / f"{stage}-random", stage, num_kills))
                print(random_kills[-1].model_dump_json(), flush=True)
                publish_results(arguments.output, cells, random_kills)


if __name__ == "__main__":
    main()
