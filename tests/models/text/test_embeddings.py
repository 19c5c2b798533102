"""Caption embeddings: the null caption, and padding that has no effect."""

import pytest
import torch

from models.networks.config import DiTConfig
from models.networks.dit import DiT
from models.text.bytes import CaptionTokens
from models.text.caption import joined
from models.text.config import TextConfig
from models.text.embeddings import CaptionEmbeddings
from models.text.pretrained import PretrainedTextEncoder
from testing.text_encoders import WIDTH

CPU = torch.device("cpu")

CAPTIONS = ["a red circle moves left", "", "a blue star"]


def test_dropped_captions_become_the_null_caption(text_encoder_dir):
    embedded = PretrainedTextEncoder(text_encoder_dir, 8, CPU)(CAPTIONS)
    null = CaptionEmbeddings(embedded.values[1:2], embedded.mask[1:2])
    replaced = embedded.replaced(torch.tensor([True, False, False]), null)
    assert torch.equal(replaced.values, embedded.values[[1, 1, 2]])
    assert torch.equal(replaced.mask, embedded.mask[[1, 1, 2]])
    with pytest.raises(TypeError, match="cannot share a batch"):
        joined(embedded, CaptionTokens.encode(["a"], 8))


def test_the_network_reads_embeddings_and_not_their_padding():
    torch.manual_seed(0)
    network = DiT(DiTConfig(width=32, depth=1, heads=2, text=TextConfig(width=16, depth=1, heads=2)), 4, WIDTH)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # nothing is the identity
    mask = torch.arange(6) < torch.tensor([[3], [6]])
    caption = CaptionEmbeddings(torch.randn(2, 6, WIDTH), mask)
    x, t = torch.randn(2, 4, 2, 4, 4), torch.tensor([0.2, 0.7])
    velocity = network(x, t, caption)
    noisy = CaptionEmbeddings(torch.where(mask[..., None], caption.values, 9.0), mask)
    assert torch.equal(network(x, t, noisy), velocity)
    other = CaptionEmbeddings(caption.values.flip(-1), mask)
    assert not torch.allclose(network(x, t, other), velocity)
