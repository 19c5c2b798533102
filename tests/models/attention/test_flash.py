"""Masks for kernels that take packed sequences only, and libraries that may be missing."""

import pytest
import torch

from models.attention import flash
from testing.attention import install, library_of, packed_operator, reference_attention, reference_gradients

MASKS = {
    "padding": [[True] * 6, [True, True, False, False, False, False]],
    "holes": [[True, False, True, False, False, True], [False, False, True, True, False, False]],
    "no keys": [[False] * 6, [True, False, False, False, False, False]],
    "none at all": [[False] * 6, [False] * 6],
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_by_a_packed_kernel_is_attention_to_the_keys_that_it_allows(name):
    """The stand-in leaves gradients of keys outside of all sequences undefined, as kernels do."""
    torch.manual_seed(0)
    q, k, v, upstream = (torch.randn(2, n, 3, 8) for n in (5, 6, 6, 5))
    q, k, v = inputs = [x.requires_grad_() for x in (q, k, v)]
    mask = torch.tensor(MASKS[name])
    out = flash.run_masked(packed_operator, q, k, v, mask)
    torch.testing.assert_close(out.double(), reference_attention(q, k, v, mask), rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad(out, inputs, upstream)
    expected = reference_gradients(q, k, v, mask, upstream)
    torch.testing.assert_close([x.double() for x in gradients], list(expected), rtol=1e-5, atol=1e-6)


def test_what_is_at_padding_does_not_matter():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 3, 8) for n in (5, 6, 6))
    mask = torch.tensor(MASKS["padding"])
    dirty_k, dirty_v = (torch.where(mask[..., None, None], x, torch.nan) for x in (k, v))
    out = flash.run_masked(packed_operator, q, dirty_k, dirty_v, mask)
    assert torch.equal(out, flash.run_masked(packed_operator, q, k, v, mask))


def test_a_missing_library_says_so(monkeypatch):
    install(monkeypatch, {"flash_attn": library_of()})  # the folder of flash-attn 4, without flash-attn 2
    for module in ("flash_attn", "flash_attn_interface"):
        assert flash.why_not_installed(module) == "it is not installed"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'cutlass'", name="cutlass"), "it needs cutlass, which is not installed"),
        (
            ImportError("2.so: undefined symbol: _ZN3c10\nmore"),
            "importing flash_attn.cute fails: 2.so: undefined symbol: _ZN3c10",
        ),
    ],
)
def test_a_library_that_cannot_be_imported_says_why(error, reason, monkeypatch):
    def failing(name):
        raise error

    install(monkeypatch, {})
    monkeypatch.setattr(flash, "import_module", failing)
    assert flash.why_not_installed("flash_attn.cute") == reason


def test_a_release_without_an_argument_of_ours_is_not_called(monkeypatch):
    install(monkeypatch, {"flash_attn": library_of(flash_attn_func=lambda q, k, v, causal=False: q)})
    expected = "flash_attn_func of this release of flash_attn has no argument deterministic"
    assert flash.why_not_installed("flash_attn") == expected
