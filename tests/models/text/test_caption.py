"""What all captions have in common."""

import torch

from models.text.caption import strongest


def test_the_strongest_of_a_caption_ignores_padding_and_is_zero_without_tokens():
    text = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [9.0, 9.0]], [[5.0, 5.0]] * 3], requires_grad=True)
    pooled = strongest(text, torch.tensor([[True, True, False], [False, False, False]]))
    assert pooled.tolist() == [[3.0, -2.0], [0.0, 0.0]]
    (gradient,) = torch.autograd.grad(pooled.sum(), text)
    assert gradient.tolist() == [[[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0]] * 3]
