"""The benchmark for GPUs on a CPU, with tiny sizes: every check comes to its end, whatever happens to the others."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from testing.paths import ROOT

PROBE = """
import sys, torch, benchmarks.gpu, benchmarks.gpu_checks
setting = benchmarks.gpu_timing.Setting(torch.device("cpu"), True, 0.0)
for name in {checks}:
    for row in benchmarks.gpu_checks.CHECKS[name](setting):
        assert "error" not in row or "No viable backend" in row["error"], row
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {{"ray", "flash_attn"}}))
"""


def run_benchmark(folder: Path, *options: str) -> tuple[int, list[dict]]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--output", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    written = (folder / "gpu.jsonl").read_text()
    assert done.stdout == written
    return done.returncode, [json.loads(line) for line in written.splitlines()]


def test_each_line_names_its_check_and_device_and_what_is_not_reached_is_said(tmp_path):
    code, lines = run_benchmark(tmp_path, "--minutes", "2", "--only", "machine")
    assert code == 0
    ended = {line["check"]: line["ended"] for line in lines if "ended" in line}
    assert ended == {"machine": "complete"}
    assert {line["device"] for line in lines if "ended" not in line} == {"cpu"}
    assert [line["what"] for line in lines if "what" in line] == ["matrix product", "matrix product", "copy"]
    code, lines = run_benchmark(tmp_path, "--minutes", "0", "--only", "machine")
    assert code == 0
    assert lines == [{"check": "machine", "ended": "not reached", "seconds_left": 0.0}]


@pytest.mark.slow
def test_a_check_that_fails_costs_only_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "diffusers.py").write_text("raise ImportError('a part of it is missing')\n")
    code, lines = run_benchmark(tmp_path, "--minutes", "2", "--only", "wan", "loss_curve")
    assert code == 1
    failed, *others = lines
    assert (failed["check"], failed["ended"], failed["exit_code"]) == ("wan", "failed", 1)
    assert failed["error"][-1] == "ImportError: a part of it is missing"
    assert [line["check"] for line in others] == ["loss_curve"] * len(others)
    assert others[-1]["ended"] == "complete"


@pytest.mark.slow
def test_all_checks_complete_and_load_no_ray(tmp_path):
    """Of the engine too, which on a cluster runs in Ray's workers."""
    checks = ["machine", "attention", "training", "wan", "autoencoder", "loss_curve", "engine"]
    command = [sys.executable, "-c", PROBE.format(checks=checks)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "[]"
