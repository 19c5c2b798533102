"""The tiny run over three hosts, of which one is cut off in training and killed in sampling.

    python -m testing.struck_hosts FOLDER [--store]

prints what happened when. With --store the videos and the prompts are in an S3-compatible store on the first host.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.sample.outputs import SAMPLES_NAME
from pipeline.train.monitor.events import last_saved_step, read_events
from testing import store
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
QUICK = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "6"}
"""Ray may count a lost host for a moment, and waits so long for workers on it before it starts with what is there."""
SECONDS = 300.0
"""The longest that anything is waited for."""


@dataclass
class Struck:
    """A run, and what happened to it."""

    run_dir: Path
    log: Path
    timeline: list[tuple[float, str]] = field(default_factory=list)
    """Seconds since the command was started, and what happened."""
    begun: float = 0.0
    command: "subprocess.Popen[str] | None" = None
    return_code: int | None = None
    trained_on: tuple[int, ...] = ()
    """Training workers on each host before one was cut off."""
    sampled_on: tuple[int, ...] = ()
    """Sampling actors on each host before one was killed."""

    def mark(self, what: str) -> None:
        """Note and print that something happened now."""
        self.timeline.append((round(time.monotonic() - self.begun, 1), what))
        print(f"{self.timeline[-1][0]:7.1f} s  {what}", flush=True)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Poll.

        Raises:
            TimeoutError: it does not come true, or the command has ended; shows the log.
        """
        deadline = time.monotonic() + SECONDS
        while not condition():
            has_ended = self.command is not None and self.command.poll() is not None and not condition()
            if has_ended or time.monotonic() > deadline:
                raise TimeoutError(f"{self.timeline}\n{self.log.read_text(encoding='utf-8')[-5000:]}")
            time.sleep(0.05)

    def num_clips(self) -> int:
        """Clips that are listed."""
        path = self.run_dir / "samples" / SAMPLES_NAME
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def num_said(self, text: str) -> int:
        """How often the log says something."""
        return self.log.read_text(encoding="utf-8").count(text)


def strike(folder: Path, *, from_store: bool = False) -> Struck:
    """Run and strike; returns when the command has ended.

    Args:
        from_store: the videos and the prompts are in an S3-compatible store.
    """
    struck = Struck(folder / "tiny", folder / "log.txt")
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(runs=folder), encoding="utf-8")
    with hosts(3) as made, struck.log.open("w+", encoding="utf-8") as log:
        head, second, third = made
        settings, found_by = dict(RUN), dict[str, str]()
        if from_store:
            head.start([sys.executable, "-m", "testing.store", head.address], log)
            struck.wait_until(lambda: struck.num_said(store.FILLED) == 1)
            settings |= {"data.source": store.TABLE, "sample.prompts": store.PROMPTS}
            found_by = store.environment(head.address)
        for number, host in enumerate(made, 1):
            host.join(head, log, num_cpus=0 if host == head else 1, environment=found_by)
            struck.wait_until(lambda number=number: struck.num_said("Ray runtime started") == number)
        command = [sys.executable, "-m", "launch", "run", str(config), "--set", f"cluster.address={head.gcs}"]
        command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        struck.begun = time.monotonic()
        struck.command = head.start(command, log, QUICK | found_by)
        struck.mark("the command starts on host1; two workers have room, one on host2 and one on host3")

        training = struck.run_dir / "autoencoder"
        struck.wait_until(lambda: training.is_dir() and last_saved_step(training) >= INTERVAL)
        struck.trained_on = _count(made, "RayTrainWorker")
        third.cut_off()
        struck.mark(f"the autoencoder's training has saved step {last_saved_step(training)}: host3 is cut off")
        with_lost = second.processes("RayTrainWorker")
        struck.wait_until(lambda: not any(process.is_running() for process in with_lost))
        struck.mark("the loss is noticed: the worker on host2 is stopped")
        struck.wait_until(lambda: sum(event.event == "started" for event in read_events(training)) == 2)
        struck.mark(f"the training goes on with one worker: {read_events(training)[-1].note}")
        third.kill()
        third.reconnect()
        third.join(head, log, environment=found_by)
        struck.wait_until(lambda: struck.num_said("Ray runtime started") == 4)
        struck.mark("host3 is back, with Ray started anew")

        struck.wait_until(lambda: struck.num_clips() >= 1 and bool(third.processes("SamplerActor")))
        struck.sampled_on = _count(made, "SamplerActor")
        struck.mark(f"{struck.num_clips()} clips are listed: host3 is killed")
        third.kill()
        struck.wait_until(lambda: struck.num_said("another one does its work again") >= 1)
        struck.mark("the loss is noticed: what host3 had in hand goes to the actor on host2")
        struck.wait_until(lambda: struck.num_said("sample: done") == 1)
        struck.mark(f"all {struck.num_clips()} clips are made")
        struck.return_code = struck.command.wait(SECONDS)
        struck.mark("the run has ended, and its report is written")
    return struck


def _count(made: list[Host], title: str) -> tuple[int, ...]:
    return tuple(len(host.processes(title)) for host in made)


def main() -> None:
    """Run, strike, and print what happened."""
    struck = strike(Path(sys.argv[1]), from_store="--store" in sys.argv[2:])
    print(f"exit code {struck.return_code}; workers by host {struck.trained_on}, then {struck.sampled_on}")


if __name__ == "__main__":
    main()
