"""Stages as Ray jobs: submit, follow, status and stop, through the Job Submission API of a running cluster."""

import asyncio
import re
import shlex
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ray.job_submission import JobSubmissionClient

from launch.cluster import PROJECT_DIR, ClusterError
from launch.config import RunConfig, dump_config, load_config
from launch.overrides import ConfigError
from launch.stages import NAMES
from pipeline.ingest.config import SYNTHETIC

COMMANDS = ("run", "demo", *NAMES[1:])
NO_AGENT = "No available agent"  # the answer, after 10 s, of a cluster whose nodes are still starting
SUBMISSIONS = 3
NOT_SHIPPED = [".git", ".venv", "runs", "tests", "testing", "docs", "benchmarks", "**/__pycache__"]


def _client(address: str) -> JobSubmissionClient:
    if not re.match(r"^https?://", address):
        raise ConfigError(f"--address {address}: the job API is an http address, such as http://127.0.0.1:8265")
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ClusterError(
            f"no Ray dashboard answers at {address} ({reason}); on the cluster's head node run "
            "`ray start --head`, and forward port 8265 if it is another machine"
        ) from error


def submit(stage: str, config_path: Path, overrides: Sequence[str], address: str) -> str:
    """Check the configuration here, ship the code with it, and start the stage there; returns the job's id.

    The job's id is new each time; the run's name decides which folder the job continues in.

    Raises:
        ConfigError: an unknown stage, or a configuration that cannot be used.
        ClusterError: no cluster answers.
    """
    if stage not in COMMANDS:
        raise ConfigError(f"there is no stage {stage!r}; stages are {', '.join(COMMANDS)}")
    config = absolute_paths(load_config(config_path, overrides))
    job_id = f"{config.name}-{stage.replace(' ', '-')}-{uuid.uuid4().hex[:6]}"
    client = _client(address)
    # The resolved configuration is part of the command: the job needs no file of this machine.
    command = "run" if stage == "demo" else stage
    script = f"printf %s {shlex.quote(dump_config(config))} > job.yaml && python -m launch {command} job.yaml"
    for attempts_left in reversed(range(SUBMISSIONS)):
        try:
            return client.submit_job(
                entrypoint=script,
                submission_id=job_id,
                runtime_env={"working_dir": str(PROJECT_DIR), "excludes": NOT_SHIPPED},
                metadata={"run": config.name, "stage": stage},
            )
        except RuntimeError as error:
            if NO_AGENT not in str(error) or not attempts_left:
                raise ClusterError(f"the cluster at {address} refused the job: {str(error).splitlines()[0]}") from error
    raise AssertionError("the last attempt returns or raises")


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
    return config.model_copy(update={"data": data})


def _resolved(value: Any) -> Any:  # noqa: ANN401 - whatever a configuration may hold
    if isinstance(value, Path):
        return value.expanduser().absolute()
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
    finally:
        loop.close()


def status(job_id: str, address: str) -> str:
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    return _known(_client(address), job_id)


def stop(job_id: str, address: str) -> None:
    """Stop a job: Ray sends SIGTERM, and SIGKILL if the job has not ended by then."""
    client = _client(address)
    _known(client, job_id)
    client.stop_job(job_id)


def _known(client: JobSubmissionClient, job_id: str) -> str:
    try:
        return client.get_job_status(job_id).value
    except RuntimeError as error:
        raise ConfigError(f"there is no job {job_id!r} on that cluster ({str(error).splitlines()[0]})") from error
