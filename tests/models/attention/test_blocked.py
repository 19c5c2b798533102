"""Blocked attention: exact, in little memory, and an operator that torch can trace."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.attention import blocked
from models.attention.blocked import ROWS, blocked_attention
from testing.attention import reference_attention, reference_gradients

LENGTHS = [(ROWS, ROWS), (ROWS - 1, 3), (2 * ROWS + 5, 77), (1, ROWS + 1)]


@pytest.mark.parametrize(("queries", "keys"), LENGTHS)
@pytest.mark.parametrize("is_masked", [False, True])
def test_in_float64_it_is_the_definition(queries, keys, is_masked):
    torch.manual_seed(0)
    q, k, v, upstream = (torch.randn(2, n, 3, 8, dtype=torch.float64) for n in (queries, keys, keys, queries))
    mask = torch.rand(2, keys) < 0.6 if is_masked else None
    if mask is not None:
        mask[:, 0] = True
    q, k, v = inputs = [x.requires_grad_() for x in (q, k, v)]
    out = blocked_attention(q, k, v, mask)
    torch.testing.assert_close(out, reference_attention(q, k, v, mask), rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(out, inputs, upstream)
    torch.testing.assert_close(gradients, reference_gradients(q, k, v, mask, upstream), rtol=1e-11, atol=1e-12)


def test_it_is_a_correct_operator():
    """Its shapes without values, its gradient under compilation and its schema, as torch checks them."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, n, 2, 8, dtype=torch.float64, requires_grad=True) for n in (130, 5, 5))
    for mask in (None, torch.tensor([[True, True, False, True, False]])):
        torch.library.opcheck(torch.ops.reelflow.blocked_attention.default, (q, k, v, mask))


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        returned = function(*arguments, **(keywords or {}))
        for x in returned if isinstance(returned, (tuple, list)) else [returned]:
            self.elements = max(self.elements, x.numel() if isinstance(x, torch.Tensor) else 0)
        return returned


def test_no_more_scores_exist_than_those_of_one_block():
    b, n, heads, d = 1, 8 * ROWS, 2, 16
    x = torch.randn(b, n, heads, d, dtype=torch.bfloat16)
    with _Largest() as forward:
        out = blocked._forward._init_fn(x, x, x, None)
    with _Largest() as backward:
        blocked._backward._init_fn(out, x, x, x, None, out)
    assert forward.elements == backward.elements == b * heads * ROWS * n


def test_autocast_does_not_reach_into_it():
    x = torch.randn(1, 200, 2, 16, dtype=torch.bfloat16)
    expected = blocked_attention(x, x, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(blocked_attention(x, x, x), expected)
