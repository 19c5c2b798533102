"""The tiny run over three hosts that share nothing but an S3-compatible store. One host is lost, then the command's.

    python -m testing.apart_hosts FOLDER

prints what happened when. The run is in the store, and each host has a folder of its own under the path in which runs
work. Host 1 has the command and the store and no workers; hosts 2 and 3 have one worker each, and get shards in parts.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.run.local_folders import local_folder
from pipeline.train.monitor.events import last_saved_step
from testing import store
from testing.commands import TINY
from testing.hosts import Host, hosts
from testing.paths import ROOT
from testing.struck_hosts import SECONDS, Struck

INTERVAL, STEPS, LONG = 10, 60, 240
"""Steps between checkpoints, of the autoencoder and of the DiT."""
SETTINGS = {
    "autoencoder.train.steps": STEPS,
    "autoencoder.train.checkpoint_every_steps": INTERVAL,
    "dit.train.steps": LONG,
    "dit.train.checkpoint_every_steps": INTERVAL,
    "cluster.workers.num_workers": 2,
    "cluster.workers.max_failures": 20,  # until Ray counts a host as lost, workers may be started on it again
}
PLACE = f"s3://{store.BUCKET}/runs"


def working_folder(local_dir: Path) -> Path:
    """The folder of the run below that in which runs work."""
    return local_folder(PLACE, local_dir) / "tiny"


def command(config: Path, settings: Mapping[str, object]) -> list[str]:
    """The command that runs the tiny run."""
    given = {**SETTINGS, **settings}
    sets = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
    return [sys.executable, "-m", "launch", "run", str(config), *sets]


def run_on_one_disk(folder: Path) -> Path:
    """The same run on this machine alone; returns its folder."""
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(runs=folder), encoding="utf-8")
    subprocess.run(command(config, {"runs_dir": folder / "disk"}), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder / "disk" / "tiny"


def strike_apart(folder: Path) -> Struck:
    """Run and strike; returns when the command has ended. The run is then in the folder of host 1.

    The third host is killed, with all that it had, in the training of the autoencoder, and comes back empty. The
    command is killed in the training of the DiT, and all that its host had is lost; it is started again there.
    """
    local_dir = folder / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(runs=local_dir), encoding="utf-8")
    with hosts(3, private=local_dir) as made, (folder / "log.txt").open("w+", encoding="utf-8") as log:
        head, _, third = made
        struck = Struck(working_folder(head.own_folder), folder / "log.txt")
        head.start([sys.executable, "-m", "testing.store", head.address], log)
        struck.wait_until(lambda: struck.num_said(store.FILLED) == 1)
        found_by = store.environment(head.address)
        for number, host in enumerate(made, 1):
            host.join(head, log, num_cpus=0 if host == head else 1, environment=found_by)
            struck.wait_until(lambda number=number: struck.num_said("Ray runtime started") == number)

        struck.begun = time.monotonic()
        shared = {"cluster.address": head.gcs}
        refused = head.start(command(config, shared), log, found_by)
        assert refused.wait(SECONDS) == 1
        assert struck.num_said("is not shared: host2, host3 do not see it") == 1
        struck.mark("the command on host1 is refused, since hosts 2 and 3 do not see its folder")
        assert not [path for path in head.own_folder.rglob("*.mp4") if path.is_file()]

        apart = shared | {"runs_dir": PLACE, "local_dir": local_dir, "cluster.shard_parts": "true"}
        struck.command = head.start(command(config, apart), log, found_by)
        struck.mark("it starts with runs_dir in the store")
        training = struck.run_dir / "autoencoder"
        struck.wait_until(lambda: training.is_dir() and last_saved_step(training) >= INTERVAL)
        _lose(third)
        struck.mark(f"the autoencoder's training has saved step {last_saved_step(training)}: host3 is lost")
        third.join(head, log, environment=found_by)
        struck.wait_until(lambda: struck.num_said("Ray runtime started") == 4)
        struck.mark("host3 is back, empty")
        struck.wait_until(lambda: struck.num_said("train autoencoder: done") == 1)
        struck.mark("the autoencoder is trained")

        training = struck.run_dir / "dit"
        struck.wait_until(lambda: _look(head, folder / "look.txt")[0] > 0)
        assert struck.command is not None
        saved = last_saved_step(training)
        struck.command.kill()
        struck.command.wait(SECONDS)
        _lose_folder(head)
        struck.mark(f"the DiT's training has saved step {saved}: the command is killed, and host1 has lost its folder")
        struck.command = head.start(command(config, apart), log, found_by)
        struck.wait_until(lambda: struck.num_said("train dit: done") == 1)
        struck.mark("the command, started again on host1, has fetched the run and trained the DiT")
        struck.return_code = struck.command.wait(SECONDS)
        struck.mark("the run has ended, with its report")
        _, num_others = _look(head, folder / "look.txt")
        assert num_others == 0, f"{num_others} objects are of no file of the run, or missing"
    return struck


def _lose(host: Host) -> None:
    """Kill a host, with all that its folder held."""
    host.kill()
    _lose_folder(host)


def _lose_folder(host: Host) -> None:
    for path in list(host.own_folder.iterdir()):
        shutil.rmtree(path)


LOOK = """
import sys
from pathlib import PurePosixPath
import fsspec
from pipeline.run.stored_run import stored_run
run = stored_run(sys.argv[1])
named = {} if run is None else {name: file.sha256 for name, file in run.files.items()}
files, root = fsspec.url_to_fs(sys.argv[1] + "/objects")
stored = {PurePosixPath(name).name for name in files.ls(root, detail=False)}
print(sum(name.startswith("dit/checkpoints/") for name in named), len(stored ^ set(named.values())))
"""


def _look(host: Host, output: Path) -> tuple[int, int]:
    """Files of the DiT's checkpoints that the stored run has, and objects that no file has, or that are missing."""
    with output.open("w+", encoding="utf-8") as file:
        looking = host.start([sys.executable, "-c", LOOK, f"{PLACE}/tiny"], file, store.environment(host.address))
        looking.wait(SECONDS)
    checkpoints, others = output.read_text(encoding="utf-8").split()[-2:]
    return int(checkpoints), int(others)


def main() -> None:
    """Run, strike, and print what happened."""
    struck = strike_apart(Path(sys.argv[1]))
    print(f"exit code {struck.return_code}")


if __name__ == "__main__":
    main()
