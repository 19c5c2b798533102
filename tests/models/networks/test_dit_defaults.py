"""With every option at its default, the DiT and its records are what they were before there were options."""

import pytest
import torch

from models.networks.config import DiTConfig
from models.networks.dit import DiT
from models.text.bytes import CaptionTokens
from models.text.config import TextConfig
from pipeline.run.fingerprints import output_json, stored
from testing.plain_dit import PlainDiT

CONFIG = DiTConfig(width=64, depth=2, heads=2, text=TextConfig(width=32, depth=1, heads=2, max_bytes=24))


def test_the_stored_record_has_no_new_key():
    sizes = {"width": 64, "depth": 2, "heads": 2, "mlp_ratio": 4, "patch_size": 2}
    text = {"width": 32, "depth": 1, "heads": 2, "max_bytes": 24, "ngram_buckets": 2048}
    assert stored(CONFIG) == sizes | {"text": text}
    assert output_json(CONFIG).startswith('{"width":64,"depth":2,"heads":2,"mlp_ratio":4,"patch_size":2,"text":{')


@pytest.mark.parametrize("times", [(2,), (2, 1, 3)], ids=["time per clip", "time per frame"])
def test_initial_weights_outputs_and_gradients_are_bit_for_bit_those_of_the_plain_network(times):
    torch.manual_seed(5)
    network = DiT(CONFIG, 4)
    torch.manual_seed(5)
    plain = PlainDiT(CONFIG, 4)
    weights = plain.state_dict()
    assert list(network.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network.load_state_dict(plain.state_dict())
    x, t, caption = torch.randn(2, 4, 3, 8, 4), torch.rand(times), CaptionTokens.encode(["a red circle", ""], 24)
    outputs = [each(x, t, caption) for each in (network, plain)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().mean().backward()
    for (name, ours), (_, expected) in zip(network.named_parameters(), plain.named_parameters(), strict=True):
        assert ours.grad is not None
        assert expected.grad is not None
        assert torch.equal(ours.grad, expected.grad), name
