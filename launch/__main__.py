"""The command line: `python -m launch ...`, or `reelflow ...` once installed.

Heavy libraries are imported by the command that needs them, so that help and bad input answer at once.
"""

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from launch.config import RunConfig

PROJECT_DIR = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "data", "pipeline", "launch")

app = typer.Typer(
    help="Turn a folder of videos into a video generator: shard, train, encode, train, sample, evaluate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
train_app = typer.Typer(help="Train the autoencoder or the diffusion transformer.", no_args_is_help=True)
job_app = typer.Typer(help="Watch and stop jobs submitted with `submit`.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(job_app, name="job")

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a preset: demo, real-tiny.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override a field; may be repeated."),
]
Retry = Annotated[bool, typer.Option("--retry", help="Try again what an earlier start put in quarantine.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the plan; do nothing.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Address = Annotated[str, typer.Option(help="Where the cluster's dashboard answers.")]


def main() -> None:
    """Entry point of the console script."""
    _refuse_shadowed_packages()
    app(prog_name="reelflow")


def _refuse_shadowed_packages() -> None:
    """`models` and `data` are common names: make sure they are ours and not another project's."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        location = Path(package.__file__ or "").resolve().parent
        if location.parent != PROJECT_DIR:
            sys.exit(
                f"error: the package {name!r} was imported from {location}, not from {PROJECT_DIR}.\n"
                f"Another package of that name comes first; run `python -m launch` from {PROJECT_DIR}, "
                f"or take the other folder off PYTHONPATH."
            )


@contextmanager
def _errors_for_people(debug: bool) -> Iterator[None]:
    """Turn the errors we know into one message and an exit code; leave tracebacks to --debug."""
    from launch.errors import describe
    from launch.run import StoppedError

    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\nstopped; nothing is half-written, and the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    except StoppedError as stop:
        typer.echo(f"{stop}; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    except Exception as error:
        message = describe(error)
        if debug or message is None:
            raise
        typer.secho(f"error: {message}", fg="red", err=True)
        raise typer.Exit(1) from None


@dataclass(frozen=True)
class _Start:
    """How a command was started."""

    overrides: list[str] | None
    dry_run: bool
    debug: bool
    on_ray: bool = True
    retry: bool = False
    allowed_changes: list[str] | None = None


def _run(config: Path, stages: tuple[str, ...], start: _Start) -> None:
    with _errors_for_people(start.debug):
        from launch.config import dump_config, load_config

        resolved = load_config(config, start.overrides or [])
        if start.dry_run:
            typer.echo(dump_config(resolved))
            typer.echo(_plan(resolved, stages))
            return
        warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries; ours are errors in the tests
        from launch.run import Road

        with Road(
            resolved,
            on_ray=start.on_ray,
            retry=start.retry,
            allowed_changes=start.allowed_changes,
            say=typer.echo,
        ) as road:
            road.run(stages)


def _plan(config: "RunConfig", stages: tuple[str, ...]) -> str:
    from launch.plan import describe_plan

    return describe_plan(config, stages)


@app.command()
def demo(overrides: Overrides = None, dry_run: DryRun = False, debug: Debug = False) -> None:
    """Draw moving shapes, learn them, and generate clips that do what their captions say.

    Example: `reelflow demo`
    """
    run(Path("demo"), overrides, dry_run, debug)


@app.command()
def run(config: Config, overrides: Overrides = None, dry_run: DryRun = False, debug: Debug = False) -> None:
    """Every stage, each skipped where its output still stands.

    Example: `reelflow run real-tiny --set data.source=my/videos --set dit.train.steps=3000`
    """
    from launch.plan import STAGES

    _run(config, STAGES, _Start(overrides, dry_run, debug))
    if not dry_run:
        from launch.plan import closing_summary

        with _errors_for_people(debug):
            from launch.config import load_config

            typer.echo(closing_summary(load_config(config, overrides or [])))


@app.command()
def shard(
    config: Config, overrides: Overrides = None, retry: Retry = False, dry_run: DryRun = False, debug: Debug = False
) -> None:
    """Cut videos into WebDataset shards of captioned clips.

    Example: `reelflow shard real-tiny --set data.source=my/videos`
    """
    _run(config, ("draw", "shard"), _Start(overrides, dry_run, debug, retry=retry))


Resume = Annotated[
    bool,
    typer.Option("--resume", help="Insist on going on from a checkpoint; fail without one, or if settings changed."),
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


def _train(kind: str, config: Path, start: _Start) -> None:
    if start.allowed_changes is not None:
        with _errors_for_people(start.debug):
            from launch.config import load_config
            from pipeline.checkpoint.read import insist_on_checkpoint

            insist_on_checkpoint(load_config(config, start.overrides or []).run_dir / kind)
    _run(config, (f"train {kind}",), start)


@train_app.command()
def autoencoder(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    allow_change: AllowChange = None,
    local: Local = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Train the video autoencoder; goes on from its latest checkpoint.

    Example: `reelflow train autoencoder demo --set autoencoder.train.steps=2000 --resume`
    """
    allowed = allow_change or ([] if resume else None)
    _train("autoencoder", config, _Start(overrides, dry_run, debug, on_ray=not local, allowed_changes=allowed))


@train_app.command()
def dit(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    allow_change: AllowChange = None,
    local: Local = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Train the diffusion transformer with flow matching; goes on from its latest checkpoint.

    Example: `reelflow train dit demo --set dit.train.steps=5000 --resume`
    """
    allowed = allow_change or ([] if resume else None)
    _train("dit", config, _Start(overrides, dry_run, debug, on_ray=not local, allowed_changes=allowed))


@app.command()
def encode(config: Config, overrides: Overrides = None, dry_run: DryRun = False, debug: Debug = False) -> None:
    """Encode clip shards into latent shards.

    Example: `reelflow encode demo`
    """
    _run(config, ("encode",), _Start(overrides, dry_run, debug))


@app.command()
def sample(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A config, or a folder with a DiT checkpoint.")],
    prompts: Annotated[Path | None, typer.Option(help="One prompt a line, or JSONL.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where clips go when TARGET is a checkpoint.")] = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Turn prompts into clips.

    Example: `reelflow sample runs/demo/dit --prompts prompts.txt --output clips --set sample.guidance_scale=4`
    """
    given = [*(overrides or []), *([f"sample.prompts={prompts}"] if prompts else [])]
    if not target.is_dir():
        _run(target, ("sample",), _Start(given, dry_run, debug))
        return
    with _errors_for_people(debug):
        from launch.sample import sample_checkpoint

        if prompts is None or output is None:
            raise typer.BadParameter("a checkpoint is sampled with --prompts FILE and --output FOLDER")
        for line in sample_checkpoint(target, output, given, dry_run=dry_run):
            typer.echo(line)


@app.command()
def evaluate(config: Config, overrides: Overrides = None, dry_run: DryRun = False, debug: Debug = False) -> None:
    """Measure reconstruction and prompt adherence, and write the report.

    Example: `reelflow evaluate demo`
    """
    _run(config, ("evaluate",), _Start(overrides, dry_run, debug))


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A run, a dataset, a checkpoint, or a samples folder.")],
    html: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of a dataset: write a page and a contact sheet there.")
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="How many clips the page shows.")] = 24,
    debug: Debug = False,
) -> None:
    """Say what a folder holds, and show a dataset.

    Example: `reelflow inspect runs/demo/clips --html look`
    """
    with _errors_for_people(debug):
        from launch.inspect import describe_folder, show_folder

        typer.echo(describe_folder(path))
        if html is not None:
            for file in show_folder(path, html, clips):
                typer.echo(f"  wrote {file} ({file.stat().st_size / 1e6:.1f} MB)")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a folder with checkpoints, as runs/NAME/dit.")],
    output: Annotated[Path, typer.Argument(help="The safetensors file to write; a .json goes beside it.")],
    raw: Annotated[bool, typer.Option("--raw", help="The weights as trained, not their average.")] = False,
    average: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another than the first average, such as power-0.10.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a checkpoint's weights as one safetensors file.

    Example: `reelflow export runs/demo/dit dit.safetensors`
    """
    with _errors_for_people(debug):
        from pipeline.checkpoint.export import export_weights
        from pipeline.checkpoint.read import open_checkpoint
        from pipeline.run.weight_names import FIRST, MASTER

        if raw and average is not None:
            raise typer.BadParameter("--raw and --average name different weights; give one of them")
        found = open_checkpoint(checkpoint)
        description = export_weights(found, output, MASTER if raw else average or FIRST)
        typer.echo(f"wrote {output} and {description} from {found.folder}")


@app.command()
def submit(
    stage: Annotated[
        str, typer.Argument(help='run, demo, shard, encode, sample, evaluate, "train autoencoder" or "train dit".')
    ],
    config: Config,
    address: Address = "http://127.0.0.1:8265",
    overrides: Overrides = None,
    follow: Annotated[bool, typer.Option(help="Print the job's log until it ends.")] = True,
    debug: Debug = False,
) -> None:
    """Run a stage as a Ray job on a cluster.

    Example: `reelflow submit "train dit" my.yaml --address http://127.0.0.1:8265`
    """
    with _errors_for_people(debug):
        from launch import jobs

        job_id = jobs.submit(stage, config, overrides or [], address)
        typer.echo(f"submitted {job_id}")
        if follow:
            _follow(job_id, address)


@job_app.command("follow")
def job_follow(job_id: str, address: Address = "http://127.0.0.1:8265", debug: Debug = False) -> None:
    """Print a job's log until it ends."""
    with _errors_for_people(debug):
        _follow(job_id, address)


def _follow(job_id: str, address: str) -> None:
    from launch import jobs

    for text in jobs.follow(job_id, address):
        typer.echo(text, nl=False)
    status = jobs.status(job_id, address)
    typer.echo(f"{job_id}: {status}")
    if status != "SUCCEEDED":
        raise typer.Exit(1)


@job_app.command("status")
def job_status(job_id: str, address: Address = "http://127.0.0.1:8265", debug: Debug = False) -> None:
    """Say how a job is doing."""
    with _errors_for_people(debug):
        from launch import jobs

        typer.echo(f"{job_id}: {jobs.status(job_id, address)}")


@job_app.command("stop")
def job_stop(job_id: str, address: Address = "http://127.0.0.1:8265", debug: Debug = False) -> None:
    """Stop a job; what it has published stays, and submitting it again goes on."""
    with _errors_for_people(debug):
        from launch import jobs

        jobs.stop(job_id, address)
        typer.echo(f"{job_id}: {jobs.status(job_id, address)}")


if __name__ == "__main__":
    main()
