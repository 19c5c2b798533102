"""Our calls of other libraries' kernels fit the signatures that they publish; no GPU and none of them is needed.

`kernel_signatures.json` holds the signatures, with the archives that they are from; `testing/kernel_signatures.py`
reads them.
"""

import inspect
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from models.attention import flash
from testing.attention import full_operator, install, library_of, packed_operator
from testing.kernel_signatures import RecordedModule, load_recorded, read_archive

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
    return {"the torch that is installed": inspect.signature(varlen_attn), **recorded}


@pytest.mark.parametrize("name", varlen_signatures())
def test_our_call_of_torchs_variable_length_attention_fits(name, monkeypatch):
    signature, calls = varlen_signatures()[name], []

    def called(*given, **named):
        calls.append(signature.bind(*given, **named))
        return given[0]

    monkeypatch.setattr(flash, "varlen_attn", called)
    x, ends = torch.randn(5, 2, 8), torch.tensor([0, 5], dtype=torch.int32)
    flash.run_torch_packed(x, x, x, ends, ends, 5, 5)
    (bound,) = calls
    assert list(bound.arguments) == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


def test_the_installed_torch_is_as_recorded():
    """Of a torch that is recorded; others are covered by the test above."""
    version = torch.__version__.split("+")[0]
    recorded = [each.signature("varlen_attn") for each in TORCH if each.archive.startswith(f"torch-{version}-")]
    for signature in recorded:
        assert list(signature.parameters) == list(inspect.signature(varlen_attn).parameters)


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
