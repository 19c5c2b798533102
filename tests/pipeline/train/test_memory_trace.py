"""Memory of a step from a run without values: as real tensors take it."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.engine.config import ZeroStage
from pipeline.train.memory_plan import GATHERED_AT_ONCE, MemorySettings, worker_memory
from pipeline.train.memory_trace import Moment, StepTrace, TraceOptions, trace_step
from testing.memory import Case, Size, batch, build, measure, predict


class Layer(nn.Module):
    """Two linear layers whose sizes can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1000, 2000, bias=False)
        self.second = nn.Linear(2000, 10, bias=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": self.second(self.first(x)).sum()}


def test_a_step_of_two_layers_is_counted_by_hand():
    rows = 64
    trace = trace_step(Layer, lambda: torch.empty(rows, 1000))
    assert trace.num_trained == 2_000_000 + 20_000
    assert trace.num_frozen == 0
    assert [moment.num_finished for moment in trace.moments] == [0, 20_000, 2_020_000]
    inputs, hidden, output = 4 * rows * 1000, 4 * rows * 2000, 4 * rows * 10
    assert trace.moments[0].tensor_bytes == pytest.approx(inputs + 2 * hidden + 2 * output + 4 * 20_000, rel=0.02)
    # The gradient of the first weight beside the input and the gradient of what it made.
    assert trace.moments[1].tensor_bytes == pytest.approx(inputs + hidden + 4 * 2_000_000, rel=0.02)


def test_what_is_kept_grows_linearly_with_the_clips():
    size = Size(width=64, depth=1, heads=1, clips=1)
    peaks = []
    for clips in (8, 16, 24):
        sized = Size(64, 1, 1, clips)
        peaks.append(trace_step(lambda: build(size), lambda sized=sized: batch(sized)).peak_tensor_bytes)
    assert peaks[2] - peaks[1] == pytest.approx(peaks[1] - peaks[0], rel=5e-3)


def test_half_weights_are_not_cast_again():
    size = Size(width=128, depth=1, heads=2, clips=1)
    casts = TraceOptions(dtype=torch.bfloat16, attention="sdpa")
    halves = TraceOptions(dtype=torch.bfloat16, attention="sdpa", half_weights=True)
    peaks = [trace_step(lambda: build(size), lambda: batch(size), each).peak_tensor_bytes for each in (casts, halves)]
    assert peaks[1] < peaks[0]


TRACE = StepTrace(1000, 100, 500, (500, 500), (Moment(64, 0), Moment(32, 1000)))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_zero_partitions_is_shared_by_the_workers(stage):
    def memory(world: int):
        return worker_memory(TRACE, MemorySettings(stage, world, weight_bytes=4, num_averages=2))

    one, four = memory(1), memory(4)
    assert four.averages == 2 * 4 * 250
    assert (one.optimizer, four.optimizer) == ((8000, 8000) if stage == 0 else (12000, 3000))
    assert one.total >= four.total


def test_gloo_gathers_parameters_into_a_buffer_beside_them():
    trace = StepTrace(1000, 0, 500, (500, 500), (Moment(10**6, 0),))

    def buffers(stage: ZeroStage, world: int, *, is_gpu: bool) -> int:
        settings = MemorySettings(stage, world, weight_bytes=4, num_averages=1, is_gpu=is_gpu)
        return worker_memory(trace, settings).buffers

    assert buffers(3, 2, is_gpu=False) == 4 * 1000
    assert [buffers(3, 1, is_gpu=False), buffers(2, 2, is_gpu=False)] == [0, 0]
    assert buffers(3, 2, is_gpu=True) == buffers(3, 1, is_gpu=True)  # NCCL gathers in place
    many = StepTrace(10**8, 0, 500, (500, 500), (Moment(10**12, 0),))
    settings = MemorySettings(3, 2, weight_bytes=4, num_averages=1, is_gpu=False)
    assert worker_memory(many, settings).buffers == 4 * GATHERED_AT_ONCE


def test_offload_moves_the_state_to_the_host():
    settings = MemorySettings(2, 4, weight_bytes=2, num_averages=1, offload="optimizer")
    memory = worker_memory(TRACE, settings)
    assert (memory.optimizer, memory.averages) == (0, 0)
    assert memory.host == (12 + 4) * 250


LAYOUTS: list[tuple[ZeroStage, str]] = [(0, "all"), (1, "none"), (2, "none"), (2, "all"), (3, "none")]
CASES = [Case("small", stage, checkpointing, 1) for stage, checkpointing in LAYOUTS]


@pytest.fixture(scope="module")
def measured():
    return dict(zip(CASES, measure(CASES), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.stage}-{case.checkpointing}")
def test_the_predicted_peak_is_the_measured_one(measured, case):
    assert predict(case).total == pytest.approx(measured[case], rel=0.1)
