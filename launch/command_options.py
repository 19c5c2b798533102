"""Options and the handling of errors that commands share."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from data.files.locations import SCHEMES
from data.records import expand_home


def expand_home_option(path: Path | None) -> Path | None:
    """The path with the home folder for `~`, which a shell does not replace in `--output=~/clips`."""
    if path is not None and (uri := _URI_AS_PATH.match(str(path))) and not path.exists():
        raise typer.BadParameter(
            f"{uri[1]}://{uri[2]} is in a store, and this has to be a path; `reelflow pull` fetches a run from there"
        )
    try:
        return None if path is None else Path(expand_home(str(path)))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def read_place_option(place: str | None) -> str | None:
    """A path as of `expand_home_option`, or a URI as it is."""
    try:
        return None if place is None else expand_home(place)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


_URI_AS_PATH = re.compile(rf"({'|'.join(SCHEMES)}):/([^/].*)")
Config = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A YAML file, the name of a preset (demo, demo-tokens, real-tiny, gpu-1, gpu-8, gpu-64), or a run in a "
        "store, as s3://bucket/runs/demo.",
        callback=read_place_option,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override a field; may be repeated."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the plan; do nothing.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show debugging messages too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@contextmanager
def readable_errors(debug: bool) -> Iterator[None]:
    """Turn errors for the user into one message and an exit code; --debug shows tracebacks."""
    from launch.errors import describe
    from pipeline.run.context import StoppedError

    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\nstopped; nothing is half-written, and the same command continues from here", err=True)
        raise typer.Exit(130) from None
    except StoppedError as stop:
        typer.echo(f"{stop}; the same command continues from here", err=True)
        raise typer.Exit(130) from None
    except Exception as error:
        message = describe(error)
        if debug or message is None:
            raise
        typer.secho(f"error: {message}", fg="red", err=True)
        raise typer.Exit(1) from None
