"""The commands `demo` and `run`, and one for each stage."""

import logging
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated

import typer

from launch.command_options import Config, Debug, DryRun, Overrides, Quiet, Verbose, readable_errors
from launch.overrides import Override
from launch.stages import NAMES, Entry, Options, stages_of

Retry = Annotated[bool, typer.Option("--retry", help="Try again what an earlier start put in quarantine.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Require a checkpoint to resume from; fail without one, or if settings changed."),
]
AllowChange = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-change",
        metavar="NAME",
        help="Resume although this setting is not what the checkpoints were trained with; may be repeated.",
    ),
]
Local = Annotated[bool, typer.Option("--local", help="Train in this process, without Ray. torchrun implies it.")]


@dataclass(frozen=True)
class Start:
    """How a command was started."""

    overrides: Sequence[Override] | None
    dry_run: bool
    verbose: bool
    quiet: bool
    debug: bool
    retry: bool = False
    resume: bool = False
    allow_change: list[str] | None = None
    local: bool = False

    def level(self) -> int:
        """The lowest level of messages that are shown.

        Raises:
            BadParameter: --quiet is given together with --verbose or --dry-run.
        """
        if self.verbose and self.quiet:
            raise typer.BadParameter("--verbose and --quiet contradict each other; give one of them")
        if self.dry_run and self.quiet:
            raise typer.BadParameter("--dry-run only prints, and --quiet prints warnings only; give one of them")
        if self.quiet:
            return logging.WARNING
        return logging.DEBUG if self.verbose else logging.INFO

    @property
    def allowed_changes(self) -> list[str] | None:
        """Of a training that has to resume; None: it may start anew."""
        return self.allow_change or ([] if self.resume else None)


def start_stages(config: str, stages: Collection[str], start: Start) -> None:
    """Load the configuration, then print the plan or run the stages."""
    with readable_errors(start.debug):
        from launch.config import dump_config, load_config

        level = start.level()
        resolved = load_config(config, start.overrides or [])
        if start.dry_run:
            from launch.plan import describe_plan

            typer.echo(dump_config(resolved))
            typer.echo(describe_plan(resolved, stages))
            return
        warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries; ours are errors in the tests
        from launch.run import StartOptions, run_stages
        from launch.stored import fetch
        from pipeline.run.logs import console_log

        is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
        with console_log(level) if is_first else nullcontext():
            fetch(resolved)
            if start.allowed_changes is not None:
                from pipeline.checkpoint.read import require_checkpoint
                from pipeline.train.monitor.events import last_saved_step

                for stage in stages_of(resolved, stages):
                    stage_dir = resolved.run_dir / stage.folder
                    require_checkpoint(stage_dir, last_saved_step(stage_dir))
            run_stages(resolved, stages, StartOptions(not start.local, start.retry, start.allowed_changes))


def demo(
    overrides: Overrides = None,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw moving shapes, learn them, and generate clips that do what their captions say.

    Example: `reelflow demo`
    """
    run("demo", overrides, dry_run, verbose, quiet, debug)


def run(
    config: Config,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Every stage, each skipped while its output is up to date.

    Example: `reelflow run real-tiny --set data.source=my/videos --set dit.train.steps=3000`
    """
    start_stages(config, NAMES, Start(overrides, dry_run, verbose, quiet, debug))
    if not dry_run and not quiet:
        from launch.plan import closing_summary

        with readable_errors(debug):
            from launch.config import load_config

            typer.echo(closing_summary(load_config(config, overrides or [])))


def stage_command(entry: Entry, options: Options) -> Callable[..., None]:
    """The command of a stage, with the options that it takes."""

    def plain(
        config: Config,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        verbose: Verbose = False,
        quiet: Quiet = False,
        debug: Debug = False,
    ) -> None:
        start_stages(config, entry.runs, Start(overrides, dry_run, verbose, quiet, debug))

    def retrying(
        config: Config,
        overrides: Overrides = None,
        retry: Retry = False,
        dry_run: DryRun = False,
        verbose: Verbose = False,
        quiet: Quiet = False,
        debug: Debug = False,
    ) -> None:
        start_stages(config, entry.runs, Start(overrides, dry_run, verbose, quiet, debug, retry=retry))

    def training(
        config: Config,
        overrides: Overrides = None,
        resume: Resume = False,
        allow_change: AllowChange = None,
        local: Local = False,
        dry_run: DryRun = False,
        verbose: Verbose = False,
        quiet: Quiet = False,
        debug: Debug = False,
    ) -> None:
        start = Start(overrides, dry_run, verbose, quiet, debug, resume=resume, allow_change=allow_change, local=local)
        start_stages(config, entry.runs, start)

    return {"plain": plain, "retry": retrying, "training": training}[options]
