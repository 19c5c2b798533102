"""Shares of a flat parameter cover it exactly once."""

import pytest

from pipeline.engine.fragment import share


@pytest.mark.parametrize("num_values", [0, 1, 5, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_shares_tile_a_parameter(num_values, world_size):
    covered = [i for rank in range(world_size) for i in range(*share(num_values, rank, world_size))]
    assert covered == list(range(num_values))
