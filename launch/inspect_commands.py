"""The commands `plan`, `inspect` and `export`: what a run will take, what it has made, and its weights as a file."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.command_options import Config, Debug, Overrides, expand_home_option, read_place_option, readable_errors

CLIPS_SHOWN = 24


def plan(
    config: Config,
    gpus: Annotated[int, typer.Option(min=1, help="How many GPUs train together.")],
    gpu_memory: Annotated[str, typer.Option(metavar="SIZE", help="Of one GPU, such as 80GiB.")],
    gpu: Annotated[
        str, typer.Option(metavar="NAME", help="A100, H100, H200 or B200, or the teraflops in bf16 of its data sheet.")
    ] = "H100",
    utilisation: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="Share of these that training reaches; as measured in the run if not given."
        ),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of one GPU for an hour.")] = None,
    clips: Annotated[int | None, typer.Option(min=1, help="How many clips the data will give.")] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON, for scripts.")] = False,
    debug: Debug = False,
) -> None:
    """Say whether a run fits on GPUs, how long it takes and what it costs, before any is taken.

    Exit code 0: it fits; 3: it does not.

    Example: `reelflow plan my.yaml --gpus 64 --gpu-memory 80GiB --price 2.5`
    """
    with readable_errors(debug):
        from launch.config import load_config
        from launch.plan_hardware import Hardware, parse_peak, parse_size
        from launch.plan_run import describe_run_plan, plan_run

        hardware = Hardware(gpus, parse_size(gpu_memory), parse_peak(gpu), utilisation, price)
        planned = plan_run(load_config(config, overrides or []), hardware, clips)
        typer.echo(planned.as_json() if as_json else describe_run_plan(planned))
    if not planned.fits:
        raise typer.Exit(3)


def inspect(
    path: Annotated[
        str,
        typer.Argument(
            help="A run, a dataset, a checkpoint, or a samples folder, also of a run in a store.",
            callback=read_place_option,
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Of a dataset: write a page and a contact sheet there.", callback=expand_home_option
        ),
    ] = None,
    clips: Annotated[int | None, typer.Option(min=1, help="How many clips the page shows: 24 if not given.")] = None,
    debug: Debug = False,
) -> None:
    """Say what a folder holds, and show a dataset.

    Example: `reelflow inspect runs/demo/clips --html look`
    """
    with readable_errors(debug):
        if clips is not None and html is None:
            raise typer.BadParameter("--clips is the number of clips that a page shows; give --html FOLDER too")
        from launch.inspect import describe_folder, show_folder
        from launch.local_copies import local_copies

        with local_copies(path) as (folder,):
            typer.echo(describe_folder(folder))
            if html is not None:
                for file in show_folder(folder, html, CLIPS_SHOWN if clips is None else clips):
                    typer.echo(f"  wrote {file} ({file.stat().st_size / 1e6:.1f} MB)")


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, or a folder with checkpoints, as runs/NAME/dit, also of a run in a store.",
            callback=read_place_option,
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="The safetensors file to write; a .json goes beside it. With --layout, a folder.",
            callback=expand_home_option,
        ),
    ],
    raw: Annotated[bool, typer.Option("--raw", help="The weights as trained, not their average.")] = False,
    average: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another than the first average, such as power-0.10.")
    ] = None,
    layout: Annotated[
        Literal["diffusers"] | None,
        typer.Option(help="Write a folder that diffusers loads; for networks whose architecture is wan."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a checkpoint's weights as one safetensors file, or in the layout of diffusers.

    Example: `reelflow export runs/demo/dit dit.safetensors`
    """
    with readable_errors(debug):
        from launch.local_copies import local_copies
        from pipeline.checkpoint.export import export_published, export_weights
        from pipeline.checkpoint.read import open_checkpoint
        from pipeline.run.weight_names import FIRST_AVERAGE, MASTER

        if raw and average is not None:
            raise typer.BadParameter("--raw and --average name different weights; give one of them")
        with local_copies(checkpoint) as (folder,):
            found, which = open_checkpoint(folder), MASTER if raw else average or FIRST_AVERAGE
            if layout is not None:
                export_published(found, output, which)
                typer.echo(f"wrote {output} in the layout of {layout}, from {found.folder}")
                return
            description = export_weights(found, output, which)
            typer.echo(f"wrote {output} and {description} from {found.folder}")
