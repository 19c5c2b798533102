"""Runs as Ray jobs, through the Job Submission API of a running cluster: submit, list, follow, stop, resume."""

import asyncio
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ray.job_submission import JobStatus, JobSubmissionClient

from data.errors import first_line
from launch.cluster import ClusterError
from launch.config import RunConfig, dump_config, load_config
from launch.job_client import NOT_OF_RAY, EntryResources, TokenError, asks_for_token, check_room, command, connect
from launch.job_environment import FILE_VARIABLE, check_is_name
from launch.job_package import CONFIG_NAME, packed
from launch.overrides import ConfigError, Override
from launch.stages import NAMES
from pipeline.ingest.config import SYNTHETIC

COMMANDS = ("run", "demo", *NAMES[1:])
NO_AGENT = "No available agent"  # the answer, after 10 s, of a cluster whose nodes are still starting
LAST_LOGS = ", last available logs"  # after which Ray's message about a failure repeats the log
ALREADY_USED = "already"  # in Ray's answer where a job has that id
SUBMISSIONS = 3
POLL_SECONDS = 0.5
STOP_MINUTES = 60.0
"""How long a job that is stopped may take to save before Ray kills it; Ray's default is 3 s."""
RUN_DIR, SETTINGS, STAGE, RUN = "run_dir", "settings", "stage", "run"
"""What a job's metadata holds."""


@dataclass(frozen=True)
class JobOptions:
    """How a job runs. Nothing of it changes what the run makes."""

    insecure: bool = False
    """Submit to a cluster that asks for no token, too."""
    entry: EntryResources = field(default_factory=EntryResources)
    pip: Path | None = None
    """Requirements file of packages that driver and workers have beside the cluster's own; None: nothing."""
    env: tuple[str, ...] = ()
    """Names of variables that have to be set on the cluster."""
    env_file: str | None = None
    """File on the cluster's machines with variables."""
    restarts: int = 3
    """How often a driver that dies is started again."""
    stop_minutes: float = STOP_MINUTES
    """How long it may take to save where it is stopped."""
    wait_for_nodes: bool = False
    """Submit although the cluster has no room yet."""


@dataclass(frozen=True)
class Job:
    """A job of reelflow on a cluster."""

    id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    run: str
    stage: str
    run_dir: str
    settings: str
    """Fingerprint of the configuration."""
    started: str | None
    """ISO 8601, in UTC."""
    seconds: float | None
    """Until its end, or now."""
    message: str
    exit_code: int | None
    """Of the entry point; None: it has not ended, or the machine it ran on was lost."""

    @property
    def was_lost(self) -> bool:
        """Whether it ended with the machine that its driver ran on."""
        return self.status == "FAILED" and self.exit_code is None

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return JobStatus(self.status).is_terminal()


@dataclass(frozen=True)
class Submitted:
    """The job that does what was asked for."""

    job_id: str
    run_dir: str
    """On the cluster's machines, or its place in a store."""
    is_new: bool
    """False: it was running already."""


def submit(
    stage: str, config_path: Path | str, overrides: Sequence[Override], address: str, options: JobOptions | None = None
) -> Submitted:
    """Check the configuration here, ship the code with it, and start the stage there, unless it is running already.

    Jobs of a run are numbered, and Ray gives a number once: of two submissions at the same time one starts the job, and
    the other attaches to it.

    Raises:
        ConfigError: an unknown stage, a configuration that cannot be used, or a job of this run with another stage or
            other settings is running.
        TokenError: the cluster asks for no token, or for one that is not here.
        ClusterError: no cluster answers, one of another version, or one without room for the workers.
        ShippedError: the program is too large.
    """
    options = options or JobOptions()
    if stage not in COMMANDS:
        raise ConfigError(f"there is no stage {stage!r}; stages are {', '.join(COMMANDS)}")
    config = absolute_paths(load_config(config_path, overrides))
    text = dump_config(config)
    wanted = {
        RUN: config.name,
        STAGE: "run" if stage == "demo" else stage,
        RUN_DIR: str(config.place) if config.is_stored_run else str(config.run_dir),
        SETTINGS: sha256(text.encode()).hexdigest()[:12],
    }
    client = _safe_client(address, options)
    if (running := _running(client, wanted, address)) is not None:
        return Submitted(running.id, running.run_dir, is_new=False)
    if not options.wait_for_nodes:
        check_room(address, config.cluster.workers, options.entry)
    return _start(client, address, wanted, text, options)


def resume(job_id: str, address: str, options: JobOptions | None = None) -> Submitted:
    """Continue the run of a job that has ended, with the configuration that its folder holds, and today's code.

    Raises:
        ConfigError: there is no such job.
        TokenError, ClusterError, ShippedError: as `submit`.
    """
    options = options or JobOptions()
    client = _safe_client(address, options)
    job = find_job(client, job_id)
    wanted = {RUN: job.run, STAGE: job.stage, RUN_DIR: job.run_dir, SETTINGS: job.settings}
    if (running := _running(client, wanted, address)) is not None:
        return Submitted(running.id, running.run_dir, is_new=False)
    return _start(client, address, wanted, None, options)


def _safe_client(address: str, options: JobOptions) -> JobSubmissionClient:
    for name in options.env:
        check_is_name(name)
    if options.pip is not None and not options.pip.is_file():
        raise ConfigError(
            f"--pip {options.pip}: there is no such file; it is a list of requirements, as pip's -r reads it"
        )
    client = connect(address)
    if not (options.insecure or asks_for_token(address)):
        raise TokenError(
            f"the cluster at {address} asks for no token: whoever reaches that port can run commands on its machines. "
            "Start it with RAY_AUTH_MODE=token (`ray get-auth-token --generate` makes one), or give --insecure if "
            "nobody else can reach it"
        )
    return client


def _running(client: JobSubmissionClient, wanted: dict[str, str], address: str) -> Job | None:
    """The job of the same run that has not ended, if there is one.

    Raises:
        ConfigError: it does something else.
    """
    for job in _jobs(client):
        if job.run_dir != wanted[RUN_DIR] or job.is_over:
            continue
        follow_it, stop_it = (command(f"job {each} {job.id}", address) for each in ("logs -f", "stop"))
        ways_out = f"follow it with {follow_it}, or stop it with {stop_it}"
        if job.stage != wanted[STAGE]:
            raise ConfigError(f"the run {job.run} is busy: {job.id} runs its stage {job.stage}; {ways_out}")
        if job.settings != wanted[SETTINGS]:
            raise ConfigError(f"{job.id} runs {job.run} with other settings; {ways_out}, or give this run another name")
        return job
    return None


def _start(
    client: JobSubmissionClient, address: str, wanted: dict[str, str], config: str | None, options: JobOptions
) -> Submitted:
    failure: Exception = RuntimeError("it was not asked")
    with packed(config) as folder:
        for _ in range(SUBMISSIONS):
            number = 1 + max((_number(job.id) for job in _jobs(client) if job.run_dir == wanted[RUN_DIR]), default=0)
            job_id = f"{wanted[RUN]}-{sha256(wanted[RUN_DIR].encode()).hexdigest()[:6]}-{number}"
            try:
                client.submit_job(
                    entrypoint=_entrypoint(wanted, is_shipped=config is not None, options=options),
                    submission_id=job_id,
                    runtime_env=_runtime_env(folder, job_id, options),
                    metadata=dict(wanted),
                    entrypoint_num_cpus=options.entry.cpus or None,
                    entrypoint_num_gpus=options.entry.gpus or None,
                    entrypoint_memory=options.entry.memory_bytes or None,
                )
            except (*NOT_OF_RAY, RuntimeError) as error:
                # Another submission was faster, or ours came in.
                if (running := _running(client, wanted, address)) is not None:
                    is_new = running.id == job_id and ALREADY_USED not in str(error)
                    return Submitted(running.id, running.run_dir, is_new)
                if NO_AGENT not in str(error) and ALREADY_USED not in str(error):
                    raise _refused(address, error) from error
                failure = error
            else:
                return Submitted(job_id, wanted[RUN_DIR], is_new=True)
    raise _refused(address, failure) from failure


def _refused(address: str, error: Exception) -> ClusterError:
    return ClusterError(f"the cluster at {address} refused the job: {' '.join(str(error).split())[:1000]}")


def _number(job_id: str) -> int:
    last = job_id.rpartition("-")[2]
    return int(last) if last.isdecimal() else 0


def _entrypoint(wanted: dict[str, str], *, is_shipped: bool, options: JobOptions) -> str:
    """The command of the job. `exec`: the shell that Ray starts would end at SIGTERM, before a training has saved."""
    config = CONFIG_NAME if is_shipped else f"{wanted[RUN_DIR]}/config.yaml"
    command = ["python", "-m", "launch.supervise", "--command", wanted[STAGE], "--config", config]
    command += ["--restarts", str(options.restarts), *(part for name in options.env for part in ("--env", name))]
    command += [] if options.env_file is None else ["--env-file", options.env_file]
    return f"exec {shlex.join(command)}"


def _runtime_env(folder: Path, job_id: str, options: JobOptions) -> dict[str, Any]:
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(round(60 * options.stop_minutes)), "REELFLOW_JOB": job_id}
    environment: dict[str, Any] = {"working_dir": str(folder), "env_vars": variables}
    if options.env_file is not None:
        variables[FILE_VARIABLE] = options.env_file
        environment["worker_process_setup_hook"] = "launch.job_environment.load_in_worker"
    if options.pip is not None:
        environment["pip"] = str(options.pip)
    return environment


def list_jobs(address: str) -> list[Job]:
    """All jobs of reelflow that the cluster knows, the newest last. Errors as `status`."""
    return _jobs(connect(address))


def status(job_id: str, address: str) -> Job:
    """A job.

    Raises:
        ConfigError: there is none of that id.
        ClusterError: the cluster gives no answer.
    """
    return find_job(connect(address), job_id)


def find_job(client: JobSubmissionClient, job_id: str) -> Job:
    """As `status`."""
    try:
        return _job(client.get_job_info(job_id))
    except RuntimeError as error:
        if "status code 404" not in str(error):
            raise ClusterError(
                f"the cluster gave no answer about the job {job_id!r} ({first_line(error)}); try again"
            ) from error
        raise ConfigError(f"there is no job {job_id!r} on that cluster; `reelflow job list` shows its jobs") from error
    except NOT_OF_RAY as error:
        raise ClusterError(f"the cluster gave no answer about the job {job_id!r} ({first_line(error)})") from error


def _jobs(client: JobSubmissionClient) -> list[Job]:
    try:
        details = [each for each in client.list_jobs() if RUN_DIR in (each.metadata or {})]
    except (*NOT_OF_RAY, RuntimeError) as error:
        raise ClusterError(f"the cluster gave no list of its jobs ({first_line(error)})") from error
    return [_job(each) for each in sorted(details, key=lambda each: each.start_time or 0)]


def _job(details: Any) -> Job:  # noqa: ANN401 - Ray has no class of it where pydantic is missing
    metadata, start, end = details.metadata or {}, details.start_time, details.end_time
    return Job(
        id=details.submission_id or "",
        status=JobStatus(details.status).value,
        run=metadata.get(RUN, ""),
        stage=metadata.get(STAGE, ""),
        run_dir=metadata.get(RUN_DIR, ""),
        settings=metadata.get(SETTINGS, ""),
        started=None if not start else datetime.fromtimestamp(start / 1000, UTC).isoformat(timespec="seconds"),
        seconds=None if not start else (end or 1000 * time.time()) / 1000 - start / 1000,
        message=" ".join((details.message or "").partition(LAST_LOGS)[0].split()),
        exit_code=details.driver_exit_code,
    )


def follow(job_id: str, address: str) -> Iterator[str]:
    """The job's log, from its start to its end, as it is written."""
    client = connect(address)
    find_job(client, job_id)
    lines = client.tail_job_logs(job_id)

    async def next_lines() -> str | None:
        return await anext(lines, None)

    with asyncio.Runner() as runner:  # which ends the connection, however the block ends
        while True:
            try:
                text = runner.run(next_lines())
            except Exception as error:  # of aiohttp, or RuntimeError
                raise ClusterError(
                    f"the log of {job_id} ended early ({first_line(error)}); where the cluster still answers, the job "
                    f"goes on: follow it again with {command(f'job logs -f {job_id}', address)}. Otherwise submit the "
                    "run again once the cluster is back, which continues it"
                ) from error
            if text is None:
                return
            yield text


def logs(job_id: str, address: str) -> str:
    """The job's log so far. Errors as `status`."""
    client = connect(address)
    find_job(client, job_id)
    try:
        return client.get_job_logs(job_id)
    except (*NOT_OF_RAY, RuntimeError) as error:
        raise ClusterError(f"the cluster gave no log of {job_id} ({first_line(error)})") from error


def stop(job_id: str, address: str) -> Iterator[Job]:
    """Ask a job to stop: Ray sends SIGTERM, on which a training saves, and SIGKILL after the job's `stop_minutes`.

    Yields:
        the job, about every half second, until it has ended; the last one is its status in the end.
    """
    client = connect(address)
    job = find_job(client, job_id)
    if not job.is_over:
        try:
            client.stop_job(job_id)
        except (*NOT_OF_RAY, RuntimeError) as error:
            raise ClusterError(f"{job_id} could not be asked to stop ({first_line(error)}); try again") from error
    while not job.is_over:
        yield job
        time.sleep(POLL_SECONDS)
        job = find_job(client, job_id)
    yield job


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
