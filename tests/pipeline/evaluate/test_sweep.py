"""Which combinations of a sweep are not beaten, and what their clips cost."""

from collections.abc import Sequence

import pytest

from models.flow.spec import FlowSpec
from pipeline.evaluate.intervals import Estimate
from pipeline.evaluate.network_calls import NetworkCalls, count_calls, mean_calls
from pipeline.evaluate.sweep import MEASURES, SweptCombination, combinations_of, known_measures, pareto_front
from pipeline.report.sweep_page import Front, Point, front_plot
from pipeline.sample.config import SampleConfig
from pipeline.sample.outputs import SampledClip
from pipeline.sample.requests import PromptRequest

ADHERENCE, SIMILARITY = MEASURES[:2]


def exactly(value: float) -> Estimate:
    return Estimate(value=value, corrected=value, low=value, high=value)


def swept(points: Sequence[tuple[float, float]]) -> list[SweptCombination]:
    return [
        SweptCombination(
            settings={"steps": number},
            num_clips=4,
            num_missing=0,
            network_calls=cost,
            network_evaluations=cost,
            adherence={"all": exactly(value)},
            similarity=None,
            statistics={},
            comparison=None,
        )
        for number, (cost, value) in enumerate(points)
    ]


def test_combinations_change_the_last_setting_first():
    found = combinations_of({"steps": [4, 8], "solver": ["heun", "ab2"]})
    assert [tuple(each.values()) for each in found] == [(4, "heun"), (4, "ab2"), (8, "heun"), (8, "ab2")]


def test_the_front_is_what_no_other_combination_beats():
    points = [(8, 0.9), (4, 0.5), (16, 0.9), (2, 0.5), (4, 0.7), (32, 1.0), (8, 0.9), (1, 0.1)]
    assert pareto_front(swept(points), ADHERENCE) == [7, 3, 4, 0, 6, 5]  # equal ones do not beat each other
    assert pareto_front(swept([(1, 0.0)]), ADHERENCE) == [0]


def test_lower_is_better_of_distances():
    lower = type(ADHERENCE)("distance", "distance", "lower", ADHERENCE.of)
    assert pareto_front(swept([(1, 5.0), (2, 7.0), (4, 3.0), (8, 3.0)]), lower) == [0, 2]


def test_measures_are_those_that_every_combination_has():
    assert known_measures(swept([(1, 0.5), (2, 0.6)])) == [ADHERENCE]
    assert SIMILARITY not in known_measures(swept([(1, 0.5)]))


@pytest.mark.parametrize(
    ("settings", "scale", "expected"),
    [
        ({"solver": "euler", "steps": 4}, 1.0, NetworkCalls(4, 4)),
        ({"solver": "euler", "steps": 4}, 3.0, NetworkCalls(4, 8)),
        ({"solver": "heun", "steps": 4}, 3.0, NetworkCalls(8, 16)),
        ({"solver": "ab2", "steps": 4}, 3.0, NetworkCalls(4, 8)),
        ({"solver": "euler", "steps": 4, "guidance_interval": (0.3, 0.6)}, 3.0, NetworkCalls(4, 5)),  # at time 0.5
        ({"solver": "euler", "steps": 4, "guidance": "apg"}, 3.0, NetworkCalls(4, 8)),
        ({"solver": "euler", "steps": 4, "guidance": "rescaled"}, 3.0, NetworkCalls(4, 8)),
        ({"solver": "euler", "steps": 4, "guidance": "cfg-zero-star"}, 3.0, NetworkCalls(4, 8)),
    ],
)
def test_calls_and_evaluations_of_a_clip(settings, scale, expected):
    assert count_calls(FlowSpec(), SampleConfig(**settings), scale, 5) == expected


def test_the_calls_that_were_counted_while_sampling_count():
    def clip(calls: int | None, scale: float) -> SampledClip:
        settings = SampleConfig(solver="euler", steps=4)
        request = PromptRequest(
            id="0" * 12, prompt="a", seed=0, guidance_scale=scale, bucket="5x32x32@8", settings=settings
        )
        return SampledClip(file="a.mp4", request=request, num_network_calls=calls)

    clips = [clip(12, 3.0), clip(None, 3.0), clip(4, 1.0)]  # the first has three windows
    assert mean_calls(FlowSpec(), clips, lambda name: 2) == NetworkCalls((12 + 4 + 4) / 3, (24 + 8 + 4) / 3)


def test_the_plot_numbers_its_combinations():
    points = [Point(1, 0.5, 0.4, 0.6), Point(2, 0.9, 0.8, 1.0), Point(4, 0.7, 0.7, 0.7)]
    plot = front_plot(Front("share", "higher", points, [0, 1]))
    assert plot.startswith("<svg")
    assert plot == front_plot(Front("share", "higher", points, [0, 1]))
