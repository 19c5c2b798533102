"""The checks of `benchmarks.gpu`; each yields rows as it measures them, and ends when its time is over.

python -m benchmarks.gpu_checks NAME --device cuda --seconds 60
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree as ET

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu_networks import autoencoder, engine, training, wan
from benchmarks.gpu_timing import Row, Setting, relative_error
from models.attention.backends import BACKENDS, Backend, choose_backend
from models.attention.call import Call
from models.networks.build import build_network
from models.networks.config import DiTConfig
from models.text.embeddings import CaptionEmbeddings

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "flash-attn", "flash-attn-4", "diffusers", "deepspeed", "ray", "numpy", "einops")


Run = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of a query, a key and a value (b n heads d)."""


# What the device is


def machine(at: Setting) -> Iterator[Row]:
    """Device, versions, and the ceilings that everything else is compared with."""
    row: Row = {"device": at.device.type, "processor": platform.processor() or platform.machine()}
    row |= {"python": platform.python_version(), "cuda": torch.version.cuda, "tiny": at.is_tiny}
    for name in PACKAGES:
        try:
            row[name] = version(name)
        except PackageNotFoundError:
            row[name] = None
    if at.is_cuda:
        found = torch.cuda.get_device_properties(at.device)
        row |= {
            "device": found.name,
            "capability": list(torch.cuda.get_device_capability()),
            "gib": found.total_memory / 2**30,
        }
    yield row
    for dtype in (torch.bfloat16, torch.float32):
        yield {"what": "matrix product", "dtype": str(dtype), "tflops": at.matrix_flops(dtype) / 1e12}
    block = torch.empty(2**20 if at.is_tiny else 2**30, dtype=torch.float32, device=at.device)
    copied = at.timed(lambda: block.clone())
    yield {"what": "copy", "gb_per_second": 2 * 4 * block.numel() / copied["ms"] / 1e6}


# The tests that need a GPU


def tests(at: Setting) -> Iterator[Row]:
    """pytest -m gpu on the files that have such tests, but for those that start Ray."""
    found = {
        path: path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    }
    with_ray = [path for path, text in found.items() if re.search(r"testing\.clusters|import ray|[\"(]cluster\b", text)]
    files = [str(path.relative_to(ROOT)) for path in found if path not in with_ray]
    yield {"files": files, "files_left_out_for_ray": [str(path.relative_to(ROOT)) for path in with_ray]}
    which = ["-m", "gpu"] if at.is_cuda else ["-m", "not gpu and not slow", "-k", "reference"]  # the path alone
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Warnings are no errors here: another torch has others.
        options = ["-p", "no:cacheprovider", f"--junit-xml={report}", "--timeout=60", "-W", "default", *which]
        left = max(10.0, at.deadline - time.monotonic())
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *options, *files],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=left,
            )
        except subprocess.TimeoutExpired as expired:
            yield {"error": f"not finished after {left:.0f} s", "output": str(expired.stdout)[-2000:]}
            return
        if not report.exists():
            yield {"error": f"pytest ended with {done.returncode}", "output": (done.stdout + done.stderr)[-2000:]}
            return
        suite = ET.parse(report).getroot()[0]
    yield {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    for case in suite.iter("testcase"):
        for problem in [*case.iter("failure"), *case.iter("error")]:
            told = (problem.attrib.get("message") or "").splitlines()
            yield {"test": f"{case.attrib['classname']}::{case.attrib['name']}", "failed": told[:3]}


# Attention


def reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v in float64, for tensors (b n heads d)."""
    q, k, v = (x.double().transpose(1, 2) for x in (query, key, value))
    return (torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1) @ v).transpose(1, 2)


def torch_kernel(kernel: SDPBackend) -> Run:
    """One kernel of torch alone, for tensors (b n heads d)."""

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            q, k, v = (x.transpose(1, 2) for x in (query, key, value))
            return scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return run


def our_backends(query: Tensor, key: Tensor) -> dict[str, Run]:
    """The rows of `BACKENDS` that take these arguments, by name."""
    call = Call.of(query, key, key, "full")
    taking = [backend for backend in BACKENDS if backend.why_not(call) is None]
    return {backend.name: partial(_run_without_mask, backend) for backend in taking}


def _run_without_mask(backend: Backend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return backend.run(query, key, value, None)


def _forward_and_backward(run: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    out = run(*inputs)
    torch.autograd.grad(out, inputs, out)


def attention(at: Setting) -> Iterator[Row]:
    """Every backend and every kernel of torch: error against float64, and speed against the matrix product."""
    ceiling = at.matrix_flops()
    kernels = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    runs = {f"torch {kernel.name}": torch_kernel(kernel) for kernel in kernels}

    def tensors(length: int, head_dim: int) -> list[Tensor]:
        heads = 2 if at.is_tiny else 2048 // head_dim
        shape = (1, length, heads, head_dim)
        return [torch.randn(shape, device=at.device, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]

    lengths = (100,) if at.is_tiny else (2048, 4096, 8192, 16384, 32768)
    for head_dim in (64, 128):
        inputs = tensors(113 if at.is_tiny else 1000, head_dim)  # no multiple of a kernel's block
        expected = reference(*inputs)
        upstream = torch.randn_like(expected)
        expected_gradients = torch.autograd.grad(expected, inputs, upstream)
        for name, run in (our_backends(*inputs[:2]) | runs).items():
            row: Row = {"what": "error", "backend": name, "head_dim": head_dim, "length": inputs[0].shape[1]}
            with at.guarded(row):
                out = run(*inputs)
                gradients = torch.autograd.grad(out, inputs, upstream.to(out.dtype))
                row["forward"] = relative_error(out, expected)
                row["gradients"] = [relative_error(*pair) for pair in zip(gradients, expected_gradients, strict=True)]
            yield row
    for length in lengths:
        for head_dim in (128, 64):
            if not at.has(5):
                return
            inputs = tensors(length, head_dim)
            heads, forward_flops = inputs[0].shape[2], 4 * length**2 * inputs[0].shape[2] * head_dim
            chosen = choose_backend(Call.of(inputs[0], inputs[1], inputs[2], "full")).name
            for name, run in (our_backends(*inputs[:2]) | runs).items():
                row = {"what": "speed", "backend": name, "is_chosen": name == chosen, "head_dim": head_dim}
                row |= {"length": length, "heads": heads}
                with at.guarded(row):
                    with torch.no_grad():
                        forward = at.timed(partial(run, *inputs))["ms"]
                    both = at.timed(partial(_forward_and_backward, run, inputs))["ms"]
                    rates = {"forward": forward_flops / forward, "both": 3.5 * forward_flops / both}
                    row |= {f"{key}_tflops": rate / 1e9 for key, rate in rates.items()}
                    row |= {f"{key}_of_ceiling": 1e3 * rate / ceiling for key, rate in rates.items()}
                yield row


# bfloat16 beside float32


def loss_curve(at: Setting) -> Iterator[Row]:
    """The same training in float32 and in bfloat16: mean losses of its tenths, and how far they are apart."""
    num_steps, width, depth = (10, 64, 2) if at.is_tiny else (400, 384, 6)
    config = DiTConfig(width=width, depth=depth, heads=width // 64)
    shape, curves = ((4, 2, 4, 4), {}) if at.is_tiny else ((16, 4, 16, 16), {})
    for name, enabled in (("float32", False), ("bfloat16", True)):
        torch.manual_seed(0)
        network = build_network(config, shape[0], 16).to(at.device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        templates = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1)).to(at.device)
        words = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(2)).to(at.device)
        losses = []
        for number in range(num_steps):
            drawn = torch.Generator().manual_seed(number)
            x_0, t = (
                torch.randn(32, *shape, generator=drawn).to(at.device),
                torch.rand(32, generator=drawn).to(at.device),
            )
            which = torch.arange(32, device=at.device) % 8
            caption = CaptionEmbeddings(words[which], torch.ones(32, 4, dtype=torch.bool, device=at.device))
            x_1, at_t = templates[which], t[:, None, None, None, None]
            with torch.autocast(at.device.type, torch.bfloat16, enabled=enabled):
                predicted = network((1 - at_t) * x_0 + at_t * x_1, t, caption)
            loss = (predicted.float() - (x_1 - x_0)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        curves[name] = torch.stack(losses).reshape(10, -1).mean(1)
        yield {"dtype": name, "steps": num_steps, "mean_losses_of_tenths": curves[name].tolist()}
    apart = (curves["bfloat16"] / curves["float32"] - 1).abs()
    yield {"what": "largest relative difference", "value": float(apart.max()), "last": float(apart[-1])}


CHECKS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    check.__name__: check for check in (machine, tests, attention, training, wan, autoencoder, loss_curve, engine)
}


def main() -> None:
    """Run one check and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    deadline = time.monotonic() + chosen.seconds
    setting = Setting(torch.device(chosen.device), chosen.tiny, deadline)
    for row in CHECKS[chosen.check](setting):
        print(json.dumps({"device": chosen.device} | row), flush=True)


if __name__ == "__main__":
    main()
