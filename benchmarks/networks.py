"""Our networks beside those of diffusers, with equal weights, in turn and in one process.

    pip install '.[dev]' -c constraints.txt
    OMP_WAIT_POLICY=passive python -m benchmarks.networks --minutes 60
    python -m benchmarks.networks --parts transformers memory --tokens 256 2048 --threads 1 --products default same

Parts: Wan's autoencoder (encode and decode, whole and in chunks); the transformer of Wan, and our DiT of the same
width, depth and heads (forward pass and training step, by number of tokens); the same compiled, block by block; and
the peak memory of a training step. Each row is measured in rounds of ours and theirs; the figures are the fastest round
of each (CPU time of the process, in seconds) and their ratio. The ceiling is the fastest product of two square matrices
in the same run, by the library that ours uses. A row is printed, and the file written, as soon as it is measured; the
run ends after the row in which its minutes are over.

Products of float32 matrices are by MKL or, where `torch.set_float32_matmul_precision` allows it, by oneDNN, which on
AMD's CPUs takes half the time and computes in float32 all the same. Each runs `default` (ours sets it, theirs does not)
or both the `same` way, by oneDNN, or `mkl`.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from models.networks.build import build_network
from models.networks.config import DiTConfig
from models.networks.protocol import VelocityNetwork
from models.text.config import TextConfig
from models.text.embeddings import CaptionEmbeddings
from pipeline.engine.compilation import compile_network
from testing.peaks import above_base, output_of_new_process
from testing.published import make_transformer
from testing.wan import copy_transformer, make_pair

RESULTS = Path(__file__).parent / "results" / "networks.json"
GRIDS = {256: (4, 16, 16), 2048: (8, 32, 32), 8192: (8, 64, 64)}
"""Number of tokens -> latent frames, height and width, for patches of 2 x 2."""
SETTINGS: dict[str, Any] = {
    "num_attention_heads": 6,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 512,
    "freq_dim": 256,
    "ffn_dim": 1536,
    "num_layers": 4,
}
AUTOENCODER: dict[str, Any] = {
    "base_dim": 32,
    "z_dim": 16,
    "latents_mean": [0.0] * 16,
    "latents_std": [1.0] * 16,
}
DIT = DiTConfig(width=384, depth=4, heads=6, text=TextConfig(width=256, depth=1, heads=4))
CAPTION_TOKENS = 512
PRODUCTS = {"default": ("medium", "highest"), "same": ("medium", "medium"), "mkl": ("highest", "highest")}
"""What `torch.set_float32_matmul_precision` is set to for ours, and for theirs: "medium" is oneDNN."""
PARTS = ("autoencoders", "transformers", "compiled", "memory")


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    peer: str
    threads: int
    products: str
    """A key of `PRODUCTS`."""
    ours_seconds: float
    peer_seconds: float
    ours_elapsed_seconds: float
    """Of the same call, by the clock: with two threads, on a quiet machine, the figure to look at."""
    peer_elapsed_seconds: float
    ours_flops: int
    """Operations of ours, as torch counts them."""
    peer_flops: int
    share_of_ceiling: float
    """Of the fastest matrix product in the same run, by elapsed time."""
    difference: float | None
    """Norm of the difference of the outputs over the norm; None: other networks."""
    rounds: int

    @property
    def ratio(self) -> float:
        """How many times as long the peer takes for an operation; where weights are equal, for all of them."""
        return self.peer_seconds / self.peer_flops * self.ours_flops / self.ours_seconds


@dataclass(frozen=True)
class Timed:
    """The fastest of several calls."""

    cpu_seconds: float
    elapsed_seconds: float


def in_turn(calls: list[Callable[[], object]], budget_seconds: float) -> tuple[list[Timed], int]:
    """Call each in turn, after one call of each that does not count, until the time is over; at least twice."""
    for call in calls:
        call()
    found: list[list[Timed]] = [[] for _ in calls]
    begin = time.perf_counter()
    while len(found[0]) < 2 or time.perf_counter() - begin < budget_seconds:
        for call, times in zip(calls, found, strict=True):
            cpu, elapsed = time.process_time(), time.perf_counter()
            call()
            times.append(Timed(time.process_time() - cpu, time.perf_counter() - elapsed))
    fastest = [min(times, key=lambda timed: timed.cpu_seconds) for times in found]
    return fastest, len(found[0])


def with_products(library: str, call: Callable[[], object]) -> Callable[[], object]:
    """The call with float32 products as `torch.set_float32_matmul_precision` says; see `PRODUCTS`."""

    def run() -> object:
        torch.set_float32_matmul_precision(library)
        return call()

    return run


def ceiling_flops(library: str = "highest", budget_seconds: float = 3.0, side: int = 1536) -> float:
    """Floating-point operations per second of the fastest product of two square matrices, by elapsed time."""
    one, other = torch.randn(side, side), torch.randn(side, side)
    (timed,), _ = in_turn([with_products(library, lambda: one @ other)], budget_seconds)
    return 2 * side**3 / timed.elapsed_seconds


def flops_of(call: Callable[[], object]) -> int:
    """Operations of a call, as torch counts them; it has no rule of its own for attention on a CPU."""
    aten = torch.ops.aten
    rules = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, q, k, v, *_, **__: (
            sdpa_backward_flop_count(gradient, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=rules) as counter:
        call()
    return counter.get_total_flops()


def training_step(network: Callable[..., Tensor], *inputs: object, **named: object) -> Callable[[], None]:
    """Forward and backward pass of a squared error."""

    def step() -> None:
        network(*inputs, **named).square().mean().backward()

    return step


def forward_pass(network: Callable[..., Tensor], *inputs: object, **named: object) -> Callable[[], Tensor]:
    """Forward pass without gradients."""

    def run() -> Tensor:
        with torch.no_grad():
            return network(*inputs, **named)

    return run


@dataclass(frozen=True)
class Comparison:
    """Two calls."""

    what: str
    peer: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    is_comparable: bool = False
    """Both give outputs that should be equal."""
    counted: tuple[Callable[[], object], Callable[[], object]] | None = None
    """The same calls, not compiled, whose operations can be counted; None: `ours` and `theirs` are."""


@dataclass(frozen=True)
class Transformers:
    """Diffusers' Wan, ours with the same weights, and our DiT of the same width, depth and heads."""

    peer: Any
    wan: VelocityNetwork
    dit: VelocityNetwork

    @classmethod
    def make(cls) -> "Transformers":
        """With random weights."""
        peer: Any = make_transformer(SETTINGS)
        wan, _ = copy_transformer(peer)
        return cls(peer, wan, build_network(DIT, 16, SETTINGS["text_dim"]))

    def compile(self) -> None:
        """Block by block, each as its library does it."""
        compile_network(self.wan)
        compile_network(self.dit)
        self.peer.compile_repeated_blocks(fullgraph=True)

    def calls(self, make: Callable[..., Callable[[], object]], num_tokens: int) -> dict[str, Callable[[], object]]:
        """`forward_pass` or `training_step` of each on one latent, by its name."""
        x, t = torch.randn(1, 16, *GRIDS[num_tokens]), torch.full((1,), 0.3)
        text = torch.randn(1, CAPTION_TOKENS, SETTINGS["text_dim"])
        caption = CaptionEmbeddings(text, torch.ones(1, CAPTION_TOKENS, dtype=torch.bool))
        return {
            "Wan": make(self.wan, x, t, caption),
            "our DiT": make(self.dit, x, t, caption),
            "diffusers": make(self._peer_velocity, x, t, text),
        }

    def _peer_velocity(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return -self.peer(x, 1000 * (1 - t), text, return_dict=False)[0]


def transformers(tokens: Collection[int]) -> Iterator[Comparison]:
    """Forward passes and training steps."""
    networks = Transformers.make()
    for num_tokens in tokens:
        for kind, make in (("forward", forward_pass), ("training step", training_step)):
            calls = networks.calls(make, num_tokens)
            for name, peer in (("Wan", "diffusers"), ("our DiT", "diffusers' Wan")):
                comparable = name == "Wan" and kind == "forward"
                yield Comparison(
                    f"{name}, {kind}, {num_tokens} tokens", peer, calls[name], calls["diffusers"], comparable
                )


def compiled(tokens: Collection[int]) -> Iterator[Comparison]:
    """Training steps of compiled blocks: new networks for each number of tokens, so that it is constant in the code."""
    for num_tokens in tokens:
        torch.compiler.reset()
        networks = Transformers.make()
        networks.compile()
        calls, plain = (each.calls(training_step, num_tokens) for each in (networks, Transformers.make()))
        for name, peer in (("Wan", "diffusers"), ("our DiT", "diffusers' Wan")):
            what = f"{name}, compiled training step, {num_tokens} tokens"
            yield Comparison(what, peer, calls[name], calls["diffusers"], counted=(plain[name], plain["diffusers"]))


def autoencoders(_: Collection[int]) -> Iterator[Comparison]:
    """The autoencoder of Wan 2.1 with a third of its channels."""
    pair: Any = make_pair(AUTOENCODER)
    peer, ours = pair
    pixels, latents = torch.randn(1, 3, 9, 96, 96).clamp(-1, 1), torch.randn(1, 16, 3, 12, 12)

    def peer_encode(x: Tensor) -> Tensor:
        return peer.encode(x).latent_dist.mean

    def peer_decode(z: Tensor) -> Tensor:
        return peer.decode(z, return_dict=False)[0]

    def chunked_decode(z: Tensor) -> Tensor:
        return torch.cat(list(ours.decode_latents(z.split(1, dim=2))), dim=2).clamp(-1, 1)

    encode, decode = forward_pass(peer_encode, pixels), forward_pass(peer_decode, latents)
    here = {
        "encode, whole": (forward_pass(lambda x: ours.encode(x).mean, pixels), encode),
        "decode, whole": (forward_pass(lambda z: ours.decode(z).clamp(-1, 1), latents), decode),
        "decode, frame by frame": (forward_pass(chunked_decode, latents), decode),
    }
    for what, calls in here.items():
        yield Comparison(f"autoencoder, {what}", "diffusers", *calls, is_comparable=True)


def measure(
    source: Callable[[Collection[int]], Iterator[Comparison]], chosen: argparse.Namespace, threads: int, products: str
) -> Iterator[Row]:
    """Every row of a part with this many threads."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ours_by, theirs_by = PRODUCTS[products]
    ceiling = ceiling_flops(ours_by)
    for compared in source(chosen.tokens):
        one, other = with_products(ours_by, compared.ours), with_products(theirs_by, compared.theirs)
        (here, there), rounds = in_turn([one, other], chosen.seconds_per_row)
        flops, peer_flops = map(flops_of, compared.counted or (compared.ours, compared.theirs))
        difference = None
        if compared.is_comparable:
            found, expected = one(), other()
            assert isinstance(found, Tensor)
            assert isinstance(expected, Tensor)
            difference = float((found - expected).norm() / expected.norm())
        yield Row(
            what=compared.what,
            peer=compared.peer,
            threads=threads,
            products=products,
            ours_seconds=here.cpu_seconds,
            peer_seconds=there.cpu_seconds,
            ours_elapsed_seconds=here.elapsed_seconds,
            peer_elapsed_seconds=there.elapsed_seconds,
            ours_flops=flops,
            peer_flops=peer_flops,
            share_of_ceiling=flops / here.elapsed_seconds / ceiling,
            difference=difference,
            rounds=rounds,
        )
        if time.monotonic() > chosen.deadline:
            return


@dataclass(frozen=True)
class Peak:
    """Memory of a training step above what the process had before it, in bytes."""

    what: str
    is_compiled: bool
    ours_bytes: int
    peer_bytes: int

    @property
    def ratio(self) -> float:
        """Ours over theirs."""
        return self.ours_bytes / self.peer_bytes


def measure_peaks(chosen: argparse.Namespace) -> Iterator[Peak]:
    """Each network in a process of its own."""
    for is_compiled in (False, True):
        for num_tokens in chosen.tokens:
            found = {
                name: peak_of_new_process(name, num_tokens, is_compiled) for name in ("Wan", "our DiT", "diffusers")
            }
            for name in ("Wan", "our DiT"):
                what = f"{name}, training step, {num_tokens} tokens"
                yield Peak(what, is_compiled, found[name], found["diffusers"])
            if time.monotonic() > chosen.deadline:
                return


def peak_of_new_process(name: str, num_tokens: int, is_compiled: bool) -> int:
    """As `print_peak` prints it."""
    options = ["--compiled"] if is_compiled else []
    return int(output_of_new_process("benchmarks.networks", "--peak-of", name, "--tokens", str(num_tokens), *options))


def print_peak(name: str, num_tokens: int, *, is_compiled: bool) -> None:
    """Of the second of two training steps: the first loads what is loaded late, or compiles the blocks."""
    torch.set_num_threads(1)
    networks = Transformers.make()
    if is_compiled:
        networks.compile()
        networks.calls(training_step, num_tokens)[name]()  # before the base: the compiler takes memory too
    else:
        networks.calls(training_step, min(GRIDS))[name]()
    for network in (networks.peer, networks.wan, networks.dit):
        network.zero_grad()
    step = networks.calls(training_step, num_tokens)[name]
    print(above_base(step))


def main() -> None:
    """Measure, print each row at once, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seconds-per-row", type=float, default=8)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--tokens", nargs="+", type=int, choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--products", nargs="+", choices=PRODUCTS, default=["default", "same"])
    parser.add_argument("--peak-of", choices=("Wan", "our DiT", "diffusers"), help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak_of is not None:
        print_peak(chosen.peak_of, chosen.tokens[0], is_compiled=chosen.compiled)
        return
    chosen.deadline = time.monotonic() + 60 * chosen.minutes
    rows: list[Row] = []
    peaks: list[Peak] = []

    def write() -> None:
        found = {
            "machine": {
                "capability": torch.backends.cpu.get_cpu_capability(),
                "torch": torch.__version__,
                "diffusers": version("diffusers"),
                "load_average": os.getloadavg()[0],
            },
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
            "peaks": [asdict(peak) | {"ratio": peak.ratio} for peak in peaks],
        }
        chosen.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    for source in (autoencoders, transformers, compiled):
        for products in chosen.products if source.__name__ in chosen.parts else ():
            for threads in chosen.threads:
                for row in measure(source, chosen, threads, products) if time.monotonic() < chosen.deadline else ():
                    rows.append(row)
                    times = f"ours {row.ours_seconds:7.3f} s  {row.peer} {row.peer_seconds:7.3f} s"
                    shares = f"x {row.ratio:.2f} an operation  {row.share_of_ceiling:5.0%} of the ceiling"
                    print(f"{row.what:44} {row.threads} threads  {row.products:7}  {times}  {shares}", flush=True)
                    write()
    for peak in measure_peaks(chosen) if "memory" in chosen.parts and time.monotonic() < chosen.deadline else ():
        peaks.append(peak)
        kind = "compiled" if peak.is_compiled else "eager"
        sizes = f"ours {peak.ours_bytes / 2**20:.0f} MiB  diffusers {peak.peer_bytes / 2**20:.0f} MiB"
        print(f"{peak.what:44} {kind:8}  {sizes}  x {peak.ratio:.2f}", flush=True)
        write()


if __name__ == "__main__":
    main()
