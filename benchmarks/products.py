"""float32 products by MKL and by oneDNN (`pipeline/run/precision.py`), in turn, in one process and one thread.

    python -m benchmarks.products

Rows: a single product, attention and a convolution, then the demo's networks: a training step of the DiT by number of
tokens, a step of sampling, and a training step of the autoencoder, each in fp32 and in bf16, where some products are
still in fp32. The figures are the fastest round of each in CPU time; the error is that of the output against float64.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv3d, linear, scaled_dot_product_attention

from benchmarks.networks import in_turn, training_step
from data.files.publish import publish_text
from launch.config import load_config
from models.autoencoder.build import build_autoencoder
from models.networks.build import build_network
from models.text.bytes import CaptionTokens
from pipeline.run.config import Precision
from pipeline.run.precision import autocast, describe_products
from pipeline.train.tasks.autoencoder_loss import AutoencoderLoss, Clips, PixelBatch

DEMO = load_config(Path("demo"))
CPU = torch.device("cpu")
GRIDS = {256: (4, 16, 16), 2048: (8, 32, 32)}
"""Number of tokens -> latent frames, height and width, for patches of 2 x 2."""
SETTINGS = {"MKL": "highest", "oneDNN": "medium"}
BUDGET_SECONDS = 12.0
RESULT = Path(__file__).parent / "results" / "products.json"


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    mkl_seconds: float
    onednn_seconds: float
    ratio: float
    """How many times as long MKL takes."""
    mkl_error: float | None
    """Norm of the difference to float64 over the norm; None: not computed."""
    onednn_error: float | None


def by(library: str, call: Callable[[], object]) -> Callable[[], object]:
    """The call with products of that library."""

    def run() -> object:
        torch.set_float32_matmul_precision(SETTINGS[library])
        return call()

    return run


def operations() -> Iterator[tuple[str, Callable[..., Tensor], list[Tensor]]]:
    """Single operations on random inputs."""
    yield "linear, 2048 x 256 to 1024", linear, [torch.randn(2048, 256), torch.randn(1024, 256)]
    yield "attention, 4 heads of 64, 1024 tokens", scaled_dot_product_attention, list(torch.randn(3, 2, 4, 1024, 64))
    kernel = torch.randn(64, 32, 3, 3, 3)
    for clips in (1, 2):
        yield f"3D convolution, 32 to 64 channels, {clips} clips", conv3d, [torch.randn(clips, 32, 5, 32, 32), kernel]


def network_steps() -> Iterator[tuple[str, Callable[[], object]]]:
    """Steps of the demo's networks."""
    channels, dit = DEMO.autoencoder.model.latent_channels, DEMO.dit.model
    network = build_network(dit, channels, None)
    bucket, batch_size = DEMO.data.buckets[0], DEMO.dit.train.global_batch
    shape = DEMO.autoencoder.model.latent_shape(bucket.num_frames, bucket.height, bucket.width)
    captions = {
        n: CaptionTokens.encode(["a red circle moves left"] * n, dit.caption_text.max_bytes) for n in (2, 8, batch_size)
    }
    for tokens, grid in GRIDS.items():
        step = training_step(network, torch.randn(2, channels, *grid), torch.rand(2), captions[2])
        yield f"DiT, training step, 2 x {tokens} tokens", step
    step = training_step(network, torch.randn(batch_size, *shape), torch.rand(batch_size), captions[batch_size])
    yield f"DiT, training step of the demo, {batch_size} clips", step

    def sampling_step() -> Tensor:
        with torch.inference_mode():
            return network(torch.randn(8, *shape), torch.rand(8), captions[8])

    yield "DiT, step of sampling 4 clips, guided", sampling_step
    loss = AutoencoderLoss(build_autoencoder(DEMO.autoencoder.model), DEMO.autoencoder.loss)
    for clips in (1, 4):
        pixels = torch.randn(clips, 3, bucket.num_frames, bucket.height, bucket.width).clamp(-1, 1)
        batch = PixelBatch((Clips(pixels, torch.randn(clips, *shape)),))
        yield f"autoencoder, training step, {clips} clips", lambda batch=batch: loss(batch)["total"].backward()


def in_precision(precision: Precision, call: Callable[[], object]) -> Callable[[], object]:
    """The call under autocast."""

    def run() -> object:
        with autocast(precision, CPU):
            return call()

    return run


def measured(what: str, call: Callable[[], object], errors: dict[str, float]) -> Row:
    """The row of one call."""
    (mkl, onednn), _ = in_turn([by(library, call) for library in SETTINGS], BUDGET_SECONDS)
    ratio = mkl.cpu_seconds / onednn.cpu_seconds
    row = Row(what, mkl.cpu_seconds, onednn.cpu_seconds, ratio, errors.get("MKL"), errors.get("oneDNN"))
    told = "".join(f"  {library} {error:.1e}" for library, error in errors.items())
    print(f"{what:48} {row.mkl_seconds:7.4f} s  {row.onednn_seconds:7.4f} s  x {row.ratio:.2f}{told}", flush=True)
    return row


def relative_error(library: str, operation: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """Of an operation on float32 inputs."""
    exact = operation(*(x.double() for x in inputs))
    found = by(library, lambda: operation(*inputs))()
    assert isinstance(found, Tensor)
    return float((found.double() - exact).norm() / exact.norm())


def main() -> None:
    """Measure, print and write the file."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for what, operation, inputs in operations():
        errors = {library: relative_error(library, operation, inputs) for library in SETTINGS}
        rows.append(measured(what, lambda operation=operation, inputs=inputs: operation(*inputs), errors))
    for what, step in network_steps():
        precisions: tuple[Precision, ...] = ("fp32", "bf16")
        rows += [measured(f"{what}, {name}", in_precision(name, step), {}) for name in precisions]
    capability = torch.backends.cpu.get_cpu_capability()
    machine = {"capability": capability, "torch": torch.__version__, "products": describe_products()}
    publish_text(RESULT, json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
