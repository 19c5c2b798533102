"""The commands `submit` and `job`."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.command_options import Debug, Overrides, expand_home_option, read_place_option, readable_errors
from launch.job_console import EXIT_CODES, Again, follow_to_the_end, print_last_line, table, tell
from launch.job_environment import ADDRESS_VARIABLE, DEFAULT_ADDRESS
from launch.overrides import ConfigError

if TYPE_CHECKING:
    from launch.jobs import JobOptions

job_app = typer.Typer(
    help="Watch, stop and resume jobs of `submit`. Exit codes: 0 pending, running or succeeded, 1 failed, 130 stopped.",
    no_args_is_help=True,
)

Address = Annotated[
    str, typer.Option(envvar=ADDRESS_VARIABLE, show_envvar=True, help="Where the cluster's dashboard answers.")
]
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
    stage_and_config: Annotated[
        list[str],
        typer.Argument(
            metavar="STAGE CONFIG",
            help="Run (all stages), demo, shard, train autoencoder, encode, train dit, train distill, sample or "
            "evaluate; then a YAML file, or the name of a preset: demo, real-tiny, gpu-1, gpu-8, gpu-64.",
        ),
    ],
    address: Address = DEFAULT_ADDRESS,
    overrides: Overrides = None,
    follow: Follow = True,
    insecure: Insecure = False,
    entry_cpus: EntryCpus = 0,
    entry_gpus: EntryGpus = 0,
    entry_memory: EntryMemory = None,
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

    Example: `reelflow submit train dit my.yaml --address http://127.0.0.1:8265`
    """
    with readable_errors(debug):
        if list_files:
            _list_files()
            return
        from launch import jobs

        stage, config = _stage_and_config(stage_and_config)
        options = _options(insecure, (entry_cpus, entry_gpus, entry_memory), pip, env, env_file, restarts, stop_minutes)
        options = replace(options, wait_for_nodes=wait_for_nodes)
        submitted = jobs.submit(stage, config, overrides or [], address, options)
        tell(submitted, address, follow=follow, as_json=as_json)
        if follow and not as_json:
            follow_to_the_end(submitted.job_id, address, Again(stage, config, overrides or [], options))


@job_app.command("list")
def job_list(address: Address = DEFAULT_ADDRESS, as_json: AsJson = False, debug: Debug = False) -> None:
    """Show all jobs that the cluster knows, the newest last."""
    with readable_errors(debug):
        from launch import jobs

        found = jobs.list_jobs(address)
        typer.echo(json.dumps([asdict(job) for job in found], indent=1) if as_json else table(found))


@job_app.command("status")
def job_status(job_id: str, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False, debug: Debug = False) -> None:
    """Say how a job is doing."""
    with readable_errors(debug):
        from launch import jobs

        job = jobs.status(job_id, address)
        if as_json:
            typer.echo(json.dumps(asdict(job), indent=1))
        else:
            typer.echo(f"{job_id}: {job.status}  {job.message}".rstrip())
            typer.echo(f"  stage {job.stage}, in {job.run_dir}")
            print_last_line(job_id, address)
    raise typer.Exit(EXIT_CODES[job.status])


@job_app.command("logs")
def job_logs(
    job_id: str,
    address: Address = DEFAULT_ADDRESS,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    debug: Debug = False,
) -> None:
    """Print a job's log."""
    with readable_errors(debug):
        from launch import jobs

        if follow:
            follow_to_the_end(job_id, address)
        else:
            typer.echo(jobs.logs(job_id, address), nl=False)


@job_app.command("follow", hidden=True)
def job_follow(job_id: str, address: Address = DEFAULT_ADDRESS, debug: Debug = False) -> None:
    """As `job logs --follow`."""
    with readable_errors(debug):
        follow_to_the_end(job_id, address)


@job_app.command("stop")
def job_stop(job_id: str, address: Address = DEFAULT_ADDRESS, as_json: AsJson = False, debug: Debug = False) -> None:
    """Stop a job once it has saved, and wait until it has; `job resume` continues."""
    with readable_errors(debug):
        from launch import jobs

        was_over = jobs.status(job_id, address).is_over
        if not as_json and not was_over:
            typer.echo(f"{job_id}: asked to stop, which may take until it has saved")
        *_, job = jobs.stop(job_id, address)
        if as_json:
            typer.echo(json.dumps(asdict(job), indent=1))
        else:
            typer.echo(f"{job_id}: {'had ended before: ' if was_over else ''}{job.status}")
            print_last_line(job_id, address)
            if job.status != "SUCCEEDED":
                typer.echo(f"{jobs.command(f'job resume {job_id}', address)} continues it")
    raise typer.Exit(0 if job.status == "STOPPED" else EXIT_CODES[job.status])


@job_app.command("resume")
def job_resume(
    job_id: str,
    address: Address = DEFAULT_ADDRESS,
    follow: Follow = True,
    insecure: Insecure = False,
    entry_cpus: EntryCpus = 0,
    entry_gpus: EntryGpus = 0,
    entry_memory: EntryMemory = None,
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

        options = _options(insecure, (entry_cpus, entry_gpus, entry_memory), pip, env, env_file, restarts, stop_minutes)
        submitted = jobs.resume(job_id, address, options)
        tell(submitted, address, follow=follow, as_json=as_json)
        if follow and not as_json:
            follow_to_the_end(submitted.job_id, address)


def _options(
    insecure: bool,
    entry: tuple[float, float, str | None],
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
    return JobOptions(insecure, resources, pip, tuple(env or ()), env_file, restarts, stop_minutes)


def _list_files() -> None:
    from launch.job_package import shipped_files

    files = shipped_files()
    for file in files:
        typer.echo(f"{file.size:>10,}  {file.name}")
    typer.echo(f"{sum(file.size for file in files):>10,}  bytes in {len(files)} files, and the configuration")


def _stage_and_config(words: list[str]) -> tuple[str, str]:
    """The stage, of one word or two, in quotes or not, and the configuration."""
    *stage, config = words
    if not stage:
        raise ConfigError("submit needs a stage and a configuration, such as `reelflow submit run my.yaml`")
    return " ".join(stage), read_place_option(config) or config
