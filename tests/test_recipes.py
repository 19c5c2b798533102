"""Recipes for clusters: against published schemas and a linter, and run under a scheduler that is none."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from testing.commands import TINY
from testing.paths import ROOT
from testing.processes import children_of, free_port, kill_all

RECIPES, SCHEMAS = ROOT / "recipes", ROOT / "tests" / "golden"
KUBERNETES = "1.33"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))


def test_rays_launcher_takes_its_recipe():
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read("ray/cluster.yaml")))


def check_resource(document: dict[str, Any], kind: str) -> None:
    """As KubeRay and Kubernetes check it.

    Raises:
        ValidationError: it has a field that they do not know, or one of another type.
    """
    schema = json.loads((SCHEMAS / "kuberay.json").read_text(encoding="utf-8"))
    Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]}).validate(document)
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize(("name", "kind"), [("cluster.yaml", "RayCluster"), ("job.yaml", "RayJob")])
def test_kuberay_takes_its_recipes_and_nothing_misspelt(name, kind):
    check_resource(read(f"kuberay/{name}"), kind)
    for place, field, told in (
        ([], "specs", "'specs' was unexpected"),
        (["spec"], "submissionMod", "'submissionMod' was unexpected"),
        (["cluster", "workerGroupSpecs", 0], "minReplica", "'minReplica' was unexpected"),
        (["cluster", "headGroupSpec", "template", "spec"], "nodeSelectors", "'nodeSelectors' was unexpected"),
        (["cluster", "headGroupSpec", "template", "spec", "containers", 0], "volumeMount", "'volumeMount' was unexp"),
    ):
        document = read(f"kuberay/{name}")
        part: Any = document
        for key in place:
            part = part["spec"].get("rayClusterSpec", part["spec"]) if key == "cluster" else part[key]
        part[field] = "x"
        with pytest.raises(ValidationError, match=told):
            check_resource(document, kind)
    document = read(f"kuberay/{name}")
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    cluster["headGroupSpec"]["rayStartParams"] = {"num-cpus": 0}
    with pytest.raises(ValidationError, match="0 is not of type 'string'"):
        check_resource(document, kind)


def test_skypilot_takes_its_recipe_and_nothing_misspelt():
    task = Draft202012Validator(json.loads((SCHEMAS / "skypilot.json").read_text(encoding="utf-8")))
    task.validate(read("skypilot/run.yaml"))
    for wrong, told in (
        ({"num_node": 2}, "'num_node' was unexpected"),
        ({"resources": {"spot": True}}, "'spot' was unexpected"),
        ({"file_mounts": {"/shared": {"mode": "CACHED"}}}, "is not valid under any of the given schemas"),
        ({"envs": {"A-B": "x"}}, "'A-B' does not match"),
    ):
        with pytest.raises(ValidationError, match=told):
            task.validate(read("skypilot/run.yaml") | wrong)


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
    (user,) = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert f"useradd --create-home --uid {user} ray" in "\n".join(lines)


def test_the_linter_has_nothing_to_say_of_the_images(tmp_path):
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert linter, "hadolint is missing; it is part of the extra `dev`"
    files = sorted(RECIPES.glob("docker/Dockerfile.*"))
    done = subprocess.run([linter, "--no-color", *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    unpinned = tmp_path / "Dockerfile"
    unpinned.write_text("FROM python\nRUN apt-get install g++\n", encoding="utf-8")
    found = subprocess.run([linter, "--no-color", unpinned], capture_output=True, text=True)
    assert found.returncode == 1
    assert "DL3006" in found.stdout


def test_recipes_start_no_cluster_without_a_token():
    """Nor a dashboard that other machines reach."""
    starts = 0
    for path in sorted(RECIPES.rglob("*")):
        if path.is_dir():
            continue
        text = path.read_text(encoding="utf-8")
        for line in text.replace("\\\n", " ").splitlines():
            if "ray start --head" in line and not line.lstrip().startswith("#"):
                starts += 1
                assert "RAY_AUTH_MODE=token" in text, path
                assert "--dashboard-host=127.0.0.1" in line or "--dashboard-host" not in line, line
        if path.parent.name == "kuberay":
            assert "mode: token" in text
        assert "0.0.0.0" not in text, path
    assert starts == 3


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
    endless = ["--set", "autoencoder.train.steps=100000", "--set", "cluster.workers.num_workers=1"]
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
