"""Networks that are told of given frames by channels: what they get, and that nothing else changes."""

import pytest
import torch

from models.networks.build import build_network
from models.networks.config import DiTConfig, UNetConfig
from models.networks.known_frames import for_batch, input_channels, with_known_channels
from models.networks.protocol import Conditions
from models.text.bytes import CaptionTokens
from testing.networks import noisy_batch, small_dit, with_open_gates

FPS = torch.tensor([8.0])
FIRST = torch.tensor([[[True, False, False]], [[False, False, False]]])
UNET = UNetConfig(architecture="unet", width=16, num_blocks=1, heads=2, text=small_dit().text)
CONFIGS = [small_dit(), UNET]
BY_CHANNELS = [config.model_copy(update={"known_frames": "channels"}) for config in CONFIGS]


def test_given_frames_and_mask_follow_the_channels_of_x():
    x = torch.randn(2, 4, 3, 2, 2)
    told = with_known_channels(x, FIRST)
    assert told.shape == (2, input_channels(4, "channels"), 3, 2, 2) == (2, 9, 3, 2, 2)
    assert torch.equal(told[:, :4], x)
    assert torch.equal(told[0, 4:8, 0], x[0, :, 0])
    assert torch.equal(told[0, 8, 0], torch.ones(2, 2))
    assert told[0, 4:, 1:].eq(0).all()
    assert told[1, 4:].eq(0).all()
    assert input_channels(4, "time") == 4


def test_a_condition_of_one_clip_or_of_all_fits_a_batch_that_guidance_has_doubled():
    assert torch.equal(for_batch(torch.tensor([[1], [2]]), 4), torch.tensor([[1], [2], [1], [2]]))
    assert torch.equal(for_batch(torch.tensor([[3]]), 2), torch.tensor([[3], [3]]))
    x = torch.randn(2, 4, 3, 2, 2)
    whole = with_known_channels(torch.cat([x, x]), FIRST)
    assert torch.equal(whole[:2], whole[2:])


@pytest.mark.parametrize("config", BY_CHANNELS, ids=lambda config: config.architecture)
def test_a_network_with_channels_tells_given_frames_from_others(config: DiTConfig | UNetConfig):
    torch.manual_seed(0)
    network = build_network(config, 4)
    with_open_gates(network)
    x, t, caption = noisy_batch(small_dit())
    given, none = network.given(Conditions(FPS, FIRST)), network.given(Conditions(FPS))
    assert not torch.allclose(given(x, t, caption)[0], none(x, t, caption)[0])
    torch.testing.assert_close(given(x, t, caption)[1], none(x, t, caption)[1])
    assert torch.equal(none(x, t, caption), network(x, t, caption))
    shared = network.given(Conditions(FPS, FIRST[:1]))(x, t, caption)
    torch.testing.assert_close(shared[0], given(x, t, caption)[0])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.architecture)
def test_a_network_without_them_knows_given_frames_by_their_time(config: DiTConfig | UNetConfig):
    torch.manual_seed(0)
    network = build_network(config, 4)
    with_open_gates(network)
    x, t, caption = noisy_batch(small_dit())
    assert torch.equal(network.given(Conditions(FPS, FIRST))(x, t, caption), network(x, t, caption))
    assert not torch.allclose(network(x, torch.where(FIRST, 1.0, t), caption), network(x, t, caption))


@pytest.mark.parametrize(("plain", "told"), list(zip(CONFIGS, BY_CHANNELS, strict=True)), ids=["dit", "unet"])
def test_only_the_input_layer_has_more_parameters(plain, told):
    shapes, wider = ({n: p.shape for n, p in build_network(c, 4).named_parameters()} for c in (plain, told))
    assert shapes.keys() == wider.keys()
    assert [name for name in shapes if shapes[name] != wider[name]] in (["patch.weight"], ["conv_in.weight"])


def test_the_velocity_is_zero_at_first():
    network = build_network(BY_CHANNELS[0], 4)
    caption = CaptionTokens.encode(["a dot"], 8)
    x = torch.randn(1, 4, 3, 4, 4)
    assert not network.given(Conditions(FPS, FIRST[:1]))(x, torch.rand(1, 1, 3), caption).any()
