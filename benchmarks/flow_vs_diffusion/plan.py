"""What is trained: a search of the same size for each objective, then the judged trainings with what it found.

Every finished training is a pair of files in the work folder, weights and measurements, so that the experiment can be
stopped, continued, and shared by several processes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from benchmarks.flow_vs_diffusion.measures import SAMPLERS, Cell
from benchmarks.flow_vs_diffusion.objectives import FLOW, GRIDS, LAWS, LEARNING_RATES, OBJECTIVES

STUDENT = "few-step student of the flow"
STUDENT_RATES = tuple(rate / 4 for rate in LEARNING_RATES)
SEEDS, STEPS, LONG_STEPS = (0, 1, 2), 800, 2400
SEARCH_SEED, SEARCH_STEPS, SEARCH_CLIPS, SEARCH_CALLS = 100, 200, 64, (4, 16)
STUDENT_SEARCH_CALLS = (2, 8)
CLIPS, CALLS = 80, (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Setting:
    """What an objective may choose."""

    learning_rate: float
    law: str
    """Of the training times, one of `LAWS`."""
    grid: str
    """Of the sampler, one of `GRIDS`."""


@dataclass(frozen=True)
class Training:
    """One training; that of a student starts from the flow's of the same seed, steps and law."""

    objective: str
    seed: int
    steps: int
    learning_rate: float
    law: str
    teacher_rate: float | None = None
    """Learning rate of a student's teacher."""

    @property
    def key(self) -> str:
        """The name of its files."""
        name = self.objective.replace(",", "").replace(" ", "-")
        taught = "" if self.teacher_rate is None else f"-of-{self.teacher_rate:g}"
        return f"{name}-{self.law}-{self.learning_rate:g}{taught}-{self.steps}-{self.seed}"

    @property
    def is_search(self) -> bool:
        """Whether settings are chosen by it; others are judged."""
        return self.seed == SEARCH_SEED

    @property
    def teacher(self) -> "Training":
        """Of a student."""
        assert self.teacher_rate is not None
        return replace(self, objective=FLOW.name, learning_rate=self.teacher_rate, teacher_rate=None)


@dataclass(frozen=True)
class Outcome:
    """A finished training and what was measured of it."""

    training: Training
    final_loss: float
    cpu_seconds: float
    bits_per_dimension: float | None
    """Of held-out latents; None of students and in the search."""
    cells: list[Cell]


def of_json(content: dict) -> Outcome:
    """The inverse of `asdict`."""
    cells = [Cell(**each) for each in content["cells"]]
    return Outcome(**content | {"training": Training(**content["training"]), "cells": cells})


def finished(folder: Path) -> dict[Training, Outcome]:
    """What is in the work folder."""
    outcomes = [of_json(json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("*.json"))]
    return {outcome.training: outcome for outcome in outcomes}


Done = Mapping[Training, Outcome]


def searches(objective: str) -> list[Training]:
    """Of an objective: every learning rate with every law of training times."""
    return [Training(objective, SEARCH_SEED, SEARCH_STEPS, rate, law) for rate in LEARNING_RATES for law in LAWS]


def chosen(outcomes: Sequence[Outcome]) -> Setting:
    """The setting of the smallest Fréchet distance, as the geometric mean over the numbers of calls of the search.

    Only candidates of one objective are compared. Losses do not count, which two laws of times make differ, nor does
    adherence: after a training this short some objectives show nothing of what a caption says.
    """
    distances = {
        Setting(outcome.training.learning_rate, outcome.training.law, grid): [
            math.inf if cell.frechet is None else math.log(cell.frechet) for cell in outcome.cells if cell.grid == grid
        ]
        for outcome in outcomes
        for grid in GRIDS
    }
    return min(distances, key=lambda setting: mean(distances[setting]))


def settings(done: Done) -> dict[str, Setting]:
    """What was chosen for each objective, and for the student, whose searches are finished."""
    found = {}
    for objective in OBJECTIVES:
        if all(training in done for training in searches(objective.name)):
            found[objective.name] = chosen([done[training] for training in searches(objective.name)])
    if FLOW.name in found and all(training in done for training in student_searches(found[FLOW.name])):
        found[STUDENT] = chosen([done[training] for training in student_searches(found[FLOW.name])])
    return found


def student_searches(flow: Setting) -> list[Training]:
    """Of the student, with the training times of its teacher."""
    return [Training(STUDENT, SEARCH_SEED, SEARCH_STEPS, rate, flow.law, flow.learning_rate) for rate in STUDENT_RATES]


def judged(found: Mapping[str, Setting], name: str) -> list[Training]:
    """The trainings of an objective, or of the student, that are compared."""
    setting = found[name]
    taught_by = found[FLOW.name].learning_rate if name == STUDENT else None
    return [Training(name, seed, STEPS, setting.learning_rate, setting.law, taught_by) for seed in SEEDS]


def planned(done: Done) -> list[Training]:
    """Every training of which it is known by now that it belongs to the experiment."""
    found = settings(done)
    plan = [training for objective in OBJECTIVES for training in searches(objective.name)]
    if FLOW.name in found:
        plan += student_searches(found[FLOW.name])
    judged_ones = [judged(found, name) for name in found]
    plan += [trainings[number] for number in range(len(SEEDS)) for trainings in judged_ones]
    if (best := best_diffusion(done)) is not None:
        plan += [replace(judged(found, name)[0], steps=LONG_STEPS) for name in (FLOW.name, best)]
    return plan


def is_ready(training: Training, done: Done) -> bool:
    """Whether its teacher, if it has one, is there."""
    return training.teacher_rate is None or training.teacher in done


def best_diffusion(done: Done) -> str | None:
    """The diffusion objective whose clips are right most often, on average over seeds, ODE and SDE and 8 to 64 calls.

    None: not all of them have been judged.
    """
    found, shares = settings(done), {}
    for objective in OBJECTIVES:
        if objective is FLOW:
            continue
        if objective.name not in found or any(each not in done for each in judged(found, objective.name)):
            return None
        cells = [c for training in judged(found, objective.name) for c in done[training].cells]
        shares[objective.name] = mean(
            c.adherence for c in cells if c.sampler in ("ode", "sde") and c.network_calls >= 8
        )
    return max(shares, key=lambda name: shares[name])


@dataclass(frozen=True)
class Sampling:
    """One cell that is measured."""

    sampler: str
    grid: str
    network_calls: int


def samplings(training: Training, done: Done) -> list[Sampling]:
    """How clips of a training are made: the search on every grid, others on the one that was chosen."""
    is_student = training.teacher_rate is not None
    if training.is_search:
        sampler, calls = ("flow map", STUDENT_SEARCH_CALLS) if is_student else ("ode", SEARCH_CALLS)
        return [Sampling(sampler, grid, each) for grid in GRIDS for each in calls]
    grid = settings(done)[training.objective].grid
    if is_student:
        return [Sampling("flow map", grid, calls) for calls in CALLS]
    samplers = ("ode", "sde", "unipc", "ab2", "heun") if training.objective == FLOW.name else ("ode", "sde", "unipc")
    return [
        Sampling(sampler, grid, calls)
        for sampler in samplers
        for calls in CALLS
        if calls % SAMPLERS[sampler].calls_per_step == 0
    ]
