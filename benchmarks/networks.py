"""Our networks beside those of diffusers, with equal weights, in turn and in one process.

    pip install '.[dev]' -c constraints.txt
    python -m benchmarks.networks --minutes 15

Rows: the transformer of Wan (forward pass and training step, by number of tokens), our DiT of the same width, depth and
heads, and Wan's autoencoder (encode and decode, whole and in chunks). Each row is measured in rounds of ours and
theirs; the figures are the fastest round of each (CPU time of the process, in seconds) and their ratio. The ceiling is
the fastest product of two square matrices in the same run. A row is printed, and the file written, as soon as it is
measured; the run ends after the row in which its minutes are over.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from models.networks.build import build_network
from models.networks.config import DiTConfig
from models.networks.wan_published import published_tensors, read_transformer
from models.published import join_parts
from models.text.config import TextConfig
from models.text.embeddings import CaptionEmbeddings
from testing.published import make_transformer
from testing.wan import make_pair

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


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    peer: str
    threads: int
    ours_seconds: float
    peer_seconds: float
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


def ceiling_flops(budget_seconds: float = 3.0, side: int = 1536) -> float:
    """Floating-point operations per second of the fastest product of two square matrices, by elapsed time."""
    one, other = torch.randn(side, side), torch.randn(side, side)
    (timed,), _ = in_turn([lambda: one @ other], budget_seconds)
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


def transformers() -> Iterator[tuple[str, str, Callable[[], object], Callable[[], object], bool]]:
    """What is compared, the peer, ours, theirs, and whether both give outputs that can be compared."""
    peer: Any = make_transformer(SETTINGS)
    described = read_transformer(dict(peer.config))
    ours = build_network(described.config, described.channels, described.embedding_width)
    weights, state = peer.state_dict(), ours.state_dict()
    ours.load_state_dict(
        {
            name: join_parts([weights[part.name] for part in parts], state[name].shape)
            for name, parts in published_tensors(described).items()
        }
    )
    dit = build_network(DIT, 16, SETTINGS["text_dim"])
    for num_tokens, grid in GRIDS.items():
        x, t = torch.randn(1, 16, *grid), torch.full((1,), 0.3)
        text = torch.randn(1, CAPTION_TOKENS, SETTINGS["text_dim"])
        caption = CaptionEmbeddings(text, torch.ones(1, CAPTION_TOKENS, dtype=torch.bool))

        def theirs(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            return -peer(x, 1000 * (1 - t), text, return_dict=False)[0]

        for kind, made in (("forward", forward_pass), ("training step", training_step)):
            here, there = made(ours, x, t, caption), made(theirs, x, t, text)
            yield f"Wan, {kind}, {num_tokens} tokens", "diffusers", here, there, kind == "forward"
            yield f"our DiT, {kind}, {num_tokens} tokens", "diffusers' Wan", made(dit, x, t, caption), there, False


def autoencoders() -> Iterator[tuple[str, str, Callable[[], object], Callable[[], object], bool]]:
    """As `transformers`, for the autoencoder of Wan 2.1 with a third of its channels."""
    pair: Any = make_pair(AUTOENCODER)
    peer, ours = pair
    pixels, latents = torch.randn(1, 3, 9, 96, 96).clamp(-1, 1), torch.randn(1, 16, 3, 12, 12)

    def peer_encode(x: Tensor) -> Tensor:
        return peer.encode(x).latent_dist.mean

    def peer_decode(z: Tensor) -> Tensor:
        return peer.decode(z, return_dict=False)[0]

    def chunked_decode(z: Tensor) -> Tensor:
        return torch.cat(list(ours.decode_latents(z.split(1, dim=2))), dim=2).clamp(-1, 1)

    encode = forward_pass(peer_encode, pixels)
    decode = forward_pass(peer_decode, latents)
    yield "autoencoder, encode, whole", "diffusers", forward_pass(lambda x: ours.encode(x).mean, pixels), encode, True
    whole = forward_pass(lambda z: ours.decode(z).clamp(-1, 1), latents)
    yield "autoencoder, decode, whole", "diffusers", whole, decode, True
    yield "autoencoder, decode, frame by frame", "diffusers", forward_pass(chunked_decode, latents), decode, True


def measure(threads: int, budget_seconds: float, deadline: float) -> Iterator[Row]:
    """Every row with this many threads."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ceiling = ceiling_flops()
    for source in (autoencoders, transformers):
        for what, peer, ours, theirs, comparable in source():
            if time.monotonic() > deadline:
                return
            (here, there), rounds = in_turn([ours, theirs], budget_seconds)
            flops, peer_flops, difference = flops_of(ours), flops_of(theirs), None
            if comparable:
                one, other = ours(), theirs()
                assert isinstance(one, Tensor)
                assert isinstance(other, Tensor)
                difference = float((one - other).norm() / other.norm())
            yield Row(
                what=what,
                peer=peer,
                threads=threads,
                ours_seconds=here.cpu_seconds,
                peer_seconds=there.cpu_seconds,
                ours_flops=flops,
                peer_flops=peer_flops,
                share_of_ceiling=flops / here.elapsed_seconds / ceiling,
                difference=difference,
                rounds=rounds,
            )


def main() -> None:
    """Measure, print each row at once, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seconds-per-row", type=float, default=8)
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    deadline = time.monotonic() + 60 * chosen.minutes
    machine = {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
    }
    rows: list[Row] = []
    for threads in (1, 2):
        for row in measure(threads, chosen.seconds_per_row, deadline):
            rows.append(row)
            compared = (
                f"ours {row.ours_seconds:7.3f} s  {row.peer} {row.peer_seconds:7.3f} s  x {row.ratio:.2f} an operation"
            )
            print(
                f"{row.what:36} {row.threads} threads  {compared}  {row.share_of_ceiling:5.0%} of the ceiling",
                flush=True,
            )
            found = {
                "machine": machine
                | {"diffusers": version("diffusers"), "capability": torch.backends.cpu.get_cpu_capability()},
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
            }
            chosen.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
