"""The attention kernels of this CPU (`models/attention/backends.py`), in turn, in one process and one thread.

    python -m benchmarks.attention

Rows: a shape and a type, forward, or forward and backward, with half of the keys masked or with none; every kernel that
takes the call. The figures are the fastest round of each in CPU time, and how many times as long sdpa takes; the error
is that of the output against float64.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.networks import in_turn
from data.files.publish import publish_text
from models.attention.backends import BACKENDS, Backend, cpu_multiplies_in
from models.attention.call import Call

SHAPES = [  # samples, queries, keys, heads, channels of a head
    (4, 256, 256, 4, 64),
    (2, 1024, 1024, 4, 64),
    (2, 2048, 2048, 4, 64),
    (1, 8192, 8192, 4, 64),
    (1, 2048, 2048, 12, 128),
    (1, 4096, 512, 12, 128),
]
DTYPES = (torch.float32, torch.bfloat16)
BUDGET_SECONDS = 2.0
RESULT = Path(__file__).parent / "results" / "attention.json"


@dataclass(frozen=True)
class Row:
    """One kernel on one call."""

    call: str
    kernel: str
    seconds: float
    gflops: float
    """10^9 operations per second of the products of the definition: two forward, and four more backward."""
    sdpa_takes: float
    """How many times as long sdpa takes."""
    error: float
    """Norm of the difference to float64 over the norm, of the output."""


def forward(backend: Backend, tensors: list[Tensor], mask: Tensor | None) -> Callable[[], Tensor]:
    """The output, without a graph for gradients."""
    query, key, value = (x.detach() for x in tensors)
    return lambda: backend.run(query, key, value, mask)


def training(backend: Backend, tensors: list[Tensor], mask: Tensor | None) -> Callable[[], object]:
    """Output and gradients."""
    query, key, value = tensors
    upstream = torch.randn_like(query)
    return lambda: torch.autograd.grad(backend.run(query, key, value, mask), tensors, upstream)


def rows_of(shape: tuple[int, int, int, int, int], dtype: torch.dtype, mask: Tensor | None) -> list[Row]:
    """Every kernel that takes the call, forward and in training."""
    batch, num_queries, num_keys, heads, channels = shape
    tensors = [
        torch.randn(batch, n, heads, channels).to(dtype).requires_grad_() for n in (num_queries, num_keys, num_keys)
    ]
    query, key, value = tensors
    call = Call.of(query, key, value, "full" if mask is None else "masked")
    taking = [backend for backend in BACKENDS if backend.why_not(call) is None]
    exact = forward(BACKENDS[-1], [x.double() for x in tensors], mask)()
    found = []
    for what, prepare, products in (("forward", forward, 2), ("forward and backward", training, 6)):
        timed, _ = in_turn([prepare(backend, tensors, mask) for backend in taking], BUDGET_SECONDS)
        by_sdpa = timed[-1].cpu_seconds
        for backend, time in zip(taking, timed, strict=True):
            out = forward(backend, tensors, mask)()
            error = float((out.double() - exact).norm() / exact.norm())
            operations = 2 * products * batch * heads * num_queries * num_keys * channels
            name = f"{what}, {'x'.join(map(str, shape))}, {str(dtype)[6:]}, {call.form}"
            seconds = time.cpu_seconds
            found.append(Row(name, backend.name, seconds, operations / seconds / 1e9, by_sdpa / seconds, error))
            print(f"{name:66} {backend.name:8} {seconds:8.4f} s  x {by_sdpa / seconds:.2f}  {error:.1e}", flush=True)
    return found


def main() -> None:
    """Measure, print and write the file."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for shape in SHAPES:
        for dtype in DTYPES:
            rows += rows_of(shape, dtype, None)
        mask = (torch.arange(shape[2]) < shape[2] // 2).expand(shape[0], -1)
        rows += rows_of(shape, torch.bfloat16, mask)
    machine = {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "products in bfloat16": cpu_multiplies_in(torch.bfloat16),
        "torch": torch.__version__,
    }
    publish_text(RESULT, json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
