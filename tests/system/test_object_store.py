"""Videos in an S3-compatible store, read over a socket by the real shard stage: moto's server, with IAM enforced."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from data.curation.ledger import Rejection, read_rejections
from data.curation.source import SourceError, listing_fingerprint
from data.curation.sources import list_sources
from data.dataset.buckets import Bucket
from data.dataset.index import read_index
from data.synthetic import combinations, random_scene, render
from data.video.codec import encode_clip
from launch.cluster import connected
from launch.config import ClusterConfig
from launch.errors import describe
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.shard import make_shards
from pipeline.run.run_files import StoredRun
from pipeline.run.stored_run import StoredRunError, pull_run, push_run
from pipeline.run.whole_run import WholeRun
from pipeline.sample.prompt_files import PromptsFile
from pipeline.sample.prompts import PromptError
from testing.clusters import leave_cluster
from testing.commands import TINY, launch
from testing.other_machine import OtherMachine
from testing.paths import ROOT
from testing.store import forget_clients

REGION = {"AWS_DEFAULT_REGION": "us-east-1"}

SETTINGS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_MAX_ATTEMPTS")

CONFIG = ShardConfig(buckets=(Bucket(num_frames=5, height=32, width=32, fps=8),), max_clips_per_video=9)

POLICY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": ["arn:aws:s3:::videos", "arn:aws:s3:::videos/*"]}],
}


def video(number: int, num_frames: int = 12) -> bytes:
    return encode_clip(render(random_scene(0, number, combinations()), num_frames, 64), 8)


VIDEOS = {"walk/a.mp4": video(0), "walk/sub/b.mp4": video(1, 24), "c.mp4": video(2)}


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory) -> Iterator[str]:
    """The address of a store with a bucket that may be read and one that may not; the environment names it."""
    log = tmp_path_factory.mktemp("moto") / "log"
    environment = {**os.environ, **REGION, "INITIAL_NO_AUTH_ACTION_COUNT": "1000"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with log.open("w") as file, pytest.MonkeyPatch.context() as patch:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        try:
            while (found := re.search(r"Running on (http://127\.0\.0\.1:(\d+))", log.read_text())) is None:
                assert server.poll() is None, log.read_text()
                time.sleep(0.05)
            address, port = found[1], int(found[2])
            key = fill(address)
            lock = http.client.HTTPConnection("127.0.0.1", port)
            lock.request("POST", "/moto-api/reset-auth", body=b"0")  # from here on each request is checked
            assert lock.getresponse().status == 200
            forget_clients()  # of another test of this process
            for name, value in zip(SETTINGS, (address, key["AccessKeyId"], key["SecretAccessKey"], "1"), strict=True):
                patch.setenv(name, value)
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            yield address
        finally:
            server.terminate()
            server.wait()
            forget_clients()


@pytest.fixture(scope="module")
def cluster(store) -> Iterator[None]:
    """A cluster of these tests alone, whose workers inherit the store's address and key."""
    leave_cluster()
    with connected(ClusterConfig(object_store_mib=128)):
        yield


def fill(address: str) -> dict[str, str]:
    """Put the videos there, and give back the key of a user who may see one of the buckets."""
    known = {"endpoint_url": address, "region_name": "us-east-1", "aws_access_key_id": "x"}
    s3, iam = (boto3.client(name, aws_secret_access_key="x", **known) for name in ("s3", "iam"))
    for bucket in ("videos", "secret"):
        s3.create_bucket(Bucket=bucket)
        for name, content in VIDEOS.items():
            s3.put_object(Bucket=bucket, Key=f"in/{name}", Body=content)
    s3.put_object(Bucket="videos", Key="in/notes.txt", Body=b"hello")
    s3.put_object(Bucket="videos", Key="in/broken.mp4", Body=VIDEOS["c.mp4"][:700])
    iam.create_user(UserName="reader")
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=json.dumps(POLICY))
    return iam.create_access_key(UserName="reader")["AccessKey"]


def put(key: str, content: bytes) -> None:
    boto3.client("s3", region_name="us-east-1").put_object(Bucket="videos", Key=key, Body=content)


def quarantine(folder: Path) -> dict[str, Rejection]:
    return {rejection.source: rejection for rejection in read_rejections(folder / "quarantine.jsonl")}


def test_a_prefix_and_a_glob_give_what_a_folder_gives(cluster, tmp_path):
    """The same keys and the same bytes, on two workers."""
    for name, content in VIDEOS.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / "broken.mp4").write_bytes(VIDEOS["c.mp4"][:700])
    manifests = []
    for number, place in enumerate((str(tmp_path / "in"), "s3://videos/in/**/*.mp4")):
        output = tmp_path / f"clips-{number}"
        manifests.append(make_shards(list_sources(place), output, CONFIG, 2))
        counts = Counter(row.source for row in read_index(output))
        assert counts == {"walk/a.mp4": 2, "walk/sub/b.mp4": 5, "c.mp4": 2}
        assert list(quarantine(output)) == ["broken.mp4"]
    assert manifests[0] == manifests[1]
    assert list_sources("s3://videos/in") == list_sources("s3://videos/in/") == list_sources("s3://videos/in/**/*.mp4")
    assert [source.name for source in list_sources("s3://videos/in/*/*.mp4")] == ["walk/a.mp4"]


def test_a_table_in_the_store_names_spans_of_objects(cluster, tmp_path):
    rows = [
        {"path": "s3://videos/in/walk/sub/b.mp4", "caption": "first", "start": 0, "end": 0.7},
        {"path": "walk/sub/b.mp4", "caption": "rest", "start": 1.0},
        {"path": "s3://videos/in/gone.mp4", "caption": "gone"},
        {"path": "s3://secret/in/c.mp4", "caption": "denied"},
    ]
    table = "".join(json.dumps(row) + "\n" for row in rows).encode()
    put("in/table.jsonl", table)
    sources = list_sources("s3://videos/in/table.jsonl")
    manifest = make_shards(sources, tmp_path / "clips", CONFIG, 2)
    found = [(row.caption, row.start_seconds) for row in read_index(tmp_path / "clips")]
    assert found == [("first", 0.0), ("rest", 1.0), ("rest", 1.625), ("rest", 2.25)]
    assert manifest.ledger is not None
    assert manifest.ledger.model_dump() == {"sources": 4, "shards": 2, "filtered": 0, "quarantine": 2}
    rejected = quarantine(tmp_path / "clips")
    assert {name: (rejection.reason, rejection.detail) for name, rejection in rejected.items()} == {
        "s3://videos/in/gone.mp4": ("missing", "s3://videos/in/gone.mp4 is gone"),
        "s3://secret/in/c.mp4": ("unreadable", "it cannot be read: s3://secret/in/c.mp4: Access Denied"),
    }
    (tmp_path / "table.jsonl").write_bytes(table)
    local = list_sources(str(tmp_path / "table.jsonl"))
    assert [(s.name, s.stretch, s.caption) for s in local] == [(s.name, s.stretch, s.caption) for s in sources]
    at_home = str(tmp_path / "walk/sub/b.mp4")  # relative to the table, wherever that lies
    assert [s.path for s in local] == [
        at_home if s.path.endswith("b.mp4") and "#t=1" in s.name else s.path for s in sources
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", b"one\r\n\ntwo, and three\n"),
        ("p.jsonl", b'{"prompt": "one"}\n{"prompt": "two, and three"}'),
        ("p.csv", b'prompt,seed\none,3\n"two, and three",4\n'),
        ("p.json", b'[{"prompt": "one"}, {"prompt": "two, and three"}]'),
    ],
)
def test_prompts_in_the_store_are_those_of_a_file(name, content, tmp_path):
    put(f"prompts/{name}", content)
    (tmp_path / name).write_bytes(content)
    stored, local = (
        [placed.prompt for placed in PromptsFile(place)]
        for place in (f"s3://videos/prompts/{name}", str(tmp_path / name))
    )
    assert [prompt.prompt for prompt in stored] == ["one", "two, and three"]
    assert stored == local


def test_prompts_that_cannot_be_read_are_named(monkeypatch):
    for place, reason in (
        ("s3://videos/none.txt", "there is no such prompts file"),
        ("s3://secret/p.jsonl", r"cannot be read \((Forbidden|Access Denied)"),
    ):
        with pytest.raises(PromptError, match=f"^{place}:? {reason}"):
            list(PromptsFile(place))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    forget_clients()
    with pytest.raises(PromptError, match=r"p.txt cannot be read \(Unable to locate credentials"):
        list(PromptsFile("s3://videos/p.txt"))
    forget_clients()


def write_run(folder: Path, num_files: int, text: str) -> dict[str, bytes]:
    """A folder that passes for a run; returns the content of each file."""
    contents = {f"clips/{number:03d}.tar": f"{text} {number} ".encode() * 5000 for number in range(num_files)}
    contents |= {"config.yaml": b"name: tiny", "clips/stage.json": text.encode()}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return contents


def contents_of(folder: Path) -> dict[str, bytes]:
    """What the files of a run hold, without its lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_run_is_pushed_and_pulled(tmp_path):
    written = write_run(tmp_path / "tiny", 5, "first")
    for at, num_copied in (("bucket", 7), ("again", 0)):
        assert push_run(tmp_path / "tiny", "s3://videos/runs/tiny").num_copied == num_copied, at
    pull_run("s3://videos/runs/tiny", tmp_path / "other" / "tiny")
    assert contents_of(tmp_path / "other" / "tiny") == written
    with pytest.raises(StoredRunError, match=r"^s3://secret/tiny cannot be used \((Forbidden|Access Denied)"):
        push_run(tmp_path / "tiny", "s3://secret/tiny")
    with pytest.raises(StoredRunError, match=r"^s3://secret/tiny cannot be used \((Forbidden|Access Denied)"):
        pull_run("s3://secret/tiny", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_two_machines_share_the_store_alone(tmp_path):
    """What one makes comes to the whole run, and what is there comes to the other, with equal bytes."""
    home, place = tmp_path / "home" / "tiny", "s3://videos/apart/tiny"
    written = write_run(home, 20, "apart")
    whole = WholeRun(home, place)
    first, second = (OtherMachine(tmp_path / name / "tiny", place, "files-x", whole=whole) for name in ("1", "2"))
    first.fetch_folder(first.run_dir / "clips")
    assert contents_of(first.run_dir) == {name: text for name, text in written.items() if name.startswith("clips/")}
    shard, commit = (first.run_dir / "clips" / f"new.{suffix}" for suffix in ("tar", "commit.json"))
    shard.write_bytes(b"pixels" * 10**6)
    commit.write_bytes(b"{}")
    first.publish(shard, record=commit)
    second.fetch(second.run_dir / "clips" / "new.tar")
    assert (second.run_dir / "clips" / "new.tar").read_bytes() == shard.read_bytes()
    assert {name for name in contents_of(home) if "new" in name} == {"clips/new.tar", "clips/new.commit.json"}
    assert push_run(home, place).num_copied == 1  # config.yaml, which nobody asked for
    pull_run(place, tmp_path / "pulled" / "tiny")
    assert contents_of(tmp_path / "pulled" / "tiny") == contents_of(home)


@pytest.mark.slow
def test_a_push_that_is_killed_leaves_the_run_before_it(tmp_path):
    place, run_dir = "s3://videos/killed/tiny", tmp_path / "tiny"
    before = write_run(run_dir, 3, "before")
    push_run(run_dir, place)
    after = write_run(run_dir, 120, "after")
    client = boto3.client("s3", region_name="us-east-1")

    def num_objects() -> int:
        return client.list_objects_v2(Bucket="videos", Prefix="killed/tiny/objects/")["KeyCount"]

    process = subprocess.Popen([sys.executable, "-m", "launch", "push", str(run_dir), place], cwd=ROOT)
    while num_objects() < 20:
        assert process.poll() is None
    process.kill()
    assert process.wait() == -signal.SIGKILL
    pull_run(place, tmp_path / "pulled" / "tiny")
    assert contents_of(tmp_path / "pulled" / "tiny") == before
    assert 0 < push_run(run_dir, place).num_copied <= 120 - 10
    pull_run(place, tmp_path / "anew" / "tiny")
    assert contents_of(tmp_path / "anew" / "tiny") == after


LONG = 600
"""Steps of a DiT whose training takes longer than it takes to look for a new checkpoint."""


def steps_in(bucket: str, place: str) -> list[int]:
    """Steps of the checkpoints of the DiT that a stored run has."""
    try:
        record = boto3.client("s3", region_name="us-east-1").get_object(Bucket=bucket, Key=f"{place}/run.json")
    except ClientError:
        return []
    names = StoredRun.model_validate_json(record["Body"].read()).files
    return [int(Path(name).parent.name[5:]) for name in names if name.endswith("checkpoint.json") and "dit/" in name]


@pytest.mark.campaign
def test_a_run_in_a_store_is_killed_and_goes_on_in_an_empty_folder_with_the_same_bytes(tmp_path):
    """Takes the time of two tiny runs. What is compared was made in the run's first working folder, or in its second.

    The first is killed once a checkpoint of its DiT is in the store, and thrown away; the second goes on from there.
    """
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(runs=tmp_path / "disk"), encoding="utf-8")
    command = ["-m", "launch", "run", str(config), "--set", "cluster.workers.num_workers=1"]
    command += ["--set", f"dit.train.steps={LONG}", "--set", "dit.train.checkpoint_every_steps=10"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    command += ["--set", "runs_dir=s3://videos/killed-runs"]
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(
            [sys.executable, *command, "--set", f"local_dir={tmp_path / 'first'}"], cwd=ROOT, stdout=log, stderr=log
        )
        while not steps_in("videos", "killed-runs/tiny"):
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            time.sleep(0.05)
        first.kill()
        first.wait()
    (saved,) = steps_in("videos", "killed-runs/tiny")
    assert saved < LONG
    shutil.rmtree(tmp_path / "first")
    done = launch(*command[2:], "--set", f"local_dir={tmp_path / 'second'}")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if ": nothing to do" in line or ": new" in line]
    assert [line.partition(" (")[0] for line in said] == [
        "draw: nothing to do",
        "shard: nothing to do",
        "train autoencoder: nothing to do",
        "encode: nothing to do",
        "sample: new",
        "evaluate: new",
    ]
    assert f"resuming from step {saved}" in done.stdout
    made = ("clips/*.tar", "latents/*.tar", "autoencoder/checkpoints/step_0000006/rank_*", "samples/*.mp4")
    made += (f"dit/checkpoints/step_{LONG:07d}/rank_*",)
    disk, second = tmp_path / "disk" / "tiny", tmp_path / "second" / "s3" / "videos" / "killed-runs" / "tiny"
    names = sorted(path.relative_to(disk) for pattern in made for path in disk.glob(pattern))
    assert len(names) > 50
    assert [name for name in names if (second / name).read_bytes() != (disk / name).read_bytes()] == []


def test_an_object_that_changes_changes_the_fingerprint():
    put("changing/a.mp4", VIDEOS["c.mp4"])
    before = listing_fingerprint(list_sources("s3://videos/changing"))
    assert listing_fingerprint(list_sources("s3://videos/changing")) == before
    put("changing/a.mp4", VIDEOS["walk/a.mp4"])
    assert listing_fingerprint(list_sources("s3://videos/changing")) != before


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("s3://secret/in", r"s3://secret/in cannot be read \(Access Denied\); check the address, the credentials"),
        ("s3://secret/in/*.mp4", r"s3://secret/in/\*\.mp4 cannot be read \(Access Denied\)"),
        ("s3://secret/t.csv", r"s3://secret/t\.csv cannot be read \(Forbidden\)"),
        ("s3://videos/none.csv", r"s3://videos/none\.csv is not there"),
        ("s3://videos/none", r"s3://videos/none holds no video"),
        ("s3://Not A Bucket/x", r"s3://Not A Bucket/x cannot be read"),
        ("s3://", r"s3:// names no bucket"),
    ],
)
def test_a_place_that_cannot_be_read_is_named(place, reason):
    with pytest.raises(SourceError, match=reason) as caught:
        list_sources(place)
    assert describe(caught.value) == str(caught.value)


def test_without_credentials_or_store_the_first_listing_says_so(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    for changed, reason in (
        ({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free}"}, "Could not connect to the endpoint URL"),
        ({"AWS_ACCESS_KEY_ID": ""}, "Unable to locate credentials"),
    ):
        with monkeypatch.context() as patch:
            for name, value in changed.items():
                patch.setenv(name, value) if value else patch.delenv(name)
            forget_clients()
            with pytest.raises(SourceError, match=rf"s3://videos/in cannot be read \({reason}"):
                list_sources("s3://videos/in")
    forget_clients()


class MortalStore:
    """Passes bytes on to a store, and dies for good when it has passed on so many."""

    def __init__(self, address: str, life_bytes: int) -> None:
        self._port, self._left = int(address.rpartition(":")[2]), life_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def is_dead(self) -> bool:
        return self._left <= 0

    def _accept(self) -> None:
        while not self.is_dead:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            self._open += [client, server]
            threading.Thread(target=self._pass_on, args=(client, server, 0), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, 1), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counted: int) -> None:
        try:
            while content := source.recv(512):
                self._left -= counted * len(content)
                if self.is_dead:
                    return self.die()
                target.sendall(content)
        except OSError:
            return None

    def die(self) -> None:
        self._left = 0
        for end in (self._listener, *self._open):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
            finally:
                end.close()


@pytest.mark.slow
def test_a_store_that_dies_in_the_middle_costs_what_it_still_held(store, tmp_path):
    """It goes in the middle of the third video; the first two are in the shards, the others say why they are not."""
    script = """
import sys
from pathlib import Path
from data.curation.sources import list_sources
from launch.cluster import connected
from launch.config import ClusterConfig
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.shard import make_shards
with connected(ClusterConfig(object_store_mib=128)):
    config = ShardConfig.model_validate_json(sys.argv[2])
    print(make_shards(list_sources("s3://videos/long"), Path(sys.argv[1]), config, 1).ledger.model_dump_json())
"""
    content = VIDEOS["walk/sub/b.mp4"]
    for number in range(5):
        put(f"long/{number}.mp4", content)
    mortal = MortalStore(store, life_bytes=round(2.6 * len(content)) + 4096)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), CONFIG.model_dump_json()],
            env={**os.environ, "AWS_ENDPOINT_URL": mortal.address, "PYTHONPATH": os.getcwd()},  # noqa: PTH109
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        was_dead = mortal.is_dead
        mortal.die()
    assert was_dead
    assert done.returncode == 0, done.stderr
    ledger = json.loads(done.stdout.splitlines()[-1])
    rejected = quarantine(tmp_path)
    assert ledger == {"sources": 5, "shards": 5 - len(rejected), "filtered": 0, "quarantine": len(rejected)}
    assert {row.source for row in read_index(tmp_path)} == {f"{n}.mp4" for n in range(5)} - rejected.keys()
    assert 2 <= len(rejected) <= 4
    assert {rejection.reason for rejection in rejected.values()} == {"unreadable"}
    assert all(f"s3://videos/long/{name}: " in rejection.detail for name, rejection in rejected.items())
