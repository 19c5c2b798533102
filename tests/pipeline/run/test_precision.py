"""A precision that this machine has no instructions for is warned of, with what it costs here."""

import re

import pytest
import torch

from pipeline.run import precision
from pipeline.run.precision import autocast_dtype, slow_precision, warn_of_slow_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("asked", ["bf16", "fp16"])
def test_a_type_without_instructions_is_warned_of_with_the_measured_reason(monkeypatch, asked):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: "flags: avx2 fma")
    monkeypatch.setattr(precision, "_product_seconds", lambda dtype: 1.0 if dtype == torch.float32 else 15.0)
    told = slow_precision(asked, CPU)
    assert told.startswith(f"precision is {asked}, but this CPU has no instructions for it")
    assert "takes 15.0 times as long as in fp32; set precision to auto or fp32" in told


def test_workers_without_a_gpu_are_warned_of_and_others_not(monkeypatch, caplog):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: "flags: avx2 fma")
    warn_of_slow_precision("bf16", gpus_per_worker=1)
    assert not caplog.messages
    warn_of_slow_precision("bf16", gpus_per_worker=0)
    assert "warning: precision is bf16, but this CPU has no instructions for it" in caplog.text


def test_what_the_hardware_can_do_is_not_warned_of(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: "flags: avx512_bf16 avx512_fp16")
    assert [slow_precision(asked, CPU) for asked in ("bf16", "fp16", "fp32", "auto")] == [""] * 4
    assert autocast_dtype("auto", CPU) == torch.bfloat16
    monkeypatch.setattr(precision, "_cpu_flags", lambda: "")
    assert slow_precision("auto", CPU) == slow_precision("fp32", CPU) == ""
    assert slow_precision("bf16", torch.device("cuda")) == ""
    assert autocast_dtype("auto", CPU) is None


def test_the_cost_is_measured_on_this_machine(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: "")
    assert float(re.findall(r"takes ([0-9.]+) times", slow_precision("bf16", CPU))[0]) > 0
