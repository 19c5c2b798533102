"""Jobs on a real Ray cluster with a real dashboard: submit, follow, status, stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from data.dataset.manifest import read_manifest
from data.files.jsonl import read_jsonl
from launch import job_client
from launch.cluster import ClusterError
from launch.config import load_config
from launch.job_client import EntryResources, TokenError, asks_for_token, connect
from launch.job_environment import JobEnvironmentError
from launch.job_package import MAX_BYTES, PACKAGES, ShippedError, packed, shipped_files
from launch.jobs import (
    NO_AGENT,
    Job,
    JobOptions,
    Submitted,
    _runtime_env,
    absolute_paths,
    find_job,
    list_jobs,
    logs,
    resume,
    status,
    stop,
    submit,
)
from launch.overrides import ConfigError
from launch.supervise import RESTARTS_NAME, Restart
from pipeline.checkpoint.read import open_checkpoint
from pipeline.run.lock import Holder
from pipeline.train.monitor.events import last_saved_step, read_events
from testing.clusters import ray_head
from testing.commands import TINY, launch, launch_here
from testing.paths import ROOT
from testing.processes import free_port


def test_a_job_is_told_places_that_do_not_depend_on_where_it_was_submitted():
    mix = "data.mix={a: {source: x/*.mp4}, b: {source: s3://bucket/y}, c: {source: synthetic}}"
    sources = {name: part.source for name, part in absolute_paths(load_config(Path("demo"), [mix])).data.mix.items()}
    assert sources == {"a": str(Path("x/*.mp4").absolute()), "b": "s3://bucket/y", "c": "synthetic"}
    names = ("runs_dir", "data.captions", "encode.text.folder", "dit.train.start_from", "dit.train.cache.folder")
    names += ("autoencoder.train.cache.folder", "sample.prompts", "sample.text_encoder")
    given = [f"{name}=x/{name}" for name in names]
    given += [f"{section}.train.cache.limit_gib=1" for section in ("dit", "autoencoder")]
    told = absolute_paths(load_config(Path("demo"), given))
    for name in names:
        assert Path(attrgetter(name)(told)) == Path(f"x/{name}").absolute()


SILENT_SECONDS = job_client.ANSWER_SECONDS  # the product's, which the tests below raise
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


@pytest.fixture(scope="module")
def address():
    """A cluster of one node with two CPUs."""
    with ray_head(sys.executable, TOKEN) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def _token():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TOKEN.items():
            patch.setenv(name, value)
        patch.setattr("launch.job_client.ANSWER_SECONDS", 60)  # other tests keep this machine busy
        yield


@contextmanager
def web_server(answers: Mapping[str, tuple[int, bytes]]) -> Iterator[str]:
    """The address of a server that gives an answer (status and body) for each path, or that of the path ""."""

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status_code, body = answers.get(self.path, answers[""])
            self.send_response(status_code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names them
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        poll_seconds = 0.01  # until the end is noticed
        threading.Thread(target=server.serve_forever, args=(poll_seconds,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def version(number: str) -> dict[str, tuple[int, bytes]]:
    """What a dashboard answers to the question for Ray's version."""
    return {"/api/version": (200, f'{{"version": "4", "ray_version": "{number}", "ray_commit": "x"}}'.encode())}


RAY_VERSION = ray.__version__
VERSION = version(RAY_VERSION)


def ended(job_id: str, address: str) -> str:
    """The status in the end of a job that is asked to stop."""
    return [job.status for job in stop(job_id, address)][-1]


def wait_for(job_id: str, address: str, seconds: float = 240) -> str:
    """The status of a job once it has ended by itself."""
    deadline, client = time.monotonic() + seconds, connect(address)
    while not (job := find_job(client, job_id)).is_over:
        assert time.monotonic() < deadline, logs(job_id, address)
        time.sleep(0.5)
    return job.status


def test_a_cluster_that_asks_for_no_token_is_refused(tmp_path):
    """What stands for it here answers a request without a token, as such a cluster does."""
    with web_server({**VERSION, "": (200, b"[]")}) as address:
        assert not asks_for_token(address)
        with pytest.raises(TokenError, match=r"asks for no token: whoever reaches that port .*RAY_AUTH_MODE=token"):
            submit("shard", Path("demo"), [f"runs_dir={tmp_path}"], address)


@pytest.mark.parametrize("answer", [(200, b"<html>"), (200, b"{}"), (200, b"[]"), (404, b"no"), (500, b""), (302, b"")])
def test_another_web_server_is_no_cluster(answer):
    told = rf"no Ray dashboard answers at http://127\S+ \(what answers there, with status {answer[0]}, is another"
    with web_server({"": answer}) as address:
        for command in (asks_for_token, lambda place: status("job", place), lambda place: list(stop("job", place))):
            with pytest.raises(ClusterError, match=told):
                command(address)


def test_an_answer_without_the_fields_of_ray_is_refused():
    for body in (b"{}", b"no", b"[]"):
        with web_server({**VERSION, "": (200, body)}) as address:
            for command in (status, ended):
                with pytest.raises(ClusterError, match="the cluster gave no answer about the job 'job'"):
                    command("job", address)
        answers = {"/api/version": (200, body), "": (401, b"")}
        with (
            web_server(answers) as address,
            pytest.raises(ClusterError, match="no Ray dashboard answers at http://127"),
        ):
            status("job", address)


@pytest.mark.parametrize("token", ["secret\nsecret", "secret\x00", "secret café", "secret secret"])
def test_what_is_no_token_is_refused_without_showing_it(tmp_path, monkeypatch, token):
    file = tmp_path / "token"
    file.write_bytes(token.encode())
    with web_server({**VERSION, "": (401, b"")}) as address:
        for variable, value, place in (
            ("RAY_AUTH_TOKEN", token, "RAY_AUTH_TOKEN"),
            ("RAY_AUTH_TOKEN_PATH", file, file),
        ):
            if "\0" in str(value):
                continue  # no variable can hold it
            monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
            monkeypatch.setenv(variable, str(value))
            with pytest.raises(TokenError, match=f"what {place} holds is no token, with white space or") as caught:
                status("job", address)
            assert "secret" not in str(caught.value)
        file.write_bytes(b"\xff\xfe")
        with pytest.raises(TokenError, match="token holds no token, since it is not UTF-8 text"):
            status("job", address)
        file.write_bytes(b"\n")
        with pytest.raises(TokenError, match="there is none in RAY_AUTH_TOKEN or"):
            status("job", address)


def test_a_cluster_that_asks_for_a_token_says_where_to_find_it(address, tmp_path, monkeypatch):
    assert asks_for_token(address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(TokenError, match=r"refuses the token that was found here: `ray get-auth-token`"):
        submit("shard", Path("demo"), [f"runs_dir={tmp_path}"], address)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(TokenError, match=rf"none in RAY_AUTH_TOKEN or {tmp_path / 'none'}: `ray get-auth-token`"):
        submit("shard", Path("demo"), [f"runs_dir={tmp_path}"], address)
    (tmp_path / "none").write_text(TOKEN["RAY_AUTH_TOKEN"] + "\n")
    with pytest.raises(ConfigError, match="there is no job 'nothing'"):
        status("nothing", address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", f" {TOKEN['RAY_AUTH_TOKEN']}\n")
    with pytest.raises(ConfigError, match="there is no job 'nothing'"):
        status("nothing", address)


NO_PROGRAM = [
    *(".env", "my/videos/a.mp4", "runs/x/config.yaml", "data/.env", "pipeline/clip.webm", "models/weights", "q?/a.py"),
    *("videos [2024]/a.mp4", "trail /a.mp4", "my\\back/a.mp4", "#x/a.mp4", "!data/a.py", "clips*/a.mp4", "a\nb/c.py"),
    *("data/videos [2024]/a.py", "data/trail /a.py", "data/keys.yaml", "data/a b.py", "launch/presets/key.pem"),
    *("data/__pycache__/clip.cpython-311.pyc", "models/x.py/a.mp4", "other/data/clip.py", "launch/.a/b.py"),
]
PROGRAM = {"data/clip.py", "data/files/a.py", "data/py.typed", "launch/presets/demo.yaml", "pipeline/a/b/c.py"}


def test_only_the_program_is_shipped(tmp_path):
    folder = tmp_path / "checkout"
    for name in (*NO_PROGRAM, *PROGRAM):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    outside = tmp_path / "videos"
    outside.mkdir()
    (outside / "a.py").write_text("x")
    (folder / "data" / "linked").symlink_to(outside)
    (folder / "data" / "linked.py").symlink_to(outside / "a.py")
    assert {file.name for file in shipped_files(folder)} == PROGRAM
    with packed("name: x\n", folder) as package:
        held = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
        assert held == PROGRAM | {"job.yaml"}
    assert not package.exists()


def test_the_whole_program_is_shipped():
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    names = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert len(names) > 100
    assert names <= {file.name for file in shipped_files()}
    assert sum(file.size for file in shipped_files()) < MAX_BYTES / 8


def test_too_much_to_ship_is_refused_by_name(tmp_path):
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "large.py").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ShippedError, match=r"has 64.0 MiB, more than the 64 MiB .* are data/large.py \(64.0 MiB\)"):
        shipped_files(tmp_path)


@pytest.fixture(scope="module")
def sharded(address, tmp_path_factory):
    """A run of which a job has made the clips."""
    folder = tmp_path_factory.mktemp("sharded")
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(runs=folder / "runs"), encoding="utf-8")
    done = launch("submit", "shard", str(config), "--address", address)
    assert done.returncode == 0, done.stdout + done.stderr
    return config, folder / "runs" / "tiny", done


def test_submit_and_follow_a_stage(sharded):
    _, run_dir, done = sharded
    told, way_out, *log = done.stdout.splitlines()
    job = told.split()[1].rstrip(";")
    assert told == f"submitted {job}; the run is in {run_dir}"
    assert way_out.startswith(f"Ctrl-C ends the log below, not the job; `reelflow job stop {job} --address http://127")
    assert "shard: done" in "".join(log)  # the job's own log
    assert log[-1] == f"{job}: SUCCEEDED"
    assert "dashboard_sdk" not in done.stderr  # nothing of Ray's own
    assert "WebSocket" not in done.stderr
    assert read_manifest(run_dir / "clips").num_samples == 26


def test_the_dashboard_shows_no_configuration(sharded, address):
    """Ray shows the entry point, the runtime environment and the metadata of a job to whoever may look."""
    (job,) = [job for job in list_jobs(address) if job.run == "tiny"]
    details = connect(address).get_job_info(job.id)
    shown = f"{details.entrypoint} {details.runtime_env} {details.metadata}"
    assert "launch.supervise --command shard --config job.yaml" in shown
    for setting in ("synthetic", "num_videos", "latent_channels", "checkpoint_every_steps"):
        assert setting not in shown


def test_a_job_is_listed_and_its_log_is_kept(sharded, address, monkeypatch):
    _, run_dir, _ = sharded
    (job,) = json.loads(launch_here("job", "list", "--address", address, "--json").stdout)
    assert job["id"].startswith("tiny-")
    assert (job["status"], job["stage"], job["run_dir"]) == ("SUCCEEDED", "shard", str(run_dir))
    table = launch_here("job", "list", "--address", address).stdout.splitlines()
    assert table[0].split() == ["JOB", "STATUS", "STAGE", "STARTED", "(UTC)", "TIME"]
    assert table[1].split()[:3] == [job["id"], "SUCCEEDED", "shard"]
    assert "shard: done" in launch_here("job", "logs", job["id"], "--address", address).stdout
    done = launch_here("job", "status", job["id"], "--address", address, "--json")
    assert (done.returncode, json.loads(done.stdout)["exit_code"]) == (0, 0)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    done = launch_here("job", "status", job["id"])
    assert (done.returncode, done.stdout.splitlines()[1]) == (0, f"  stage shard, in {run_dir}")
    assert "shard: done" in done.stdout.splitlines()[2]
    stopped = launch_here("job", "stop", job["id"])
    assert (stopped.returncode, stopped.stdout.splitlines()[0]) == (0, f"{job['id']}: had ended before: SUCCEEDED")
    assert "job resume" not in stopped.stdout


def test_what_cannot_work_is_refused_before_anything_starts(sharded, address, tmp_path, monkeypatch):
    before = list_jobs(address)
    config, _, _ = sharded

    def refused(error: type[Exception], told: str, *overrides: str, **options: Any) -> None:
        with pytest.raises(error, match=told):
            submit("shard", config, overrides, address, JobOptions(**options))

    refused(
        ClusterError,
        "2 workers and the driver need 2000 CPU, but the .* has 2;",
        "cluster.workers.cpus_per_worker=1000",
    )
    refused(
        ClusterError,
        "the driver asks for 1 GPU, but no machine .* more than 0; lower --entry-gpus",
        entry=EntryResources(gpus=1),
    )
    refused(ConfigError, "--pip absent.txt: there is no such file; it is a list", pip=Path("absent.txt"))
    refused(JobEnvironmentError, r"--env API_KEY=\.\.\.: give the name of a variable alone", env=("API_KEY=secret",))
    monkeypatch.setattr("launch.job_package.MAX_BYTES", 2**20)
    refused(ShippedError, "more than the 1 MiB that a job ships; the largest files are")
    monkeypatch.setattr(ray, "__version__", "2.1.0")
    refused(ClusterError, f"runs Ray {RAY_VERSION}, and this is Ray 2.1.0, .*install ray=={RAY_VERSION} here")
    assert list_jobs_of_any_version(address, monkeypatch) == before


def list_jobs_of_any_version(address: str, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    monkeypatch.setattr(ray, "__version__", RAY_VERSION)
    return list_jobs(address)


def test_a_cluster_that_still_starts_is_asked_again(address, tmp_path, monkeypatch):
    """Its dashboard says so until a node's agent is there, which takes a busy machine long."""
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(runs=tmp_path / "runs"), encoding="utf-8")
    submit_job, answers = JobSubmissionClient.submit_job, [NO_AGENT, NO_AGENT, "something else"]

    def answer(client: JobSubmissionClient, **job: Any) -> str:
        if answers:
            raise RuntimeError(f"Request failed with status code 500: {answers.pop(0)}")
        return submit_job(client, **job)

    monkeypatch.setattr(JobSubmissionClient, "submit_job", answer)
    with pytest.raises(ClusterError, match=r"refused the job: .* something else"):
        submit("shard", config, (), address)
    answers += [NO_AGENT]
    job = submit("shard", config, (), address).job_id
    assert status(job, address).status in ("PENDING", "RUNNING")
    assert ended(job, address) == "STOPPED"
    answers += [NO_AGENT] * 99
    with pytest.raises(ClusterError, match=NO_AGENT):
        submit("shard", config, (), address)


FEW = "data.synthetic.num_videos=8"


@pytest.mark.slow
def test_jobs_that_are_submitted_together_keep_their_configurations(address, tmp_path):
    jobs = []
    for name in ("one", "two"):
        config = tmp_path / f"{name}.yaml"
        config.write_text(TINY.format(runs=tmp_path / "runs").replace("name: tiny", f"name: {name}"), encoding="utf-8")
        jobs.append(submit("shard", config, (f"seed={len(jobs)}", FEW), address).job_id)
    assert [wait_for(job, address) for job in jobs] == ["SUCCEEDED"] * 2
    for seed, name in enumerate(("one", "two")):
        assert load_config(tmp_path / "runs" / name / "config.yaml").seed == seed


def wait_until(condition: Callable[[], bool], job_id: str, address: str) -> None:
    deadline, client = time.monotonic() + 900, connect(address)
    while not condition():
        assert time.monotonic() < deadline, logs(job_id, address)
        assert not find_job(client, job_id).is_over, logs(job_id, address)
        time.sleep(0.5)


@pytest.mark.slow
def test_a_run_has_one_job_which_outlives_its_driver_and_is_resumed(address, sharded):
    config, run_dir, _ = sharded
    stage_dir = run_dir / "autoencoder"
    endless = ["autoencoder.train.steps=100000", "cluster.workers.num_workers=1"]  # one is enough, and starts sooner
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: submit("run", config, endless, address), range(2)))
    assert sorted(each.is_new for each in both) == [False, True]
    (job,) = {each.job_id for each in both}
    assert submit("run", config, endless, address) == Submitted(job, str(run_dir), is_new=False)
    with pytest.raises(ConfigError, match=rf"the run tiny is busy: {job} runs its stage run; follow it with"):
        submit("shard", config, endless, address)
    with pytest.raises(ConfigError, match=rf"{job} runs tiny with other settings; .* give this run another name"):
        submit("run", config, [*endless, "seed=5"], address)

    wait_until(lambda: last_saved_step(stage_dir) > 0, job, address)
    os.kill(Holder.model_validate_json((run_dir / "run.lock").read_bytes()).pid, signal.SIGKILL)
    wait_until(lambda: [event.event for event in read_events(stage_dir)].count("started") == 2, job, address)
    (restart,) = read_jsonl(run_dir / "logs" / RESTARTS_NAME, Restart)
    assert (restart.job, restart.number, restart.ended_by) == (job, 1, "SIGKILL")
    assert "resuming from step" in read_events(stage_dir)[-1].note

    assert ended(job, address) == "STOPPED"
    stopped = open_checkpoint(stage_dir).record.step
    assert launch_here("job", "status", job, "--address", address).returncode == 130
    again = resume(job, address)
    assert (again.is_new, again.job_id) == (True, f"{job.rpartition('-')[0]}-{int(job.rpartition('-')[2]) + 1}")
    wait_until(lambda: last_saved_step(stage_dir) > stopped, again.job_id, address)
    assert ended(again.job_id, address) == "STOPPED"
    assert [each.id for each in list_jobs(address)][-2:] == [job, again.job_id]


SLOW_TO_SAVE = """
import signal, sys, time
from pathlib import Path

def save(*_):
    time.sleep(30)
    Path(sys.argv[1], "saved").touch()
    sys.exit(130)

signal.signal(signal.SIGTERM, save)
Path(sys.argv[1], "ready").touch()
time.sleep(600)
"""


@pytest.mark.slow
def test_a_save_of_half_a_minute_is_not_cut_off(address, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "slow.py").write_text(SLOW_TO_SAVE, encoding="utf-8")
    job = connect(address).submit_job(
        entrypoint=f"exec python slow.py {tmp_path}", runtime_env=_runtime_env(package, "slow", JobOptions())
    )
    wait_until((tmp_path / "ready").exists, job, address)
    assert ended(job, address) == "STOPPED"
    assert (tmp_path / "saved").exists()


@pytest.mark.slow
def test_stop_a_job(address, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(runs=tmp_path / "runs"), encoding="utf-8")
    many = "data.synthetic.num_videos=50000"
    done = launch("submit", "shard", str(config), "--set", many, "--address", address, "--no-follow")
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[1].rstrip(";")
    wait_until((tmp_path / "runs" / "tiny" / "videos" / "000").is_dir, job, address)
    assert "RUNNING" in launch("job", "status", job, "--address", address).stdout
    stopped = launch("job", "stop", job, "--address", address)
    assert stopped.returncode == 0
    _, state, last, way_on = stopped.stdout.splitlines()
    assert state == f"{job}: STOPPED"
    assert last == f"  the run in {tmp_path / 'runs' / 'tiny'} was stopped; the same command continues from here"
    assert way_on == f"`reelflow job resume {job} --address {address}` continues it"
    assert not list((tmp_path / "runs").rglob("*.tar"))


ASK_A_WORKER = """
import os
import ray

ray.init(log_to_driver=False)
print("worker has", len(ray.get(ray.remote(lambda: os.environ.get("STORE_KEY", "")).remote())), "letters")
"""
SECRET = "not-to-be-seen-" * 2


@pytest.mark.slow
def test_variables_of_a_file_reach_driver_and_workers_and_are_shown_nowhere(address, tmp_path):
    keys, config = tmp_path / "keys.env", tmp_path / "tiny.yaml"
    keys.write_text(f"# of the store\nexport STORE_KEY='{SECRET}'\n", encoding="utf-8")
    config.write_text(TINY.format(runs=tmp_path / "runs"), encoding="utf-8")
    options = JobOptions(env=("STORE_KEY",), env_file=str(keys))
    job = submit("shard", config, (FEW,), address, options).job_id
    assert wait_for(job, address) == "SUCCEEDED", logs(job, address)
    missing = submit("shard", config, ("name=other",), address, JobOptions(env=("STORE_KEY",))).job_id
    assert wait_for(missing, address) == "FAILED"
    assert "STORE_KEY must be set on the cluster's machines" in logs(missing, address)
    assert (
        status(missing, address).message == "Job entrypoint command failed with exit code 78"
    )  # and not its log again
    with packed(None) as package:
        (package / "ask.py").write_text(ASK_A_WORKER, encoding="utf-8")
        ask = connect(address).submit_job(entrypoint="python ask.py", runtime_env=_runtime_env(package, "ask", options))
    client = connect(address)
    while not JobStatus(client.get_job_status(ask)).is_terminal():
        time.sleep(0.5)
    assert f"worker has {len(SECRET)} letters" in client.get_job_logs(ask)
    for number in (job, missing, ask):
        details = client.get_job_info(number)
        shown = f"{details.entrypoint} {details.runtime_env} {details.metadata} {details.message}"
        assert SECRET not in shown + client.get_job_logs(number)
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_a_cluster_that_is_silent_is_given_up_within_ten_seconds(monkeypatch):
    assert job_client.CONNECT_SECONDS + SILENT_SECONDS <= 10
    monkeypatch.setattr(job_client, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterError, match=rf"no Ray dashboard answers at {address} .*Read timed out"):
            submit("shard", Path("demo"), (), address)


def test_errors_of_submission(address, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(runs=tmp_path / "runs"), encoding="utf-8")
    said = launch_here("submit", "run")
    assert "submit needs a stage and a configuration, such as `reelflow submit run my.yaml`" in said.stderr
    said = launch_here("submit", "train", "it", str(config), "--address", address)
    assert "there is no stage 'train it'; stages are run, demo, shard, train autoencoder," in said.stderr
    said = launch_here("submit", "dance", str(config), "--address", address)
    assert said.returncode == 1
    assert "there is no stage 'dance'; stages are run, demo, shard" in said.stderr
    said = launch_here("submit", "shard", str(config), "--address", f"http://127.0.0.1:{free_port()}")
    assert "no Ray dashboard answers" in said.stderr
    assert "([Errno 111] Connection refused); give the right one by --address or RAY_API_SERVER_ADDRESS" in said.stderr
    said = launch_here("submit", "shard", str(config), "--set", "dit.typo=1", "--address", address)
    assert "dit.typo: there is no such field" in said.stderr
    assert "there is no job 'nothing'" in launch_here("job", "status", "nothing", "--address", address).stderr
