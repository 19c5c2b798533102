"""A sweep: clips of the same prompts and seeds, sampled with each combination of some settings, and measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import JsonValue

from data.records import Record
from pipeline.evaluate.comparison import Comparison
from pipeline.evaluate.intervals import Estimate, jackknife, share
from pipeline.evaluate.measure import Measured
from pipeline.evaluate.network_calls import NetworkCalls
from pipeline.evaluate.statistics import STATISTICS
from pipeline.report.figures import ATTRIBUTES

Settings = Mapping[str, JsonValue]


class SweptCombination(Record):
    """What was measured of the clips of one combination."""

    settings: dict[str, JsonValue]
    """Those that are varied."""
    num_clips: int
    """That were made and could be read."""
    num_missing: int
    """That could not be made or read."""
    network_calls: float
    """Of one clip, as manifest.jsonl counts them: a call for both branches of guidance is one."""
    network_evaluations: float
    """Of one clip: a call for both branches is two."""
    adherence: dict[str, Estimate]
    """Share of the clips of which the judge of drawn shapes found each attribute; empty where it cannot tell."""
    similarity: Estimate | None
    """To the text; None where it was not measured."""
    statistics: dict[str, Estimate]
    """Means over the clips."""
    comparison: Comparison | None
    """With the reference; None: there is none."""


@dataclass(frozen=True)
class Measure:
    """A figure by which combinations are judged."""

    name: str
    title: str
    better: Literal["higher", "lower"]
    of: Callable[[SweptCombination], Estimate | None]

    def is_better(self, one: float, other: float) -> bool:
        """Whether one value is better than another."""
        return one > other if self.better == "higher" else one < other


MEASURES = (
    Measure(
        "adherence", "clips that show all that their prompt says", "higher", lambda each: each.adherence.get("all")
    ),
    Measure("similarity", "similarity to the text (CLIP)", "higher", lambda each: each.similarity),
    Measure(
        "frechet_video",
        "Fréchet distance of clips",
        "lower",
        lambda each: each.comparison and each.comparison.frechet_video,
    ),
    Measure(
        "kernel_video",
        "kernel distance of clips",
        "lower",
        lambda each: each.comparison and each.comparison.kernel_video,
    ),
    Measure(
        "frechet_frames",
        "Fréchet distance of frames",
        "lower",
        lambda each: each.comparison and each.comparison.frechet_frames,
    ),
)


def combinations_of(varied: Mapping[str, Sequence[JsonValue]]) -> list[dict[str, JsonValue]]:
    """Every combination of the values, the last setting changing fastest."""
    return [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]


def name_of(settings: Settings) -> str:
    """A combination for people, such as `steps 4, solver heun`."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def summarize(
    settings: Settings,
    measured: Measured,
    num_missing: int,
    cost: NetworkCalls,
    comparison: Comparison | None,
) -> SweptCombination:
    """The figures of a combination.

    Args:
        measured: its clips, at least 4.
        cost: of one clip, on average.
    """
    judged = measured.right[~np.isnan(measured.right).any(1)]
    return SweptCombination(
        settings=dict(settings),
        num_clips=len(measured.numbers),
        num_missing=num_missing,
        network_calls=cost.calls,
        network_evaluations=cost.evaluations,
        adherence={name: share(judged[:, column]) for column, name in enumerate(ATTRIBUTES)} if len(judged) else {},
        similarity=None if np.isnan(measured.similarity).any() else _mean(measured.similarity),
        statistics={name: _mean(measured.statistics[:, column]) for column, name in enumerate(STATISTICS)},
        comparison=comparison,
    )


def _mean(values: Float[np.ndarray, " n"]) -> Estimate:
    return jackknife(lambda some: float(some.mean()), values)


def known_measures(combinations: Sequence[SweptCombination]) -> list[Measure]:
    """Those that every combination has."""
    return [measure for measure in MEASURES if all(measure.of(each) is not None for each in combinations)]


def pareto_front(combinations: Sequence[SweptCombination], measure: Measure) -> list[int]:
    """The combinations that no other one beats: none is as good with fewer evaluations, or better with as many.

    Returns:
        Their numbers, from the cheapest to the most expensive.
    """
    points = list(_points(combinations, measure))

    def is_beaten(number: int) -> bool:
        cost, value = points[number]
        return any(
            other_cost <= cost
            and not measure.is_better(value, other_value)
            and (other_cost < cost or measure.is_better(other_value, value))
            for other_cost, other_value in points
        )

    return sorted((n for n in range(len(points)) if not is_beaten(n)), key=lambda number: points[number][0])


def _points(combinations: Sequence[SweptCombination], measure: Measure) -> Iterator[tuple[float, float]]:
    for each in combinations:
        estimate = measure.of(each)
        assert estimate is not None
        yield each.network_evaluations, estimate.corrected
