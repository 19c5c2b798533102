"""Arguments and the handling of errors that commands share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from data.records import expand_home


def expand_home_option(path: Path | None) -> Path | None:
    """The path with the home folder for `~`, which a shell does not replace in `--output=~/clips`."""
    try:
        return None if path is None else Path(expand_home(str(path)))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Config = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="A YAML file, or the name of a preset: demo, demo-tokens, real-tiny, gpu-1, gpu-8, gpu-64.",
        callback=expand_home_option,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Override a field; may be repeated."),
]
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
