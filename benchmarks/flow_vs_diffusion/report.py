"""Table, JSON and plot of what is finished."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

import torch

from benchmarks.flow_vs_diffusion.latents import Demo
from benchmarks.flow_vs_diffusion.measures import frechet_to_training
from benchmarks.flow_vs_diffusion.objectives import FLOW, LEARNING_RATES, OBJECTIVES
from benchmarks.flow_vs_diffusion.plan import (
    CALLS,
    CLIPS,
    SEARCH_CALLS,
    SEARCH_CLIPS,
    SEARCH_STEPS,
    SEEDS,
    STEPS,
    STUDENT,
    STUDENT_RATES,
    STUDENT_SEARCH_CALLS,
    Done,
    Outcome,
    settings,
)
from benchmarks.flow_vs_diffusion.training import BATCH, MAP, NETWORK
from data.files.publish import publish_text

BENCHMARKS = Path(__file__).parent.parent
RESULT = BENCHMARKS / "results" / "flow_vs_diffusion.json"
PLOT = BENCHMARKS.parent / "docs" / "images" / "flow_vs_diffusion.png"
MEASURES = {"adherence": "clips as their caption says", "frechet": "Fréchet distance"}
Measure = Literal["adherence", "attributes", "frechet"]


@dataclass(frozen=True)
class Line:
    """One sampler of one objective over numbers of calls."""

    label: str
    objective: str
    sampler: str
    colour: str
    style: str = "-"


COLOURS = dict(zip([each.name for each in OBJECTIVES] + [STUDENT], ("C0", "C1", "C2", "C3", "black"), strict=True))
PANELS = {
    "ODE (DDIM; on the straight path Euler)": [
        *(Line(each.name, each.name, "ode", COLOURS[each.name]) for each in OBJECTIVES),
        Line(STUDENT, STUDENT, "flow map", "black", "--"),
    ],
    "SDE (ancestral: DDIM with eta = 1)": [
        Line(each.name, each.name, "sde", COLOURS[each.name]) for each in OBJECTIVES
    ],
    "solvers of higher order": [
        Line("flow: Euler", FLOW.name, "ode", "C0", ":"),
        Line("flow: Heun", FLOW.name, "heun", "C4"),
        Line("flow: AB2", FLOW.name, "ab2", "C5"),
        *(Line(f"{each.name}: UniPC", each.name, "unipc", COLOURS[each.name]) for each in OBJECTIVES),
        Line(STUDENT, STUDENT, "flow map", "black", "--"),
    ],
}


@dataclass(frozen=True)
class Spread:
    """Of a measure over seeds."""

    mean: float
    deviation: float | None
    """None: there is one seed only."""

    def text(self, measure: Measure) -> str:
        """Shares in percent."""
        if measure == "frechet":
            return f"{self.mean:.0f}" + ("" if self.deviation is None else f" ± {self.deviation:.0f}")
        spread = "" if self.deviation is None else f" ± {100 * self.deviation:.0f}"
        return f"{100 * self.mean:.0f}{spread} %"


def of_seeds(outcomes: Sequence[Outcome], line: Line, calls: int, measure: Measure) -> Spread | None:
    """None: there is no such cell."""
    values = [
        getattr(cell, measure)
        for outcome in outcomes
        if outcome.training.objective == line.objective
        for cell in outcome.cells
        if (cell.sampler, cell.network_calls) == (line.sampler, calls) and cell.frechet is not None
    ]
    return Spread(mean(values), stdev(values) if len(values) > 1 else None) if values else None


def judged_outcomes(done: Done) -> list[Outcome]:
    """Those that are compared, in the order of the legends."""
    outcomes = [outcome for training, outcome in done.items() if training.seed in SEEDS and training.steps == STEPS]
    return sorted(outcomes, key=lambda outcome: list(COLOURS).index(outcome.training.objective))


def write(demo: Demo, done: Done) -> None:
    """Print the table, and write JSON and plot beside the benchmarks and in the docs."""
    floor = frechet_to_training(demo, demo.held_out.x[:CLIPS])
    show(done, floor)
    draw(judged_outcomes(done), floor)
    content = {
        "settings": {
            "network": NETWORK.model_dump(mode="json", exclude_defaults=True),
            "batch": BATCH,
            "steps": STEPS,
            "clips": CLIPS,
            "student": MAP.model_dump(mode="json", exclude_defaults=True),
            "search": {
                "steps": SEARCH_STEPS,
                "clips": SEARCH_CLIPS,
                "calls": SEARCH_CALLS,
                "student_calls": STUDENT_SEARCH_CALLS,
                "learning_rates": LEARNING_RATES,
                "student_learning_rates": STUDENT_RATES,
            },
            "torch": torch.__version__,
        },
        "frechet_of_held_out_clips": floor,
        "chosen": {name: asdict(setting) for name, setting in settings(done).items()},
        "outcomes": [asdict(outcome) for outcome in done.values()],
    }
    publish_text(RESULT, compact(content) + "\n")


def compact(content: dict) -> str:
    """JSON with one line for each cell."""
    outcomes = content.pop("outcomes")
    rows = []
    for outcome in outcomes:
        cells = ",\n   ".join(json.dumps(cell) for cell in outcome.pop("cells"))
        rows.append(json.dumps(outcome)[:-1] + ', "cells": [\n   ' + cells + "]}")
    return json.dumps(content, indent=1)[:-2] + ',\n "outcomes": [\n  ' + ",\n  ".join(rows) + "\n ]\n}"


def show(done: Done, floor: float) -> None:
    """Markdown: the settings that were chosen, and quality against calls, mean and standard deviation over seeds."""
    print("| objective | learning rate | training times | grid |\n|---|---|---|---|")
    for name, setting in settings(done).items():
        print(f"| {name} | {setting.learning_rate:g} | {setting.law} | {setting.grid} |")
    long = [outcome for training, outcome in done.items() if training.steps > STEPS]
    for outcomes in (judged_outcomes(done), long) if long else (judged_outcomes(done),):
        for measure in ("adherence", "attributes", "frechet"):
            print(f"\n| {measure} | steps | {' | '.join(map(str, CALLS))} |\n|{'---|' * (2 + len(CALLS))}")
            for name, sampler in dict.fromkeys((o.training.objective, c.sampler) for o in outcomes for c in o.cells):
                mine = [outcome for outcome in outcomes if outcome.training.objective == name]
                spreads = [of_seeds(mine, Line("", name, sampler, ""), calls, measure) for calls in CALLS]
                texts = " | ".join("" if each is None else each.text(measure) for each in spreads)
                print(f"| {name}, {sampler} | {len(mine)} x {mine[0].training.steps} | {texts} |")
        for name in dict.fromkeys(outcome.training.objective for outcome in outcomes):
            bits = [o.bits_per_dimension for o in outcomes if o.training.objective == name and o.bits_per_dimension]
            if bits:
                print(f"{name}: {mean(bits):.3f} bits per dimension ({min(bits):.3f} to {max(bits):.3f})")
    print(f"Fréchet distance of the held-out clips themselves: {floor:.1f}")


def draw(outcomes: Sequence[Outcome], floor: float) -> None:
    """Adherence and Fréchet distance against network calls, mean and standard deviation over seeds."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(PANELS), figsize=(13, 8), sharex=True, sharey="row", constrained_layout=True)
    for column, (title, lines) in enumerate(PANELS.items()):
        for ax, measure in zip(axes[:, column], ("adherence", "frechet"), strict=True):
            for line in lines:
                spreads = {calls: of_seeds(outcomes, line, calls, measure) for calls in CALLS}
                known = {calls: each for calls, each in spreads.items() if each is not None}
                means, deviations = (
                    [each.mean for each in known.values()],
                    [each.deviation or 0.0 for each in known.values()],
                )
                ax.errorbar(
                    list(known),
                    means,
                    deviations,
                    marker="o",
                    markersize=3.5,
                    capsize=2,
                    elinewidth=0.8,
                    color=line.colour,
                    linestyle=line.style,
                    label=line.label,
                )
            ax.set_xscale("log", base=2)
            ax.set_xticks(CALLS, [str(calls) for calls in CALLS])
            ax.grid(alpha=0.3)
            if measure == "frechet":
                ax.set_xlabel("network calls")
                ax.set_yscale("log")
                ax.axhline(floor, color="grey", linestyle=":", label="held-out clips themselves")
            if column == 0:
                ax.set_ylabel(MEASURES[measure])
        axes[0][column].set_title(title)
        axes[1][column].legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    figure.savefig(PLOT, dpi=75)
    plt.close(figure)
