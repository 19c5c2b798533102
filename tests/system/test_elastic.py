"""A checkpoint of any number of workers and any ZeRO stage goes on at any other.

`python -m benchmarks.elastic` tries all pairs. That what is loaded equals what was saved, to the bit, is asserted by
the workers themselves.
"""

import itertools
from pathlib import Path

import pytest

from testing.elastic import LAYOUTS, Layout, run_pairs

CUT = [  # every number of workers and every stage on both sides, stage 0 too
    (Layout(4, 2), Layout(3, 3)),
    (Layout(4, 2), Layout(1, 0)),
    (Layout(3, 3), Layout(2, 1)),
    (Layout(2, 0), Layout(4, 3)),
    (Layout(1, 1), Layout(2, 2)),
    (Layout(1, 3), Layout(3, 1)),
]


def check(pairs: list[tuple[Layout, Layout]], folder: Path) -> None:
    results = run_pairs(pairs, folder)
    assert [(result.saved_by, result.gone_on_by) for result in results] == pairs
    for result in results:
        assert result.batches_identical, result
        assert result.largest_relative_difference < 1e-4, result


@pytest.mark.slow
def test_a_checkpoint_goes_on_at_other_workers_and_stages(tmp_path):
    check(CUT, tmp_path)


@pytest.mark.slow
def test_every_layout_of_up_to_two_workers_goes_on_at_every_other(tmp_path):
    small = [layout for layout in LAYOUTS if layout.world_size <= 2]
    check(list(itertools.product(small, small)), tmp_path)
