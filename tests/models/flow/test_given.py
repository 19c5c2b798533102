"""Which latent frames of training clips are given."""

from itertools import combinations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from models.flow.given import drawn_frames
from models.flow.spec import FlowSpec, GivenFrames

NUM = 40_000


def drawn(num_frames: int, first: float = 0.0, **given: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.rand(NUM, *shape, generator=generator) for shape in ((), (2,), (num_frames,))]
    return drawn_frames(FlowSpec(first_frame_share=first, given=GivenFrames(**given)), *numbers)[:, 0]


def shares(known: Tensor) -> dict[tuple[int, ...], float]:
    """How often each set of frames is given."""
    rows, counts = known.unique(dim=0, return_counts=True)
    return {tuple(row.nonzero()[:, 0].tolist()): int(n) / NUM for row, n in zip(rows, counts, strict=True)}


def assert_close(known: Tensor, expected: dict[tuple[int, ...], float]) -> None:
    found = shares(known)
    assert found.keys() == expected.keys()
    for frames, share in expected.items():  # five standard deviations
        assert abs(found[frames] - share) < 5 * (share * (1 - share) / NUM) ** 0.5, frames


def test_prefixes_of_every_length_are_equally_likely():
    assert_close(drawn(4, prefix=0.6), {(): 0.4} | {tuple(range(k)): 0.2 for k in (1, 2, 3)})


def test_gaps_of_every_length_are_equally_likely_and_so_are_their_places():
    expected = {
        **{tuple({0, 1, 2, 3, 4} - {begin}): 1 / 9 for begin in (1, 2, 3)},
        **{tuple({0, 1, 2, 3, 4} - {begin, begin + 1}): 1 / 6 for begin in (1, 2)},
        (0, 4): 1 / 3,
    }
    assert_close(drawn(5, ends=1.0), expected)


def test_of_subsets_the_number_is_uniform_and_then_each_set():
    expected = {(): 0.1}
    for count, sets in ((1, 4), (2, 6), (3, 4)):
        expected |= dict.fromkeys(combinations(range(4), count), 0.3 / sets)
    assert_close(drawn(4, subset=0.9), expected)


def test_shares_of_all_kinds_are_disjoint():
    found = shares(drawn(3, first=0.1, prefix=0.2, ends=0.3, subset=0.4))
    expected = {
        (0,): 0.1 + 0.1 + 0.4 / 6,
        (0, 1): 0.1 + 0.4 / 6,
        (0, 2): 0.3 + 0.4 / 6,
        **dict.fromkeys(((1,), (2,), (1, 2)), 0.4 / 6),
    }
    assert found.keys() == expected.keys()  # no clip has none, and none has all
    assert all(abs(found[frames] - share) < 0.015 for frames, share in expected.items())


@pytest.mark.parametrize("given", [{"prefix": 1.0}, {"ends": 1.0}, {"subset": 1.0}])
def test_of_two_frames_one_is_given(given):
    assert bool((drawn(2, **given).sum(1) == 1).all())
    if "subset" not in given:
        assert bool(drawn(2, **given)[:, 0].all())


def test_the_first_frames_are_those_of_a_flow_without_other_patterns():
    """So a training that is continued with other patterns beside the first frame has the same first frames."""
    alone, among = drawn(5, first=0.3), drawn(5, first=0.3, prefix=0.3)
    assert torch.equal(alone.any(1), among.any(1) & (alone.any(1)))
    assert torch.equal(alone[alone.any(1)], among[alone.any(1)])


def test_shares_add_up_to_at_most_one():
    FlowSpec(first_frame_share=0.1, given=GivenFrames(prefix=0.2, ends=0.3, subset=0.4))
    with pytest.raises(ValidationError, match=r"add up to 1\.1: .*lower them to 1 together"):
        FlowSpec(first_frame_share=0.5, given=GivenFrames(prefix=0.6))
