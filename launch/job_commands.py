"""The commands `submit` and `job`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.command_options import Config, Debug, Overrides, expand_home_option, readable_errors
from launch.overrides import Override

if TYPE_CHECKING:
    from launch.jobs import Job, JobOptions, Submitted

EXIT_CODES = {"PENDING": 0, "RUNNING": 0, "SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}
"""Of `job status`, `job stop` and whatever follows a job."""
job_app = typer.Typer(
    help="Watch, stop and resume jobs of `submit`. Exit codes: 0 pending, running or succeeded, 1 failed, 130 stopped.",
    no_args_is_help=True,
)

Address = Annotated[str, typer.Option(help="Where the cluster's dashboard answers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        "--allow-no-token",
        help="Also to a cluster without a token, on which anybody who reaches it can run commands.",
    ),
]
EntryCpus = Annotated[float, typer.Option(min=0, help="CPUs that the driver takes, beside its workers.")]
EntryGpus = Annotated[float, typer.Option(min=0, help="GPUs that the driver takes, beside its workers.")]
EntryMemory = Annotated[str | None, typer.Option(metavar="SIZE", help="Memory that the driver takes, such as 8GiB.")]
Image = Annotated[str | None, typer.Option(metavar="URI", help="Container image for driver and workers.")]
Pip = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Requirements to install on the cluster.", callback=expand_home_option),
]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME", help="A variable that has to be set on the cluster; may be repeated."),
]
EnvFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="File on the cluster's machines with NAME=VALUE lines.")
]
Restarts = Annotated[int, typer.Option(min=0, max=100, help="How often a driver that dies is started again.")]
StopMinutes = Annotated[float, typer.Option(min=0.1, help="How long a job that is stopped may take to save.")]
WaitForNodes = Annotated[
    bool, typer.Option("--wait-for-nodes", help="Submit although the cluster has no room for the workers yet.")
]
Follow = Annotated[bool, typer.Option("--follow/--no-follow", help="Print the job's log until it ends.")]


def submit(
    stage: Annotated[
        str, typer.Argument(help='run, demo, shard, encode, sample, evaluate, "train autoencoder" or "train dit".')
    ],
    config: Config,
    address: Address = "http://127.0.0.1:8265",
    overrides: Overrides = None,
    follow: Follow = True,
    insecure: Insecure = False,
    entry_cpus: EntryCpus = 0,
    entry_gpus: EntryGpus = 0,
    entry_memory: EntryMemory = None,
    image: Image = None,
    pip: Pip = None,
    env: Env = None,
    env_file: EnvFile = None,
    restarts: Restarts = 3,
    stop_minutes: StopMinutes = 60,
    wait_for_nodes: WaitForNodes = False,
    list_files: Annotated[
        bool, typer.Option("--list-files", help="Only print what would be shipped to the cluster.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run a stage as a Ray job on a cluster; attaches to the job of the same run that is running already.

    Example: `reelflow submit "train dit" my.yaml --address http://127.0.0.1:8265`
    """
    with readable_errors(debug):
        if list_files:
            _list_files()
            return
        from launch import jobs

        options = _options(
            insecure, (entry_cpus, entry_gpus, entry_memory), image, pip, env, env_file, restarts, stop_minutes
        )
        options = replace(options, wait_for_nodes=wait_for_nodes)
        submitted = jobs.submit(stage, config, overrides or [], address, options)
        _tell(submitted, as_json=as_json)
        if follow and not as_json:
            _follow_to_the_end(submitted.job_id, address, _Again(stage, config, overrides or [], options))


@job_app.command("list")
def job_list(address: Address = "http://127.0.0.1:8265", as_json: AsJson = False, debug: Debug = False) -> None:
    """Show all jobs that the cluster knows, the newest last."""
    with readable_errors(debug):
        from launch import jobs

        found = jobs.list_jobs(address)
        typer.echo(json.dumps([asdict(job) for job in found], indent=1) if as_json else _table(found))


@job_app.command("status")
def job_status(
    job_id: str, address: Address = "http://127.0.0.1:8265", as_json: AsJson = False, debug: Debug = False
) -> None:
    """Say how a job is doing."""
    with readable_errors(debug):
        from launch import jobs

        job = jobs.status(job_id, address)
        typer.echo(json.dumps(asdict(job), indent=1) if as_json else f"{job_id}: {job.status}  {job.message}".rstrip())
    raise typer.Exit(EXIT_CODES[job.status])


@job_app.command("logs")
def job_logs(
    job_id: str,
    address: Address = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    debug: Debug = False,
) -> None:
    """Print a job's log."""
    with readable_errors(debug):
        from launch import jobs

        if follow:
            _follow_to_the_end(job_id, address)
        else:
            typer.echo(jobs.logs(job_id, address), nl=False)


@job_app.command("follow", hidden=True)
def job_follow(job_id: str, address: Address = "http://127.0.0.1:8265", debug: Debug = False) -> None:
    """As `job logs --follow`."""
    with readable_errors(debug):
        _follow_to_the_end(job_id, address)


@job_app.command("stop")
def job_stop(
    job_id: str, address: Address = "http://127.0.0.1:8265", as_json: AsJson = False, debug: Debug = False
) -> None:
    """Stop a job once it has saved, and wait until it has; `job resume` continues."""
    with readable_errors(debug):
        from launch import jobs

        if not as_json:
            typer.echo(f"{job_id}: asked to stop, which may take until it has saved")
        *_, job = jobs.stop(job_id, address)
        typer.echo(json.dumps(asdict(job), indent=1) if as_json else f"{job_id}: {job.status}")
    raise typer.Exit(0 if job.status == "STOPPED" else EXIT_CODES[job.status])


@job_app.command("resume")
def job_resume(
    job_id: str,
    address: Address = "http://127.0.0.1:8265",
    follow: Follow = True,
    insecure: Insecure = False,
    entry_cpus: EntryCpus = 0,
    entry_gpus: EntryGpus = 0,
    entry_memory: EntryMemory = None,
    image: Image = None,
    pip: Pip = None,
    env: Env = None,
    env_file: EnvFile = None,
    restarts: Restarts = 3,
    stop_minutes: StopMinutes = 60,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Continue the run of a job that was stopped or failed, as a new job, with the configuration in the run's folder.

    To change settings, submit the run again instead.
    """
    with readable_errors(debug):
        from launch import jobs

        options = _options(
            insecure, (entry_cpus, entry_gpus, entry_memory), image, pip, env, env_file, restarts, stop_minutes
        )
        submitted = jobs.resume(job_id, address, options)
        _tell(submitted, as_json=as_json)
        if follow and not as_json:
            _follow_to_the_end(submitted.job_id, address)


class _Again:
    """How to submit once more where the machine of a job's driver was lost."""

    def __init__(self, stage: str, config: Path, overrides: Sequence[Override], options: "JobOptions") -> None:
        self.arguments = (stage, config, overrides)
        self.options = options

    def submit(self, address: str) -> "Submitted":
        from launch import jobs

        return jobs.submit(*self.arguments, address, self.options)


def _follow_to_the_end(job_id: str, address: str, again: _Again | None = None) -> None:
    """Print the log, then the status; exits with its code.

    Args:
        again: where the machine of the driver is lost, the job is submitted again, as often as a driver may restart.
    """
    from launch import jobs

    left = 0 if again is None else again.options.restarts
    while True:
        try:
            for text in jobs.follow(job_id, address):
                typer.echo(text, nl=False)
        except KeyboardInterrupt:
            typer.echo(f"\n{job_id} goes on; `reelflow job logs -f {job_id}` follows it, `job stop` stops it", err=True)
            raise typer.Exit(130) from None
        job = jobs.status(job_id, address)
        typer.echo(f"{job_id}: {job.status}" + ("" if job.status == "SUCCEEDED" else f"  {job.message}").rstrip())
        if again is None or not left or not job.was_lost:
            break
        left -= 1
        job_id = again.submit(address).job_id
        typer.echo(f"the machine of its driver was lost: submitted again as {job_id}")
    if code := EXIT_CODES[job.status]:
        raise typer.Exit(code)


def _options(
    insecure: bool,
    entry: tuple[float, float, str | None],
    image: str | None,
    pip: Path | None,
    env: list[str] | None,
    env_file: str | None,
    restarts: int,
    stop_minutes: float,
) -> "JobOptions":
    from launch.job_client import EntryResources
    from launch.jobs import JobOptions
    from launch.plan_hardware import parse_size

    cpus, gpus, memory = entry
    resources = EntryResources(cpus, gpus, 0 if memory is None else parse_size(memory, "--entry-memory"))
    return JobOptions(insecure, resources, image, pip, tuple(env or ()), env_file, restarts, stop_minutes)


def _list_files() -> None:
    from launch.job_package import shipped_files

    files = shipped_files()
    for file in files:
        typer.echo(f"{file.size:>10,}  {file.name}")
    typer.echo(f"{sum(file.size for file in files):>10,}  bytes in {len(files)} files, and the configuration")


def _tell(submitted: "Submitted", *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(submitted), indent=1))
    elif submitted.is_new:
        typer.echo(f"submitted {submitted.job_id}")
    else:
        typer.echo(f"attached to {submitted.job_id}, which runs it already")


def _table(found: "list[Job]") -> str:
    """A line for each job."""
    rows = [("JOB", "STATUS", "STAGE", "STARTED (UTC)", "TIME")]
    for job in found:
        started = "" if job.started is None else job.started[:19].replace("T", " ")
        rows.append((job.id, job.status, job.stage, started, _duration(job.seconds)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
