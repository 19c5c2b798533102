"""Captions without their padding."""

import torch

from models.text.bytes import CaptionEncoder, CaptionTokens
from models.text.config import TextConfig
from models.text.packing import CaptionPacking


def test_packing_keeps_the_tokens_that_are_no_padding():
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    packing = CaptionPacking.of(mask)
    assert packing.segments.lengths == (2, 1, 3)
    assert packing.tokens.tolist() == [0, 1, 3, 6, 7, 8]
    x = torch.randn(3, 3, 4)
    assert torch.equal(packing.pack(x)[0], x[mask])
    words = torch.randn(1, 3, 4)
    assert torch.equal(packing.by_token(words)[0], words[0, [0, 0, 1, 2, 2, 2]])


def test_the_maximum_over_each_caption():
    mask = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    packing, x = CaptionPacking.of(mask), torch.tensor([[[1.0, -4], [3, -2], [-5, 6]]])
    assert packing.segments.lengths == (2, 0, 1)
    assert packing.strongest(x).tolist() == [[3, -2], [0, 0], [-5, 6]]


def test_captions_are_encoded_as_in_a_padded_batch():
    torch.manual_seed(0)
    encoder = CaptionEncoder(TextConfig(width=16, depth=2, heads=2, max_bytes=12, ngram_buckets=64))
    caption = CaptionTokens.encode(["a red dot", "", "a"], 12)
    padded = encoder(caption)[caption.mask]
    packed = encoder(caption, CaptionPacking.of(caption.mask))[0]
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
