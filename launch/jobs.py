"""Stages as Ray jobs: submit, follow, status and stop, through the Job Submission API of a running cluster."""

import asyncio
import os
import re
import shlex
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import requests
from pydantic import BaseModel
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from data.errors import first_line
from launch.cluster import PROJECT_DIR, ClusterError
from launch.config import RunConfig, dump_config, load_config
from launch.overrides import ConfigError
from launch.stages import NAMES
from pipeline.ingest.config import SYNTHETIC

COMMANDS = ("run", "demo", *NAMES[1:])
NO_AGENT = "No available agent"  # the answer, after 10 s, of a cluster whose nodes are still starting
SUBMISSIONS = 3
PACKAGES = ("data", "models", "pipeline", "launch")
_SOURCE = re.compile(r"[A-Za-z0-9_]+\.py|py\.typed")
_READ_AT_RUN_TIME = {
    "launch/presets": re.compile(r"[A-Za-z0-9_-]+\.yaml"),
    "pipeline/report/templates": re.compile(r"[A-Za-z0-9_-]+\.(html|css|js)"),
}
"""Files of the program that are not Python, by folder."""
STOP_SECONDS = 600
"""How long a job that is stopped may take to save before Ray kills it; Ray's default is 3 s."""
_ON_THE_HEAD = "`ray get-auth-token` prints it on the head node; set RAY_AUTH_TOKEN to it"
ANSWER_SECONDS, POLL_SECONDS = 30, 0.5
_NOT_OF_RAY = (requests.RequestException, ConnectionError, LookupError, TypeError, ValueError)
"""What Ray's client raises where an answer is missing or lacks the fields of Ray's."""


class TokenError(ClusterError):
    """The cluster asks for a token that is not here, or for none at all."""


def _client(address: str) -> JobSubmissionClient:
    if not re.match(r"^https?://", address):
        raise ConfigError(f"--address {address}: the job API is an http address, such as http://127.0.0.1:8265")
    headers = {"Authorization": f"Bearer {_token(address)}"} if asks_for_token(address) else None
    try:
        return JobSubmissionClient(address, headers=headers)
    except AuthenticationError as error:
        raise TokenError(f"the cluster at {address} refuses the token that was found here: {_ON_THE_HEAD}") from error
    except (*_NOT_OF_RAY, RuntimeError) as error:
        raise _no_dashboard(address, first_line(error)) from error


def _no_dashboard(address: str, reason: str) -> ClusterError:
    return ClusterError(
        f"no Ray dashboard answers at {address} ({reason}); on the cluster's head node run "
        "`ray start --head`, and forward port 8265 if it is another machine"
    )


def asks_for_token(address: str) -> bool:
    """Whether the cluster refuses requests without a token.

    Raises:
        ClusterError: nothing answers at the address, or another program than Ray.
    """
    answer = _answer(address, "/api/jobs/")
    if answer.status_code in (401, 403):
        return True
    if answer.status_code == 200 and _is_ray(_answer(address, "/api/version")):
        return False
    raise _no_dashboard(address, f"what answers there, with status {answer.status_code}, is another program")


def _answer(address: str, path: str) -> requests.Response:
    try:
        return requests.get(address.rstrip("/") + path, timeout=ANSWER_SECONDS, allow_redirects=False)
    except (requests.RequestException, ValueError) as error:  # the latter of an address such as http://[::1
        raise _no_dashboard(address, first_line(error)) from error


def _is_ray(answer: requests.Response) -> bool:
    """Whether an answer to the question for the version is one of Ray."""
    try:
        fields = answer.json()
    except ValueError:
        return False
    return isinstance(fields, dict) and isinstance(fields.get("ray_version"), str)


def _token(address: str) -> str:
    """The token that Ray's own commands would use: of RAY_AUTH_TOKEN, of a file, or of this user."""
    place, token = "RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        place, token = str(path), _token_of_file(address, path)
    if not token.isascii() or not token.isprintable() or " " in token:  # the message must not show it
        raise TokenError(
            f"what {place} holds is no token, with white space or a special character in it: {_ON_THE_HEAD}"
        )
    return token


def _token_of_file(address: str, path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise TokenError(f"{path} holds no token, since it is not UTF-8 text: {_ON_THE_HEAD}") from error
    except OSError:
        token = ""
    if not token:
        raise TokenError(
            f"the cluster at {address} asks for a token, and there is none in RAY_AUTH_TOKEN or {path}: {_ON_THE_HEAD}"
        )
    return token


def submit(
    stage: str, config_path: Path, overrides: Sequence[str], address: str, *, allow_no_token: bool = False
) -> str:
    """Check the configuration here, ship the code with it, and start the stage there; returns the job's id.

    The job's id is new each time; the run's name decides which folder the job continues in.

    Args:
        allow_no_token: submit to a cluster that asks for no token, too.

    Raises:
        ConfigError: an unknown stage, or a configuration that cannot be used.
        TokenError: the cluster asks for no token, or for one that is not here.
        ClusterError: no cluster answers.
    """
    if stage not in COMMANDS:
        raise ConfigError(f"there is no stage {stage!r}; stages are {', '.join(COMMANDS)}")
    config = absolute_paths(load_config(config_path, overrides))
    job_id = f"{config.name}-{stage.replace(' ', '-')}-{uuid.uuid4().hex[:6]}"
    if not (allow_no_token or asks_for_token(address)):
        raise TokenError(
            f"the cluster at {address} asks for no token: whoever reaches that port can run commands on its machines. "
            "Start it with RAY_AUTH_MODE=token (`ray get-auth-token --generate` makes one), or give --allow-no-token "
            "if nobody else can reach it"
        )
    client = _client(address)
    # The resolved configuration is part of the command: the job needs no file of this machine. Its file has the name of
    # the job, because jobs of the same code share the folder they run in.
    command, file = "run" if stage == "demo" else stage, f"{job_id}.yaml"
    script = f"printf %s {shlex.quote(dump_config(config))} > {file} && python -m launch {command} {file}"
    for attempts_left in reversed(range(SUBMISSIONS)):
        try:
            return client.submit_job(
                entrypoint=script,
                submission_id=job_id,
                runtime_env={
                    "working_dir": str(PROJECT_DIR),
                    "excludes": not_shipped(PROJECT_DIR),
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)},
                },
                metadata={"run": config.name, "stage": stage},
            )
        except RuntimeError as error:
            if NO_AGENT not in str(error) or not attempts_left:
                reason = " ".join(str(error).split())[:1000]
                raise ClusterError(f"the cluster at {address} refused the job: {reason}") from error
    raise AssertionError("the last attempt returns or raises")


def not_shipped(folder: Path) -> list[str]:
    """Patterns, as in .gitignore, that leave out everything but the program: what is not named here is not shipped.

    The names in them are those of the program alone, so that no other name in the checkout has to be written as a
    pattern; a later pattern counts more than an earlier one.
    """
    files = [file for package in PACKAGES for file in _program_files(folder, package)]
    patterns = ["*", "!/."]  # Ray asks for the folder itself too, as "."
    for place in sorted({parent for file in files for parent in file.parents} - {Path()}):
        patterns += [f"!/{place}", f"/{place}/*"]
    return patterns + [f"!/{file}" for file in files]


def _program_files(folder: Path, package: str) -> Iterator[Path]:
    """The files of a package that the program needs, relative to `folder`; links to folders are not followed."""
    for place, subfolders, names in os.walk(folder / package):
        subfolders[:] = [name for name in subfolders if name.isascii() and name.isidentifier()]
        inside = Path(place).relative_to(folder)
        patterns = [_SOURCE, _READ_AT_RUN_TIME.get(inside.as_posix(), _SOURCE)]
        yield from (inside / name for name in sorted(names) if any(pattern.fullmatch(name) for pattern in patterns))


def _absolute(place: str) -> str:
    """The absolute path of a folder, glob or table; a URI as it is."""
    return place if place == SYNTHETIC or "://" in place else str(Path(place).absolute())


def absolute_paths(config: RunConfig) -> RunConfig:
    """The same configuration with every path absolute: a job runs in a folder of its own.

    Paths must be valid on the cluster's machines too, on a shared file system.
    """
    config = _resolved(config)
    mix = {name: part.model_copy(update={"source": _absolute(part.source)}) for name, part in config.data.mix.items()}
    data = config.data.model_copy(update={"source": _absolute(config.data.source), "mix": mix})
    prompts = config.sample.prompts
    sample = config.sample.model_copy(update={"prompts": None if prompts is None else _absolute(prompts)})
    return config.model_copy(update={"data": data, "sample": sample})


def _resolved(value: Any) -> Any:  # noqa: ANN401 - whatever a configuration may hold
    if isinstance(value, Path):
        return value.absolute()
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _resolved(field) for name, field in value})
    return value


def follow(job_id: str, address: str) -> Iterator[str]:
    """The job's log, from its start to its end, as it is written."""
    client = _client(address)
    _known(client, job_id)
    lines = client.tail_job_logs(job_id)
    loop = asyncio.new_event_loop()
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(lines))
            except StopAsyncIteration:
                return
            except Exception as error:  # of aiohttp, or RuntimeError
                raise ClusterError(
                    f"the log of {job_id} ended early ({first_line(error)}); the job goes on: follow it again with "
                    f"`reelflow job follow {job_id}`"
                ) from error
    finally:
        loop.close()


def status(job_id: str, address: str) -> str:
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    return _known(_client(address), job_id)


def stop(job_id: str, address: str) -> str:
    """Ask a job to stop, and wait until it has: Ray sends SIGTERM, on which a training saves, and SIGKILL much later.

    Returns:
        Its status in the end: STOPPED, or SUCCEEDED or FAILED where it had ended before.

    Raises:
        ClusterError: it has not ended in `STOP_SECONDS`.
    """
    client = _client(address)
    _known(client, job_id)
    try:
        client.stop_job(job_id)
    except (*_NOT_OF_RAY, RuntimeError) as error:
        raise ClusterError(f"{job_id} could not be asked to stop ({first_line(error)}); try again") from error
    deadline = time.monotonic() + STOP_SECONDS + ANSWER_SECONDS
    while not JobStatus(state := _known(client, job_id)).is_terminal():
        if time.monotonic() > deadline:
            raise ClusterError(f"{job_id} is still {state} {STOP_SECONDS} s after it was asked to stop")
        time.sleep(POLL_SECONDS)
    return state


def _known(client: JobSubmissionClient, job_id: str) -> str:
    try:
        return client.get_job_status(job_id).value
    except RuntimeError as error:
        raise ConfigError(f"there is no job {job_id!r} on that cluster ({first_line(error)})") from error
    except _NOT_OF_RAY as error:
        raise ClusterError(f"the cluster gave no answer about the job {job_id!r} ({first_line(error)})") from error
