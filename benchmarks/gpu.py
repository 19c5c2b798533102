"""What has to be seen on a GPU, the most valuable first, within a budget of minutes.

    python -m benchmarks.gpu --minutes 10
    python -m benchmarks.gpu --device cpu --tiny --minutes 5

`benchmarks/GPU.md` says what a bare machine needs, and what the lines mean. Each check runs in a process of its own:
one that fails, hangs or breaks the state of the GPU costs only itself. Every line of JSON is written to
DIR/gpu.jsonl and printed as soon as it is measured. Nothing here imports Ray.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NAME = "gpu.jsonl"
LEAST_SECONDS = 10.0
"""Less than this is not worth the start of a process."""
GRACE_SECONDS = 10.0
ERROR_LINES = 8


@dataclass(frozen=True)
class Check:
    """A function of `benchmarks.gpu_checks`."""

    name: str
    most_seconds: float
    """On a GPU; what it leaves goes to the checks after it."""


CHECKS = (
    Check("machine", 30),
    Check("tests", 120),
    Check("attention", 60),
    Check("training", 140),
    Check("wan", 130),
    Check("autoencoder", 45),
    Check("loss_curve", 45),
    Check("engine", 45),
)


def run_check(check: Check, options: list[str], seconds: float) -> Iterator[dict[str, Any]]:
    """Its lines as they come, and one about how it ended."""
    command = [sys.executable, "-m", "benchmarks.gpu_checks", check.name, f"--seconds={seconds:.0f}", *options]
    begin, num_lines = time.monotonic(), 0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        watchdog = threading.Timer(seconds + GRACE_SECONDS, process.kill)
        watchdog.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"'):  # libraries print too
                num_lines += 1
                yield json.loads(line)
        code = process.wait()
        watchdog.cancel()
        ended: dict[str, Any] = {"ended": "complete", "seconds": round(time.monotonic() - begin, 1), "lines": num_lines}
        if code:
            errors.seek(0)
            ended["ended"] = f"killed after {seconds + GRACE_SECONDS:.0f} s" if code < 0 else "failed"
            ended |= {"exit_code": code, "error": errors.read().splitlines()[-ERROR_LINES:]}
    yield ended


def run(checks: list[Check], options: list[str], deadline: float) -> Iterator[dict[str, Any]]:
    """The lines of all checks; those for which no time is left get a line that says so."""
    for check in checks:
        left = deadline - time.monotonic() - GRACE_SECONDS
        if left < LEAST_SECONDS:
            yield {"check": check.name, "ended": "not reached", "seconds_left": round(max(0.0, left), 1)}
            continue
        for line in run_check(check, options, min(check.most_seconds, left)):
            yield {"check": check.name} | line


def main() -> None:
    """Run the checks; the exit status is 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU computes in seconds")
    parser.add_argument("--only", nargs="+", choices=[check.name for check in CHECKS], help="these checks alone")
    chosen = parser.parse_args()
    options = [f"--device={chosen.device}", *(["--tiny"] if chosen.tiny else [])]
    checks = [check for check in CHECKS if chosen.only is None or check.name in chosen.only]
    chosen.output.mkdir(parents=True, exist_ok=True)
    failed = False
    with (chosen.output / NAME).open("w", encoding="utf-8") as file:
        for line in run(checks, options, time.monotonic() + 60 * chosen.minutes):
            text = json.dumps(line)
            file.write(text + "\n")
            file.flush()
            print(text, flush=True)
            failed = failed or "exit_code" in line
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
