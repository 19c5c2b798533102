"""Packages that a job brings, installed by pip on a real cluster; what Ray does not take beside a program."""

import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest
from ray.job_submission import JobStatus
from ray.runtime_env import RuntimeEnv

from launch.job_client import connect
from launch.job_package import packed
from launch.jobs import JobOptions, _runtime_env, find_job, logs, submit
from testing.clusters import ray_head
from testing.commands import TINY

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


def test_ray_takes_no_image_beside_a_program():
    """So `submit` has no option for one: the image is that of the cluster. Once this fails, it could have one."""
    with pytest.raises(ValueError, match=r"'image_uri' field currently cannot be used together .*working_dir"):
        RuntimeEnv(image_uri="registry.example.org/reelflow:gpu", working_dir="gcs://program.zip")


def write_wheel(folder: Path) -> None:
    """A package `told` of one module, as pip installs it."""
    info = "told-1.5.dist-info"
    files = {
        "told.py": "VALUE = 'brought along'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: told\nVersion: 1.5\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / "told-1.5-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


def small_environment(folder: Path) -> str:
    """The Python of an environment that sees this one's packages; Ray copies the one that it runs in."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    here = folder / "lib" / version / "site-packages" / "beside.pth"
    here.write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return str(folder / "bin" / "python")


ASK = """
import ray, told

ray.init(log_to_driver=False)

def ask():
    import told
    return told.VALUE

print("driver:", told.VALUE)
print("worker:", ray.get(ray.remote(ask).remote()))
"""


@pytest.mark.campaign
def test_packages_of_a_list_are_there_for_driver_and_workers(tmp_path, monkeypatch):
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("launch.job_client.ANSWER_SECONDS", 60)
    write_wheel(tmp_path)
    needed, config = tmp_path / "needed.txt", tmp_path / "tiny.yaml"
    needed.write_text(f"--no-index\n--find-links {tmp_path}\ntold==1.5\n", encoding="utf-8")
    config.write_text(TINY.format(runs=tmp_path / "runs"), encoding="utf-8")
    options = JobOptions(pip=needed)

    with ray_head(small_environment(tmp_path / "environment"), TOKEN) as address:
        client = connect(address)
        with packed(None) as package:
            (package / "ask.py").write_text(ASK, encoding="utf-8")
            ask = client.submit_job(entrypoint="python ask.py", runtime_env=_runtime_env(package, "ask", options))
        job = submit("shard", config, (), address, options).job_id
        told = client.get_job_info(job).runtime_env
        assert told is not None
        assert told["pip"]["packages"] == needed.read_text().splitlines()
        assert str(told["working_dir"]).startswith("gcs://")
        deadline = time.monotonic() + 600
        while not JobStatus(client.get_job_status(ask)).is_terminal() or not find_job(client, job).is_over:
            assert time.monotonic() < deadline, client.get_job_logs(ask) + logs(job, address)
            time.sleep(0.5)
        assert "driver: brought along\nworker: brought along\n" in client.get_job_logs(ask)
        assert find_job(client, job).status == "SUCCEEDED", logs(job, address)
