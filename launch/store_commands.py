"""The commands that copy a whole run to an object store and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.command_options import Debug, expand_home_option, readable_errors

if TYPE_CHECKING:
    from pipeline.run.stored_run import Transfer

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, as runs/demo.", callback=expand_home_option)]
Place = Annotated[str, typer.Argument(metavar="URI", help="Its place in a store, as s3://bucket/runs/demo.")]


def push(run: Run, place: Place, debug: Debug = False) -> None:
    """Copy a run to an object store: all of its stages, checkpoints and samples. What is there is not sent again.

    Example: `reelflow push runs/demo s3://bucket/runs/demo`
    """
    with readable_errors(debug):
        from pipeline.run.stored_run import push_run

        typer.echo(f"pushed {run} to {place}: {_described(push_run(run, place))}")


def pull(
    place: Place,
    run: Run,
    only: Annotated[
        list[str] | None, typer.Option(metavar="FOLDER", help="Fetch this folder, as dit; may be repeated.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Copy a run from an object store into a folder, where `run` continues it.

    Example: `reelflow pull s3://bucket/runs/demo runs/demo --only dit`
    """
    with readable_errors(debug):
        from pipeline.run.stored_run import pull_run

        typer.echo(f"pulled {place} into {run}: {_described(pull_run(place, run, only or ()))}")


def _described(transfer: "Transfer") -> str:
    """What was copied, in words."""
    return (
        f"{transfer.num_copied} of {transfer.num_files} files were copied ({transfer.bytes_copied / 1e6:.1f} MB), the "
        "others were there"
    )
