"""Recipes for clusters: against Ray's own schema where there is one, and run under a scheduler that is none."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from testing.commands import TINY
from testing.paths import ROOT
from testing.processes import children_of, free_port, kill_all

RECIPES = ROOT / "recipes"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))


def test_rays_launcher_takes_its_recipe():
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read("ray/cluster.yaml")))


@pytest.mark.parametrize("name", ["cluster.yaml", "job.yaml"])
def test_pods_mount_the_volumes_that_they_name_and_run_our_version_of_ray(name):
    spec = read(f"kuberay/{name}")["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert "shared" in volumes
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_entry_point_of_a_rayjob_is_one(monkeypatch, capsys):
    from launch.supervise import MISSING, main

    execute, python, module, name, *arguments = shlex.split(read("kuberay/job.yaml")["spec"]["entrypoint"])
    assert (execute, python, module, name) == ("exec", "python", "-m", "launch.supervise")
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == MISSING  # the arguments are understood, and the volume is not here
    assert "/shared/my.yaml: there is no such config file" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])
def test_images_copy_what_exists_and_run_as_a_user(name):
    lines = (RECIPES / "docker" / name).read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            *sources, _ = line.removeprefix("COPY ").split()
            assert all((ROOT / source).exists() for source in sources), line
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["ray"]
    assert all(re.search(r":[\w.${}-]+", line) for line in lines if line.startswith("FROM "))


SCHEDULER = {
    "srun": '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": '#!/bin/bash\nif [ "$1" = show ]; then tr , "\\n" <<<"$3"; else echo "$2" >"$FAKE_REQUEUED"; fi\n',
}


@pytest.mark.slow
def test_a_run_on_slurm_saves_before_a_preemption_and_is_queued_again(tmp_path):
    from pipeline.checkpoint.read import open_checkpoint
    from pipeline.train.monitor.events import last_saved_step

    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in SCHEDULER.items():
        (commands / name).write_text(script, encoding="utf-8")
        (commands / name).chmod(0o755)
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(runs=tmp_path / "runs"), encoding="utf-8")
    environment = os.environ | {
        "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "localhost",
        "FAKE_REQUEUED": str(tmp_path / "requeued"),
        "REELFLOW_RAY_PORT": str(free_port()),
        "REELFLOW_DASHBOARD_PORT": str(free_port()),
        "REELFLOW_RAY_DIR": f"/tmp/ray-slurm-{os.getpid()}",
        "REELFLOW_RAY_OPTIONS": f"--num-cpus=2 --object-store-memory=134217728 "
        f"--dashboard-agent-listen-port={free_port()}",
    }
    endless = ["--set", "autoencoder.train.steps=100000"]
    stage_dir = tmp_path / "runs" / "tiny" / "autoencoder"
    with (tmp_path / "log.txt").open("w+") as log:
        process = subprocess.Popen(
            ["bash", str(RECIPES / "slurm" / "run.sbatch"), str(config), *endless],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + 300
            while not (stage_dir.is_dir() and last_saved_step(stage_dir)):
                assert process.poll() is None, (tmp_path / "log.txt").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
                time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0, (tmp_path / "log.txt").read_text()
        finally:
            kill_all(children_of(process.pid))
            process.kill()
    assert (tmp_path / "requeued").read_text() == "42\n"
    assert ": STOPPED" in (tmp_path / "log.txt").read_text()
    assert open_checkpoint(stage_dir).record.step >= 3
