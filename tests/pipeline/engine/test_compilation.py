"""Compiled networks: one graph a block, few graphs for many shapes, and the folder that keeps compiled code."""

import _ctypes
import math
import os
import shutil
import socket

import einops
import jaxtyping
import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounter

from models.layers import BlockStack
from models.networks.build import build_network
from models.networks.config import UNetConfig, WanConfig
from models.text.bytes import CaptionTokens
from models.text.embeddings import CaptionEmbeddings
from pipeline.engine.compilation import CACHE_VARIABLE, compile_network, compiled_code_in, remove_truncated
from testing.networks import combinations, small_dit, with_open_gates

UNET = UNetConfig(architecture="unet", width=16, multipliers=(1, 2), num_blocks=2, heads=2, text=small_dit().text)
WAN = WanConfig(architecture="wan", width=32, depth=2, heads=2, mlp_width=48, time_width=16, text_tokens=6)
CONFIGS = {name: combinations()[name] for name in ("full, joint, shared", "factorised, joint, then cross, low rank")}
CONFIGS |= {"unet": UNET, "wan": WAN}


@pytest.fixture
def counter(monkeypatch):
    """A backend of torch.compile that counts graphs and runs them as they are: no C++ compiler is needed."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of shapes cannot be traced
    torch.compiler.reset()
    torch.compiler.allow_in_graph(einops.rearrange)  # its parsing of patterns takes seconds to trace
    yield CompileCounter()
    torch.compiler.reset()


def make(config, recompute=False):
    """With no weight at zero, on latents of four channels; Wan reads embeddings of 8 channels."""
    torch.manual_seed(0)
    network = with_open_gates(build_network(config, 4, 8 if config.needs_embeddings else None))
    for stack in (part for part in network.modules() if isinstance(part, BlockStack)):
        stack.recompute = recompute
    return network


def inputs(network, num_clips, frames, side, per_frame=False):
    caption = CaptionTokens.encode(["a dot"] * num_clips, 8)
    if network.config.needs_embeddings:
        caption = CaptionEmbeddings(torch.randn(num_clips, 3, 8), torch.ones(num_clips, 3, dtype=torch.bool))
    t = torch.rand((num_clips, 1, frames) if per_frame else num_clips)
    return torch.randn(num_clips, 4, frames, side, side), t, caption


@pytest.mark.parametrize("name", CONFIGS)
def test_recomputed_blocks_compile_without_a_break_and_train_alike(name, counter):
    """Outputs and gradients; a break would be an error."""
    plain, compiled = make(CONFIGS[name]), make(CONFIGS[name], recompute=True)
    compile_network(compiled, backend=counter)
    batch = inputs(plain, 2, 3, 8, per_frame=True)
    outputs = [network(*batch) for network in (plain, compiled)]
    assert counter.frame_count > 0
    torch.testing.assert_close(outputs[1], outputs[0])
    for output in outputs:
        output.square().mean().backward()
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)


def test_two_graphs_serve_buckets_of_all_sizes(counter):
    """The first bucket has a graph for its sizes, which are constants in it; all others share one."""
    network = make(small_dit())
    compile_network(network, backend=counter)
    found = []
    for num_clips, frames, side in ((2, 3, 4), (4, 5, 8), (8, 1, 4), (3, 2, 6)):
        network(*inputs(network, num_clips, frames, side))
        found.append(counter.frame_count)
    assert found == [1, 2, 2, 2]


class Scaled(torch.nn.Module):
    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, x):
        return x * self.number[0]


class Breaking(torch.nn.Module):
    def forward(self, x):
        torch._dynamo.graph_break()
        return x + 1


def test_more_kinds_of_blocks_than_torch_allows_by_itself(counter):
    """Ten graphs of one function: spans, buckets, and passes with and without gradients are as many."""
    stack = BlockStack(Scaled((number,)) for number in range(1, 11))
    compile_network(stack, backend=counter)
    assert stack.run(torch.ones(1)) == math.factorial(10)


@pytest.mark.parametrize("has_breaks", [False, True])
def test_a_break_in_a_block_is_an_error_unless_it_is_expected(has_breaks, counter):
    stack = BlockStack([Breaking()])
    compile_network(stack, has_breaks=has_breaks, backend=counter)
    if has_breaks:
        assert torch.equal(stack.run(torch.zeros(2)), torch.ones(2))
    else:
        with pytest.raises(Unsupported, match="graph_break"):
            stack.run(torch.zeros(2))


def test_code_is_kept_in_a_folder_of_the_machine_unless_the_user_names_one(tmp_path, monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    with compiled_code_in(tmp_path):
        assert os.environ[CACHE_VARIABLE] == str(tmp_path / socket.gethostname())
    with compiled_code_in(tmp_path):  # torch has set the variable by now
        assert os.environ[CACHE_VARIABLE] == str(tmp_path / socket.gethostname())
    monkeypatch.setenv(CACHE_VARIABLE, "/elsewhere")
    with compiled_code_in(tmp_path):
        assert os.environ[CACHE_VARIABLE] == "/elsewhere"
    assert os.environ[CACHE_VARIABLE] == "/elsewhere"


def test_what_a_killed_compiler_left_is_removed(tmp_path, monkeypatch):
    """A library of Python, whole, cut at several places, and with nothing but zeros."""
    whole = tmp_path / socket.gethostname() / "ab" / "whole.main.so"
    whole.parent.mkdir(parents=True)
    shutil.copy(_ctypes.__file__, whole)
    content = whole.read_bytes()
    for number, cut in enumerate((0, 10, 64, len(content) // 2, len(content) - 1)):
        whole.with_name(f"{number}.so").write_bytes(content[:cut])
    whole.with_name("zeros.o").write_bytes(bytes(len(content)))
    whole.with_name("code.cpp").write_text("")
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    with compiled_code_in(tmp_path):
        assert sorted(path.name for path in whole.parent.iterdir()) == ["code.cpp", "whole.main.so"]
    assert remove_truncated(tmp_path) == []
