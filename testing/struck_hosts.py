"""The tiny run over three hosts, of which one is cut off in training and killed in sampling.

    python -m testing.struck_hosts FOLDER

prints what happened when.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.sample.outputs import SAMPLES_NAME
from pipeline.train.monitor.events import last_saved_step, read_events
from testing.commands import TINY
from testing.hosts import Host, hosts

STEPS, INTERVAL = 120, 10
RUN = {
    "autoencoder.train.steps": STEPS,
    "autoencoder.train.checkpoint_every_steps": INTERVAL,
    "sample.batch": 2,
    "sample.steps": 8,
    "cluster.workers.min_workers": 1,
}
QUICK = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"}
"""Ray may count a lost host for a moment, and waits so long for workers on it before it starts with what is there."""
SECONDS = 180.0
"""The longest that anything is waited for."""


@dataclass
class Struck:
    """A run, and what happened to it."""

    run_dir: Path
    log: Path
    timeline: list[tuple[float, str]] = field(default_factory=list)
    """Seconds since the command was started, and what happened."""
    begun: float = 0.0
    return_code: int | None = None
    trained_on: tuple[int, ...] = ()
    """Training workers on each host before one was cut off."""
    sampled_on: tuple[int, ...] = ()
    """Sampling actors on each host before one was killed."""

    def mark(self, what: str) -> None:
        """Note that something happened now."""
        self.timeline.append((round(time.monotonic() - self.begun, 1), what))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Poll.

        Raises:
            TimeoutError: it does not come true; shows the log.
        """
        deadline = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.timeline}\n{self.log.read_text(encoding='utf-8')[-5000:]}")
            time.sleep(0.05)

    def num_clips(self) -> int:
        """Clips that are listed."""
        path = self.run_dir / "samples" / SAMPLES_NAME
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def num_started(self, text: str) -> int:
        """How often the log says something."""
        return self.log.read_text(encoding="utf-8").count(text)


def strike(folder: Path) -> Struck:
    """Run and strike; returns when the command has ended."""
    struck = Struck(folder / "tiny", folder / "log.txt")
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(runs=folder), encoding="utf-8")
    with hosts(3) as made, struck.log.open("w+", encoding="utf-8") as log:
        head, _, third = made
        for number, host in enumerate(made, 1):
            host.join(head, log, num_cpus=0 if host == head else 1)
            struck.wait_until(lambda number=number: struck.num_started("Ray runtime started") == number)
        command = [sys.executable, "-m", "launch", "run", str(config), "--set", f"cluster.address={head.gcs}"]
        command += [part for name, value in RUN.items() for part in ("--set", f"{name}={value}")]
        struck.begun = time.monotonic()
        process = head.start(command, log, QUICK)
        struck.mark("the command starts on host1; two workers have room, one on host2 and one on host3")

        training = struck.run_dir / "autoencoder"
        struck.wait_until(lambda: training.is_dir() and last_saved_step(training) >= INTERVAL)
        struck.trained_on = _count(made, "RayTrainWorker")
        third.cut_off()
        struck.mark(f"the autoencoder's training has saved step {last_saved_step(training)}: host3 is cut off")
        struck.wait_until(lambda: sum(event.event == "started" for event in read_events(training)) == 2)
        struck.mark(f"the training goes on with one worker: {read_events(training)[-1].note}")
        third.kill()
        third.reconnect()
        third.join(head, log)
        struck.wait_until(lambda: struck.num_started("Ray runtime started") == 4)
        struck.mark("host3 is back, with Ray started anew")

        struck.wait_until(lambda: struck.num_clips() >= 1 and bool(third.processes("SamplerActor")))
        struck.sampled_on = _count(made, "SamplerActor")
        third.kill()
        struck.mark(f"{struck.num_clips()} clips are listed: host3 is killed")
        struck.wait_until(lambda: process.poll() is not None)
        struck.return_code = process.returncode
        struck.mark(f"the run has ended, with {struck.num_clips()} clips and its report")
    return struck


def _count(made: list[Host], title: str) -> tuple[int, ...]:
    return tuple(len(host.processes(title)) for host in made)


def main() -> None:
    """Print the timeline."""
    struck = strike(Path(sys.argv[1]))
    for seconds, what in struck.timeline:
        print(f"{seconds:7.1f} s  {what}")
    print(f"exit code {struck.return_code}; workers by host {struck.trained_on}, then {struck.sampled_on}")


if __name__ == "__main__":
    main()
