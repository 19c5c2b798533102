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


def test_layers_are_seeded_as_by_torch():
    before = torch.get_rng_state()
    try:
        randomness.seed_layers(torch.device("cpu"), 1, "step rank")
        drawn = torch.rand(3)
        torch.manual_seed(randomness.number(1, "layers", "step rank"))
        assert torch.equal(drawn, torch.rand(3))
    finally:
        torch.set_rng_state(before)
