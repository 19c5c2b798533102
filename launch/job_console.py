"""What commands of jobs print: what was submitted, tables, and a job's log until it ends."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from launch.overrides import Override

if TYPE_CHECKING:
    from launch.jobs import Job, JobOptions, Submitted

EXIT_CODES = {"PENDING": 0, "RUNNING": 0, "SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}
"""Of `job status`, `job stop` and whatever follows a job."""


class Again:
    """How to submit once more where the machine of a job's driver was lost."""

    def __init__(self, stage: str, config: Path | str, overrides: Sequence[Override], options: "JobOptions") -> None:
        self.arguments = (stage, config, overrides)
        self.options = options

    def submit(self, address: str) -> "Submitted":
        """Submit it; errors as `jobs.submit`."""
        from launch import jobs

        return jobs.submit(*self.arguments, address, self.options)


def follow_to_the_end(job_id: str, address: str, again: Again | None = None) -> None:
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
            follows, stops = (jobs.command(f"job {each} {job_id}", address) for each in ("logs -f", "stop"))
            typer.echo(f"\n{job_id} goes on; {follows} follows it, {stops} stops it", err=True)
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


def tell(submitted: "Submitted", address: str, *, follow: bool, as_json: bool) -> None:
    """Say which job does what was asked for, where the run is, and how it ends."""
    from launch import jobs

    if as_json:
        typer.echo(json.dumps(asdict(submitted), indent=1))
        return
    told = "submitted {}" if submitted.is_new else "attached to {}, which runs it already"
    typer.echo(f"{told.format(submitted.job_id)}; the run is in {submitted.run_dir}")
    stop = jobs.command(f"job stop {submitted.job_id}", address)
    typer.echo(f"{'Ctrl-C ends the log below, not the job; ' if follow else ''}{stop} stops it once it has saved")


def print_last_line(job_id: str, address: str) -> None:
    """Where a job is, or what it said in the end."""
    from launch import jobs

    lines = reversed(jobs.logs(job_id, address).splitlines())
    typer.echo(f"  {next((line.strip() for line in lines if line.strip()), 'no log yet')}")


def table(found: "list[Job]") -> str:
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
