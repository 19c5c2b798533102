"""Which kernel computes a call on which hardware, how one is forced, and that torch.compile traces through the choice.

No GPU is needed: a `Call` says what the hardware is, and stand-ins take the place of the kernels of libraries.
"""

import logging
from typing import get_args

import einops
import jaxtyping
import pytest
import torch
from torch.nn.attention import varlen

from models.attention import backends, blocked, call
from models.attention.attention import attention
from models.attention.backends import (
    BACKENDS,
    MATMUL_MAX_SCORES,
    AttentionBackendError,
    attention_backend,
    choose_backend,
    choose_packed_backend,
)
from models.attention.call import Call, Form
from models.attention.config import AttentionBackend
from models.attention.packed import Segments, packed_attention
from models.layers import BlockStack
from models.networks.config import UNetConfig, WanConfig
from models.networks.dit import DiT
from models.networks.unet import UNet
from models.networks.wan import Wan
from models.text.bytes import CaptionTokens
from models.text.embeddings import CaptionEmbeddings
from testing.attention import install as install_libraries
from testing.attention import packed_operator, stub_library
from testing.networks import noisy_batch, small_dit, with_open_gates

BF16, FP32 = torch.bfloat16, torch.float32
AMPERE, ADA, HOPPER, BLACKWELL, CONSUMER_BLACKWELL, VOLTA = (8, 0), (8, 9), (9, 0), (10, 0), (12, 0), (7, 0)
EVERY_LIBRARY = ("flash_attn", "flash_attn_interface", "flash_attn.cute")


def on_gpu(capability, dtype=BF16, channels=128, form: Form = "full", **options):
    return Call("cuda", capability, (dtype,) * 3, channels, 4096, 4096, form, **options)


def on_cpu(dtype, num_queries=16, num_keys=16, form: Form = "full"):
    return Call("cpu", None, (dtype,) * 3, 64, num_queries, num_keys, form)


@pytest.fixture
def install(monkeypatch):
    """install(*names) puts stand-ins of these libraries, and of no others, in place."""
    return lambda *names: install_libraries(monkeypatch, dict.fromkeys(names, stub_library()))


@pytest.fixture
def products():
    """products("medium") lets oneDNN compute float32 products, products("highest") torch's default library."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


CHOICES = [  # installed, call, kernel
    (EVERY_LIBRARY, on_gpu(HOPPER), "flash-attn-3"),
    (EVERY_LIBRARY, on_gpu(HOPPER, form="masked"), "flash-attn-3"),
    (EVERY_LIBRARY, on_gpu(HOPPER, is_compiling=True), "cudnn"),
    (EVERY_LIBRARY, on_gpu(HOPPER, is_compiling=True, form="masked"), "flash-attn-2"),
    (("flash_attn", "flash_attn.cute"), on_gpu(HOPPER), "cudnn"),
    (("flash_attn", "flash_attn.cute"), on_gpu(HOPPER, channels=192), "flash-attn-4"),
    (("flash_attn", "flash_attn.cute"), on_gpu(HOPPER, form="masked"), "flash-attn-4"),
    (("flash_attn",), on_gpu(HOPPER, form="masked"), "flash-attn-2"),
    ((), on_gpu(HOPPER), "cudnn"),
    ((), on_gpu(HOPPER, form="masked"), "torch-varlen"),
    (EVERY_LIBRARY, on_gpu(BLACKWELL), "flash-attn-4"),
    (EVERY_LIBRARY, on_gpu(BLACKWELL, channels=192), "sdpa"),
    (EVERY_LIBRARY, on_gpu(BLACKWELL, is_compiling=True), "sdpa"),
    ((), on_gpu(BLACKWELL, form="masked"), "torch-varlen"),
    (EVERY_LIBRARY, on_gpu(CONSUMER_BLACKWELL), "flash-attn-2"),
    (EVERY_LIBRARY, on_gpu(AMPERE), "flash-attn-2"),
    (EVERY_LIBRARY, on_gpu(ADA, is_compiling=True, form="masked"), "flash-attn-2"),
    ((), on_gpu(AMPERE), "sdpa"),
    ((), on_gpu(AMPERE, form="masked"), "torch-varlen"),
    (EVERY_LIBRARY, on_gpu(AMPERE, channels=384), "sdpa"),
    (EVERY_LIBRARY, on_gpu(AMPERE, channels=60, form="masked"), "sdpa"),
    (EVERY_LIBRARY, on_gpu(HOPPER, dtype=FP32), "sdpa"),
    (EVERY_LIBRARY, on_gpu(HOPPER, dtype=FP32, form="masked"), "sdpa"),
    (EVERY_LIBRARY, on_gpu(HOPPER)._replace(dtypes=(BF16, BF16, FP32)), "sdpa"),
    (EVERY_LIBRARY, on_gpu(VOLTA, dtype=torch.float16), "sdpa"),
    (EVERY_LIBRARY, on_gpu(None), "sdpa"),  # a GPU of another maker
    (EVERY_LIBRARY, on_cpu(FP32), "sdpa"),
    (EVERY_LIBRARY, on_cpu(FP32, form="masked"), "sdpa"),
    (EVERY_LIBRARY, on_cpu(torch.float64), "sdpa"),
    (EVERY_LIBRARY, Call("meta", None, (BF16,) * 3, 64, 16, 16, "full"), "sdpa"),
]


@pytest.mark.parametrize(("installed", "wanted_call", "name"), CHOICES)
def test_the_kernel_of_a_call_follows_from_hardware_types_and_libraries(
    installed, wanted_call, name, install, products
):
    products("highest")
    install(*installed)
    assert choose_backend(wanted_call).name == name


def test_short_sequences_in_float32_are_multiplied_plainly_where_onednn_computes_the_products(products):
    products("medium")
    short, long = on_cpu(FP32, 512, 512), on_cpu(FP32, 512, 513)
    for form in ("full", "masked"):
        assert choose_backend(short._replace(form=form)).name == "matmul"
        assert choose_backend(long._replace(form=form)).name == "sdpa"
    assert choose_backend(on_cpu(torch.float64)).name == "sdpa"
    assert choose_backend(short._replace(dtypes=(FP32, FP32, BF16))).name == "sdpa"
    assert choose_backend(on_gpu(None, dtype=FP32)).name == "sdpa"


def test_on_a_cpu_half_precision_is_multiplied_plainly_only_where_it_has_the_instructions(monkeypatch):
    short, long = on_cpu(BF16, 512, 512), on_cpu(BF16, 512, 513)
    assert short.num_queries * short.num_keys == MATMUL_MAX_SCORES
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "avx512_fp16": False})
    assert choose_backend(short).name == "matmul"
    assert choose_backend(short._replace(form="masked")).name == "matmul"
    assert choose_backend(long).name == "blocked"
    assert choose_backend(long._replace(form="masked")).name == "blocked"
    assert choose_backend(on_cpu(torch.float16)).name == "sdpa"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, "avx512_bf16": False})
    assert choose_backend(short).name == choose_backend(long).name == "sdpa"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # of a processor that torch does not describe
    assert choose_backend(long).name == "blocked"


def packed_name(packed):
    chosen = choose_packed_backend(packed)
    return chosen and chosen.name


def test_packed_calls_have_kernels_on_nvidia_gpus(install):
    install(*EVERY_LIBRARY)
    packed = on_gpu(HOPPER, form="packed")
    for capability, name in ((HOPPER, "flash-attn-3"), (BLACKWELL, "flash-attn-4"), (AMPERE, "flash-attn-2")):
        assert packed_name(packed._replace(capability=capability)) == name
    install()
    assert packed_name(packed) == "torch-varlen"
    assert packed_name(packed._replace(dtypes=(FP32,) * 3)) is None
    assert packed_name(on_cpu(BF16, form="packed")) is None


def test_every_row_has_a_name_of_the_setting_and_reasons_of_its_own(install):
    install()
    assert {backend.name for backend in BACKENDS} == set(get_args(AttentionBackend)) - {"auto"}
    for backend in BACKENDS:
        reasons = [backend.why_not(each) for each in (on_gpu(HOPPER), on_gpu(VOLTA), on_cpu(FP32), on_cpu(BF16))]
        assert any(reasons) == (backend.name != "sdpa")
        assert backend.run_packed is not None or backend.why_not(on_gpu(HOPPER, form="packed")) is not None


def test_the_last_row_takes_every_call_that_is_not_packed():
    for device, capability in (("cpu", None), ("cuda", HOPPER), ("cuda", VOLTA), ("mps", None)):
        for dtype in (torch.float64, FP32, BF16, torch.float16):
            for form in ("full", "masked"):
                assert BACKENDS[-1].why_not(Call(device, capability, (dtype,) * 3, 3, 5, 7, form)) is None


# --- forcing one ------------------------------------------------------------------------------------------------------


def test_a_forced_kernel_computes_also_what_another_would_be_chosen_for():
    x = torch.randn(1, 8, 2, 16, dtype=BF16)
    expected = attention(x, x, x)
    for name in ("matmul", "blocked", "sdpa"):
        with attention_backend(name):
            assert choose_backend(Call.of(x, x, x, "full")).name == name
            torch.testing.assert_close(attention(x, x, x), expected, rtol=2e-2, atol=2e-2)
    assert choose_backend(Call.of(x, x, x, "full")).name == "matmul"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flash-attn-2", "the tensors are not on an NVIDIA GPU"),
        ("blocked", "it is for half precision: in others sdpa is faster"),
    ],
)
def test_a_forced_kernel_that_does_not_take_a_call_raises_with_its_reason(name, reason):
    x = torch.randn(1, 8, 2, 16)
    expected = f"attention: {name} does not take a full call with heads of 16 channels in float32 on cpu: {reason}"
    with attention_backend(name), pytest.raises(AttentionBackendError, match=expected):
        attention(x, x, x)
    attention(x, x, x)


def test_a_forced_kernel_for_packed_sequences_raises_where_it_does_not_take_them(install):
    install()
    x, segments = torch.randn(8, 2, 16), Segments.of([3, 5])
    with attention_backend("flash-attn-2"), pytest.raises(AttentionBackendError, match="a packed call"):
        packed_attention(x, x, x, segments, segments)
    with attention_backend("sdpa"):  # has no packed kernel: segment by segment
        packed_attention(x, x, x, segments, segments)


@pytest.mark.parametrize("recompute", [False, True, "selective"])
def test_a_stack_of_blocks_uses_its_kernel_also_where_it_is_computed_again(recompute, monkeypatch):
    config = small_dit()
    network = DiT(config, 4)
    with_open_gates(network)
    used = []
    counted = [
        backends.Backend(
            each.name, each.why_not, lambda *tensors, each=each: used.append(each.name) or each.run(*tensors)
        )
        for each in BACKENDS
    ]
    monkeypatch.setattr(backends, "BACKENDS", tuple(counted))
    network.blocks.attention, network.blocks.recompute = "blocked", recompute
    x, t, caption = noisy_batch(config)
    with torch.autocast("cpu", BF16):
        out = network(x, t, caption)
        num_forward = used.count("blocked")
        out.float().sum().backward()
    assert num_forward == 2 * len(network.blocks)  # to tokens, to the caption
    assert used.count("blocked") == (num_forward if recompute is False else 2 * num_forward)
    assert "sdpa" not in used


def test_selective_checkpointing_keeps_what_blocked_attention_returned(monkeypatch):
    """It computes the scores of a block forward and backward, and not again in between."""
    computed = []
    probabilities = blocked._probabilities
    monkeypatch.setattr(blocked, "_probabilities", lambda *tensors: computed.append(1) or probabilities(*tensors))
    config, counts = small_dit(), {}
    for recompute in (False, "selective", True):
        torch.manual_seed(0)
        network = DiT(config, 4)
        with_open_gates(network)
        network.blocks.attention, network.blocks.recompute = "blocked", recompute
        computed.clear()
        with torch.autocast("cpu", BF16):
            network(*noisy_batch(config)).float().sum().backward()
        counts[recompute] = len(computed)
    calls = 2 * len(network.blocks)
    assert counts == {False: 2 * calls, "selective": 2 * calls, True: 3 * calls}


# --- what is logged ---------------------------------------------------------------------------------------------------


def test_the_choice_and_the_reasons_are_logged_once_for_each_kind_of_call(install, caplog):
    install("flash_attn")
    backends._log_once.cache_clear()
    with caplog.at_level(logging.INFO, "models.attention"):
        for num_queries in (16, 17, 4096):
            choose_backend(on_gpu(HOPPER)._replace(num_queries=num_queries))
            choose_backend(on_gpu(HOPPER, form="masked"))
        choose_backend(Call("meta", None, (FP32,) * 3, 64, 16, 16, "full"))
        with attention_backend("sdpa"):
            choose_backend(on_gpu(HOPPER, channels=64))
    assert [record.getMessage() for record in caplog.records] == [
        "attention by cudnn (full calls, heads of 128 channels, bfloat16, cuda); passed over: flash-attn-3: it is not "
        "installed",
        "attention by flash-attn-2 (masked calls, heads of 128 channels, bfloat16, cuda); passed over: flash-attn-3, "
        "flash-attn-4: it is not installed; cudnn: it takes neither masks nor packed sequences",
    ]


# --- under torch.compile ----------------------------------------------------------------------------------------------


def wan():
    torch.manual_seed(0)
    config = WanConfig(architecture="wan", width=48, depth=2, heads=2, mlp_width=64, text_tokens=7, time_width=16)
    network = with_open_gates(Wan(config, 4, 12))
    return network, (
        torch.randn(2, 4, 3, 4, 4),
        torch.rand(2),
        CaptionEmbeddings(torch.randn(2, 7, 12), torch.ones(2, 7, dtype=torch.bool)),
    )


def dit(**options):
    torch.manual_seed(0)
    config = small_dit(**options)
    return with_open_gates(DiT(config, 4)), noisy_batch(config)


def unet():
    torch.manual_seed(0)
    text = small_dit().text
    config = UNetConfig(architecture="unet", width=16, multipliers=(1, 2), heads=2, text=text)
    caption = CaptionTokens.encode(["a dot", ""], text.max_bytes)
    return with_open_gates(UNet(config, 4)), (torch.randn(2, 4, 3, 4, 4), torch.rand(2), caption)


NETWORKS = {
    "dit": dit,
    "joint": lambda: dit(joint_blocks=2),
    "factorised": lambda: dit(attention_pattern=("space", "time")),
    "wan": wan,
    "unet": unet,
}
PACKED, FUSED = "reelflow_testing.packed_attention", "scaled_dot_product_attention"
TRACED = {  # network, libraries, GPU, operators of attention in the graphs
    "dit by flash-attn 2": ("dit", ("flash_attn",), AMPERE, {PACKED}),
    "joint blocks by flash-attn 2": ("joint", ("flash_attn",), AMPERE, {PACKED}),
    "factorised dit by flash-attn 2": ("factorised", ("flash_attn",), AMPERE, {PACKED}),
    "wan by flash-attn 2": ("wan", ("flash_attn",), AMPERE, {PACKED}),
    "unet by flash-attn 2": ("unet", ("flash_attn",), AMPERE, {PACKED}),
    "dit with every library": ("dit", EVERY_LIBRARY, HOPPER, {FUSED, PACKED}),
    "dit by torch alone": ("dit", (), HOPPER, {FUSED, PACKED}),
    "wan by torch alone": ("wan", (), HOPPER, {FUSED}),  # no mask
}


class Operators:
    """A backend of torch.compile that runs a graph as it is, and notes which operators of attention are in it."""

    def __init__(self):
        self.found = set()

    def __call__(self, graph, inputs):
        for node in graph.graph.nodes:
            self.found |= {name for name in (PACKED, FUSED) if name in str(node.target)}
        return graph.forward


@pytest.mark.parametrize("case", TRACED)
def test_compiled_blocks_call_the_kernels_of_a_gpu_without_a_break(case, install, monkeypatch):
    """fullgraph=True makes a break an error; stand-ins compute on the CPU what the kernels of the GPU would."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of shapes cannot be traced
    torch.compiler.reset()
    torch.compiler.allow_in_graph(einops.rearrange)  # its parsing of patterns takes seconds to trace
    name, installed, capability, operators = TRACED[case]
    network, arguments = NETWORKS[name]()
    with torch.autocast("cpu", BF16):
        expected = network(*arguments)
    install(*installed)
    monkeypatch.setattr(varlen, "varlen_attn", packed_operator)
    monkeypatch.setattr(call, "nvidia_capability", lambda device: capability)
    compiler = Operators()
    for stack in (each for each in network.modules() if isinstance(each, BlockStack)):
        for block in stack:
            block.compile(fullgraph=True, backend=compiler)
    with torch.autocast("cpu", BF16):
        out = network(*arguments)
    assert compiler.found == operators
    torch.testing.assert_close(out, expected, rtol=0, atol=5e-2 * expected.abs().max().item())
    out.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_forced_kernel_that_does_not_take_a_call_raises_its_reason_under_compilation_too(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch.compiler.reset()
    x = torch.randn(1, 8, 2, 16)
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    with attention_backend("blocked"), pytest.raises(Exception, match="it is for half precision"):
        compiled(x, x, x)
    assert torch.equal(compiled(x, x, x), attention(x, x, x))
