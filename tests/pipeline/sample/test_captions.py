"""Captions of a text encoder are embedded once, and each alone."""

from collections.abc import Sequence

import pytest
import torch

from models.text.embeddings import CaptionEmbeddings
from models.text.pretrained import PretrainedTextEncoder
from pipeline.sample.captions import RememberedCaptions
from testing.text_encoders import write_text_encoder

CAPTIONS = ("a red circle", "", "a blue star moves left", "a red circle")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> PretrainedTextEncoder:
    folder = write_text_encoder(tmp_path_factory.mktemp("encoder"))
    return PretrainedTextEncoder(folder, 8, torch.device("cpu"))


class Calls:
    """An encoder that notes what it is asked for."""

    def __init__(self, encoder: PretrainedTextEncoder) -> None:
        self.encoder, self.asked = encoder, []

    def __call__(self, captions: Sequence[str]) -> CaptionEmbeddings:
        self.asked.append(list(captions))
        return self.encoder(captions)


def test_an_embedding_has_equal_bits_beside_any_others_and_is_computed_once(encoder):
    calls = Calls(encoder)
    read = RememberedCaptions(calls)
    found = read(CAPTIONS)
    alone = [encoder([caption]) for caption in CAPTIONS]
    assert torch.equal(found.values, torch.cat([each.values for each in alone]))
    assert torch.equal(found.mask, torch.cat([each.mask for each in alone]))
    assert calls.asked == [["a red circle"], [""], ["a blue star moves left"]]
    again = read(CAPTIONS[::-1])
    assert torch.equal(again.values, found.values.flip(0))
    assert len(calls.asked) == 3


def test_the_caption_that_was_not_asked_for_longest_is_forgotten(encoder):
    calls = Calls(encoder)
    read = RememberedCaptions(calls, max_remembered=2)
    for caption in ("a", "red", "a", "blue", "a", "red"):
        read([caption])
    assert calls.asked == [["a"], ["red"], ["blue"], ["red"]]
    both = read(["a", "red", "blue", "star"])  # more than are kept
    assert torch.equal(both.values, torch.cat([encoder([c]).values for c in ("a", "red", "blue", "star")]))
