"""What all captions have in common."""

import pytest
import torch

from models.text.bytes import CaptionTokens
from models.text.caption import joined, strongest
from models.text.config import WordsConfig
from models.text.words import CaptionWords


def test_the_strongest_of_a_caption_ignores_padding_and_is_zero_without_tokens():
    text = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [9.0, 9.0]], [[5.0, 5.0]] * 3], requires_grad=True)
    pooled = strongest(text, torch.tensor([[True, True, False], [False, False, False]]))
    assert pooled.tolist() == [[3.0, -2.0], [0.0, 0.0]]
    (gradient,) = torch.autograd.grad(pooled.sum(), text)
    assert gradient.tolist() == [[[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0]] * 3]


def test_captions_of_one_kind_are_joined_and_others_refused():
    words = WordsConfig(max_words=4)
    one, other = CaptionWords.encode(["a red dot"], words), CaptionWords.encode(["", "up"], words)
    both = joined(one, other)
    assert isinstance(both, CaptionWords)
    assert torch.equal(both.parts, CaptionWords.encode(["a red dot", "", "up"], words).parts)
    assert torch.equal(both.mask, torch.cat([one.mask, other.mask]))
    with pytest.raises(TypeError, match="as bytes, as words and as embeddings cannot share a batch"):
        joined(one, CaptionTokens.encode(["up"], 8))
