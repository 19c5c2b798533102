"""The discriminator judges patches: sizes of its logits, and what each of them depends on."""

import pytest
import torch

from models.autoencoder.config import AdversarialConfig
from models.autoencoder.discriminator import Discriminator
from testing.half import check_half_weights

SMALL = AdversarialConfig(width=4, num_layers=2)
PIXELS = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("num_layers", "shape", "expected"),
    [
        (3, (17, 64, 96), (5, 8, 12)),
        (2, (5, 16, 16), (3, 4, 4)),
        (1, (2, 16, 16), (2, 8, 8)),
        (3, (1, 16, 16), (1, 2, 2)),  # an image
        (4, (1, 16, 16), (1, 1, 1)),  # the smallest clip that a bucket may have
    ],
)
def test_logits_are_of_patches(num_layers, shape, expected):
    network = Discriminator(SMALL.model_copy(update={"num_layers": num_layers}))
    assert network(torch.zeros(2, 3, *shape)).shape == (2, 1, *expected)


def test_channels_double_with_each_layer_that_halves():
    network = Discriminator(AdversarialConfig(width=8, num_layers=3))
    widths = [layer.conv.out_channels for layer in (network.first, *network.layers)]  # pyright: ignore
    assert widths == [8, 16, 32, 64]


def test_a_logit_depends_on_its_patch_alone():
    """Kernels of 4, 4, 3 and 3 with strides of 2, 2, 1 and 1 see 26 pixels, 11 of them before those it stands for."""
    torch.manual_seed(0)
    network, pixels = Discriminator(SMALL), torch.rand(2, 3, 5, 64, 64).requires_grad_()
    logits = network(pixels)
    logits[0, 0, 1, 8, 8].backward()
    assert pixels.grad is not None
    assert not pixels.grad[1].any()  # no statistics of the batch
    rows = pixels.grad[0].abs().sum((0, 1, 3)).nonzero().flatten()
    assert (rows.min().item(), rows.max().item()) == (4 * 8 - 11, 4 * 8 - 11 + 25)


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_gradients_in_bfloat16_are_finite(num_frames):
    network, pixels = Discriminator(SMALL), torch.rand(1, 3, num_frames, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(pixels)
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_weights_in_bfloat16_leave_each_layer_its_type():
    torch.manual_seed(0)
    check_half_weights(Discriminator(SMALL), lambda network: network(PIXELS))
