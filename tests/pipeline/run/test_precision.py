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


@pytest.fixture
def products():
    """Whatever a test chooses, the next one computes as all do."""
    yield
    precision.prepare_to_compute(CPU)


AMD = "vendor_id : AuthenticAMD\nflags : avx2 avx512f avx512_bf16"


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize(
    ("flags", "device", "error", "chosen"),
    [
        (AMD, "cpu", 4e-7, "medium"),
        (AMD, "cpu", 3e-3, "highest"),  # products in bfloat16
        (AMD, "cuda", 4e-7, "highest"),  # where the same setting of torch means TF32
        (AMD + " amx_bf16 amx_tile", "cpu", 4e-7, "highest"),
        (AMD.replace("avx512f", ""), "cpu", 4e-7, "highest"),
        (AMD.replace("AuthenticAMD", "GenuineIntel"), "cpu", 4e-7, "highest"),
        ("", "cpu", 4e-7, "highest"),
    ],
)
def test_onednn_computes_products_where_it_is_better_and_as_exact(monkeypatch, flags, device, error, chosen):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(precision, "_onednn_error", lambda: error)
    precision.prepare_to_compute(torch.device(device))
    assert torch.get_float32_matmul_precision() == chosen


def test_what_computes_products_is_said(monkeypatch):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: AMD)
    monkeypatch.setattr(precision, "_onednn_error", lambda: 4e-7)
    assert precision.describe_products() == "fp32 products by oneDNN: relative error 4.0e-07"
    monkeypatch.setattr(precision, "_onednn_error", lambda: 3e-3)
    told = "fp32 products by oneDNN: relative error 3.0e-03 is too large, so they are by torch's default library"
    assert precision.describe_products() == told
    monkeypatch.setattr(precision, "_cpu_flags", lambda: "")
    assert precision.describe_products() == "fp32 products by torch's default library"


@pytest.mark.usefixtures("products")
def test_products_have_the_precision_of_float32_whatever_was_chosen():
    torch.set_float32_matmul_precision("highest")
    random, number = torch.get_rng_state(), torch.get_num_threads()
    assert precision._onednn_error.__wrapped__() == precision._onednn_error.__wrapped__()  # equal in every process
    assert torch.get_float32_matmul_precision() == "highest"
    precision.prepare_to_compute(CPU)
    assert max(precision._product_error(*sizes) for sizes in precision.CHECKED_PRODUCTS) < precision.MAX_PRODUCT_ERROR
    assert torch.equal(random, torch.get_rng_state())
    assert torch.get_num_threads() == number


def test_setting_the_number_of_threads():
    number = torch.get_num_threads()
    precision.prepare_to_compute(CPU, number + 1)
    assert torch.get_num_threads() == number + 1
    precision.prepare_to_compute(CPU, number)
    assert torch.get_num_threads() == number
