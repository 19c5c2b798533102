"""Masks for kernels of packed sequences, libraries that may be missing, and our calls beside what they publish.

`kernel_signatures.json` holds signatures with the archives that they are from; `testing/kernel_signatures.py` reads
them. No GPU and no library is needed.
"""

import inspect
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen

from models.attention import flash
from testing.attention import (
    full_operator,
    install,
    library_of,
    packed_operator,
    reference_attention,
    reference_gradients,
)
from testing.kernel_signatures import RecordedModule, load_recorded, read_archive

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


# --- published signatures ---------------------------------------------------------------------------------------------

RECORDED = load_recorded(Path(__file__).with_name("kernel_signatures.json"))
EARLY = ("flash_attn.cute", "flash_attn-2.8.3.post2.tar.gz")  # flash-attn 2 brings an early flash-attn 4
FLASH = [each for each in RECORDED if each.module.startswith("flash_attn")]
TORCH = [each for each in RECORDED if each.module.startswith("torch")]


def name_of(recorded: RecordedModule) -> str:
    return f"{recorded.module} of {recorded.archive.split('-py3')[0].split('-cp3')[0]}"


def recorded_library(recorded: RecordedModule) -> tuple[ModuleType, list[dict[str, Any]]]:
    """A library whose functions have the published signatures, and the arguments of the calls that it gets."""
    calls: list[dict[str, Any]] = []

    def function(name, attend):
        signature = recorded.signature(name)

        def called(*arguments, **keywords):
            bound = signature.bind(*arguments, **keywords).arguments
            calls.append(bound)
            return attend(bound)

        called.__signature__ = signature
        return called

    def packed(bound):
        names = ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
        return packed_operator(*(bound[name] for name in names))

    library = library_of(
        flash_attn_func=function("flash_attn_func", lambda bound: full_operator(bound["q"], bound["k"], bound["v"])),
        flash_attn_varlen_func=function("flash_attn_varlen_func", packed),
    )
    return library, calls


@pytest.fixture
def library(request, monkeypatch):
    stub, calls = recorded_library(request.param)
    install(monkeypatch, {request.param.module: stub})
    return request.param.module, calls


@pytest.mark.parametrize(
    "library", [each for each in FLASH if (each.module, each.archive) != EARLY], ids=name_of, indirect=True
)
def test_our_calls_of_flash_attn_fit_what_is_published(library):
    module, calls = library
    x = torch.randn(2, 5, 3, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    assert flash.why_not_installed(module) is None
    flash.run_full(module, x, x, x)
    flash.run_masked(lambda *arguments: flash.run_packed(module, *arguments), x, x, x, mask)
    full, packed = calls
    assert set(full) == {"q", "k", "v", "deterministic"}
    assert packed["cu_seqlens_q"].tolist() == [0, 5, 10]
    assert packed["cu_seqlens_k"].tolist() == [0, 5, 7]
    assert packed["max_seqlen_q"] == packed["max_seqlen_k"] == 5
    assert full["deterministic"] is packed["deterministic"] is False


@pytest.mark.parametrize(
    "library", [each for each in FLASH if (each.module, each.archive) == EARLY], ids=name_of, indirect=True
)
def test_the_early_flash_attn_4_in_flash_attn_2_is_refused(library):
    module, _ = library
    assert (
        flash.why_not_installed(module)
        == "flash_attn_func of this release of flash_attn.cute has no argument deterministic"
    )


def test_every_library_of_the_table_is_recorded():
    modules = {each.module for each in RECORDED}
    assert modules == {"flash_attn", "flash_attn_interface", "flash_attn.cute", "torch.nn.attention.varlen"}


def varlen_signatures() -> dict[str, inspect.Signature]:
    recorded = {name_of(each): each.signature("varlen_attn") for each in TORCH}
    return {"the torch that is installed": inspect.signature(varlen.varlen_attn), **recorded}


@pytest.mark.parametrize("name", varlen_signatures())
def test_our_call_of_torchs_variable_length_attention_fits(name, monkeypatch):
    signature, calls = varlen_signatures()[name], []

    def called(*given, **named):
        calls.append(signature.bind(*given, **named))
        return given[0]

    monkeypatch.setattr(varlen, "varlen_attn", called)
    x, ends = torch.randn(5, 2, 8), torch.tensor([0, 5], dtype=torch.int32)
    flash.run_torch_packed(x, x, x, ends, ends, 5, 5)
    (bound,) = calls
    assert list(bound.arguments) == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


def test_the_installed_torch_is_as_recorded():
    """Of a torch that is recorded; others are covered by the test above."""
    version = torch.__version__.split("+")[0]
    recorded = [each.signature("varlen_attn") for each in TORCH if each.archive.startswith(f"torch-{version}-")]
    for signature in recorded:
        assert list(signature.parameters) == list(inspect.signature(varlen.varlen_attn).parameters)


SOURCE = """
def flash_attn_func(q: Tensor, k, v, causal: bool = False, *, scale: float | None = None): ...
def something_else(x): ...
"""


def test_archives_are_read_without_their_code_being_run(tmp_path):
    source = "raise RuntimeError\n" + SOURCE
    (tmp_path / "interface.py").write_text(source)
    wheel, sdist = tmp_path / "a-1-py3-none-any.whl", tmp_path / "a-1.tar.gz"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("flash_attn/cute/interface.py", source)
    with tarfile.open(sdist, "w:gz") as file:
        file.add(tmp_path / "interface.py", "a-1/hopper/flash_attn_interface.py")
    (of_wheel,), (of_sdist,) = read_archive(wheel), read_archive(sdist)
    assert (of_wheel.module, of_sdist.module) == ("flash_attn.cute", "flash_attn_interface")
    assert of_wheel.functions == of_sdist.functions == {"flash_attn_func": "q, k, v, causal=..., *, scale=..."}
    assert str(of_wheel.signature("flash_attn_func")) == "(q, k, v, causal=Ellipsis, *, scale=Ellipsis)"
