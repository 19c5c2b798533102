"""Random numbers are functions of their address."""

import torch

from pipeline.run import randomness


def test_addressed_randomness():
    one = randomness.normal(1, "noise", [3, 4, 5], (2, 2))
    assert torch.equal(one[1:], randomness.normal(1, "noise", [4, 5], (2, 2)))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, randomness.normal(1, "time", [3, 4, 5], (2, 2)))
    assert not torch.equal(one, randomness.normal(2, "noise", [3, 4, 5], (2, 2)))
    many = randomness.uniform(0, "caption-drop", range(2000))
    assert abs(float(many.mean()) - 0.5) < 0.03
