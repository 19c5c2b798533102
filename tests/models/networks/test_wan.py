"""The transformer of Wan computes what diffusers computes with the same weights."""

from typing import Any

import pytest
import torch

from models.networks.build import build_network
from models.networks.wan_published import published_tensors, read_transformer
from models.published import join_parts
from models.text.bytes import CaptionTokens
from models.text.embeddings import CaptionEmbeddings
from testing.published import TINY_TRANSFORMER, make_transformer
from testing.wan import copy_transformer

TEXT_TO_VIDEO = TINY_TRANSFORMER
IMAGE_TO_VIDEO = TINY_TRANSFORMER | {"in_channels": 9, "out_channels": 4, "image_dim": 12, "added_kv_proj_dim": 48}
CONCATENATED = TINY_TRANSFORMER | {"in_channels": 9, "out_channels": 4}  # as of Wan 2.2: the image as channels only


def caption_of(peer: Any, length: int = 7) -> CaptionEmbeddings:
    generator = torch.Generator().manual_seed(2)
    mask = torch.arange(length) < torch.tensor([[length], [3]])
    values = torch.randn(2, length, peer.config["text_dim"], generator=generator)
    return CaptionEmbeddings(torch.where(mask[..., None], values, 0.0), mask)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The norm of the difference over the norm."""
    return float(((ours - theirs).norm() / theirs.norm()).detach())


@pytest.fixture
def products_of_mkl():
    """The terms of the gradients of queries all but cancel, which enlarges the rounding of their products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("products_of_mkl")
@pytest.mark.parametrize(
    "fields", [TEXT_TO_VIDEO, IMAGE_TO_VIDEO, CONCATENATED], ids=["text", "image", "image as channels"]
)
@pytest.mark.parametrize("times", ["clip", "frame"])
def test_output_and_gradients_are_those_of_diffusers(fields, times):
    peer = make_transformer(fields)
    network, described = copy_transformer(peer)
    caption = caption_of(peer)
    text = torch.nn.functional.pad(caption.values, (0, 0, 0, 512 - 7))
    x = torch.randn(2, fields["in_channels"], 3, 6, 4)
    image = torch.randn(2, 5, 12) if "image_dim" in fields else None
    t = torch.rand(2) if times == "clip" else torch.rand(2, 1, 3)
    # Theirs: 1000 for noise, and one time for each token where frames differ.
    published = 1000 * (1 - t) if times == "clip" else (1000 * (1 - t[:, 0])).repeat_interleave(3 * 2, dim=1)

    theirs = peer(x, published, text, encoder_hidden_states_image=image, return_dict=False)[0]
    ours = network(x, t, caption, image)
    assert ours.shape == (2, described.channels, 3, 6, 4)
    assert relative(ours, -theirs) < 1e-5

    target = torch.randn_like(theirs)
    (theirs - target).square().mean().backward()
    (-ours - target).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in peer.named_parameters() if parameter.grad is not None}
    for name, parts in published_tensors(described).items():
        gradient = network.get_parameter(name).grad
        assert gradient is not None
        assert relative(gradient, join_parts([gradients[part.name] for part in parts], gradient.shape)) < 1e-4, name


@pytest.mark.parametrize("fields", [TEXT_TO_VIDEO, IMAGE_TO_VIDEO])
def test_weights_correspond_one_to_one(fields):
    peer = make_transformer(fields)
    network, described = copy_transformer(peer)
    tensors = published_tensors(described)
    published = {part.name: part.shape for parts in tensors.values() for part in parts}
    assert published == {name: tuple(weight.shape) for name, weight in peer.state_dict().items()}
    assert sum(map(len, tensors.values())) == len(published)
    assert tensors.keys() == network.state_dict().keys()


def test_a_time_given_for_each_frame_is_the_time_of_the_clip_where_they_are_equal():
    peer = make_transformer(TEXT_TO_VIDEO)
    network, _ = copy_transformer(peer)
    x, t, caption = torch.randn(2, 4, 3, 4, 4), torch.rand(2), caption_of(peer)
    torch.testing.assert_close(network(x, t[:, None, None].expand(2, 1, 3), caption), network(x, t, caption))


def test_without_published_weights_the_velocity_is_zero():
    described = read_transformer(TEXT_TO_VIDEO)
    network = build_network(described.config, 4, 20)
    caption = CaptionEmbeddings(torch.randn(1, 2, 20), torch.ones(1, 2, dtype=torch.bool))
    assert not network(torch.randn(1, 4, 2, 4, 4), torch.rand(1), caption).any()


def test_what_the_network_cannot_read_is_refused():
    network, _ = copy_transformer(make_transformer(TEXT_TO_VIDEO))
    x, t = torch.randn(1, 4, 2, 4, 4), torch.rand(1)
    caption = CaptionEmbeddings(torch.zeros(1, 513, 20), torch.ones(1, 513, dtype=torch.bool))
    with pytest.raises(ValueError, match="513 tokens do not fit the 512"):
        network(x, t, caption)
    with pytest.raises(TypeError, match="as embeddings, not as bytes"):
        network(x, t, CaptionTokens.encode(["a"], 8))
    short = CaptionEmbeddings(torch.zeros(1, 5, 20), torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="takes no image"):
        network(x, t, short, torch.randn(1, 5, 12))
    with pytest.raises(ValueError, match="does not split into patches"):
        network(x[..., :3], t, short)
    with pytest.raises(ValueError, match=r"encode\.text\.folder"):
        build_network(network.config, 4)
