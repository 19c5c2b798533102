"""The commands that make clips and show them: `sample`, `serve`, `remake` and `gallery`."""

from pathlib import Path
from typing import Annotated

import typer

from data.files.locations import is_uri
from launch.command_options import (
    Debug,
    DryRun,
    Overrides,
    Quiet,
    Verbose,
    expand_home_option,
    read_place_option,
    readable_errors,
)
from launch.overrides import Given
from launch.stage_commands import Start, start_stages


def sample(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A config, or a folder with a DiT checkpoint, also of a run in a store.",
            callback=read_place_option,
        ),
    ],
    prompts: Annotated[
        str | None, typer.Option(metavar="PATH", help="Text with one prompt a line, or a table; a path or a URI.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="Where clips go when TARGET is a checkpoint: a folder, or the URI of one in a store.",
            callback=read_place_option,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Sample part I of N of the clips of a checkpoint, for jobs on clusters apart."
        ),
    ] = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn prompts into clips.

    Example: `reelflow sample runs/demo/dit --prompts prompts.txt --output clips --set sample.guidance_scale=4`
    """
    if prompts is not None and any(text.partition("=")[0].strip() == "sample.prompts" for text in overrides or []):
        raise typer.BadParameter("--prompts and --set sample.prompts name the same; give one of them")
    given = [*(overrides or []), *([Given("sample.prompts", prompts)] if prompts else [])]
    if not _is_checkpoint(target, debug):
        if output is not None:
            raise typer.BadParameter(
                f"--output is for a checkpoint, and {target} is no folder of one; the clips of a configuration go into "
                "the samples folder of its run: leave --output out"
            )
        if shard is not None:
            raise typer.BadParameter("--shard is for a checkpoint: a run samples all of its prompts in one job")
        start_stages(target, ("sample",), Start(given, dry_run, verbose, quiet, debug))
        return
    with readable_errors(debug):
        from launch.local_copies import local_copies
        from launch.sample import sample_checkpoint

        if prompts is None or output is None:
            raise typer.BadParameter("a checkpoint is sampled with --prompts FILE and --output FOLDER")
        from pipeline.run.logs import console_log
        from pipeline.sample.shards import Shard

        with console_log(Start(given, dry_run, verbose, quiet, debug).level()), local_copies(target) as (folder,):
            part = None if shard is None else Shard.of_text(shard)
            for line in sample_checkpoint(folder, output, given, dry_run=dry_run, shard=part):
                if not quiet or line.startswith("warning:"):
                    typer.echo(line)


def _is_checkpoint(target: str, debug: bool) -> bool:
    """Whether TARGET of `sample` is a folder of a run, and not a run or a configuration."""
    if not is_uri(target):
        return Path(target).is_dir()
    with readable_errors(debug):
        from launch.local_copies import find_stored
        from pipeline.run.run_files import CONFIG_NAME

        return find_stored(target).name not in (".", CONFIG_NAME)


def serve(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A folder with a DiT checkpoint, also of a run in a store, or of a published pipeline.",
            callback=read_place_option,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Where clips go.", callback=expand_home_option)] = Path("served"),
    host: Annotated[
        str, typer.Option(help="Address to listen on. One that other machines reach takes a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 7860,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Holds the token that opens the page; without it, REELFLOW_SERVE_TOKEN does.",
            callback=expand_home_option,
        ),
    ] = None,
    overrides: Overrides = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Open a local page to make clips: prompt, settings, progress, and the clips with the commands that remake them.

    Example: `reelflow serve runs/demo/dit`
    """
    with readable_errors(debug):
        from launch.local_copies import local_copies
        from launch.serve.server import Listening, serve_checkpoint
        from pipeline.run.logs import console_log

        start = Start(overrides, False, verbose, quiet, debug)
        with console_log(start.level()), local_copies(checkpoint) as (folder,):
            for line in serve_checkpoint(folder, output, overrides or [], Listening(host, port, token_file)):
                if not quiet or line.startswith(("warning:", "serving")):
                    typer.echo(line)


def remake(
    target: Annotated[
        Path,
        typer.Argument(metavar="CLIP", help="A sampled MP4 file, or a manifest.jsonl.", callback=expand_home_option),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="The checkpoint that made it, if it is not where it was.", callback=expand_home_option),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write: .mp4, .gif, .webp, or .zip for frames as PNG. Without it, beside the clip.",
            callback=expand_home_option,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of a manifest: the name of the clip's file, or its id.")] = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--input", metavar="FILE", help="An image or a clip that it was made from, if moved; may be repeated."
        ),
    ] = None,
    guidance_checkpoint: Annotated[
        Path | None, typer.Option(help="The weaker checkpoint of autoguidance, if moved.", callback=expand_home_option)
    ] = None,
    text_encoder: Annotated[
        Path | None, typer.Option(help="The folder of the text encoder, if moved.", callback=expand_home_option)
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="As cluster.workers.cpus_per_worker of the job.")] = 1,
    debug: Debug = False,
) -> None:
    """Make a sampled clip again, with the same bytes, from what its file says.

    Example: `reelflow remake clips/a-red-circle-moves-left-0123456789ab.mp4`
    """
    with readable_errors(debug):
        from launch.remake import Asked, remake_clip
        from pipeline.sample.remake import Places

        places = Places(checkpoint, guidance_checkpoint, text_encoder)
        for line in remake_clip(Asked(target, places, name, inputs or (), output, threads)):
            typer.echo(line)


def gallery(
    one: Annotated[Path, typer.Argument(help="A folder of sampled clips.", callback=expand_home_option)],
    other: Annotated[
        Path | None,
        typer.Argument(help="Another one, of the same prompts, to show beside it.", callback=expand_home_option),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE.html", help="The page to write; of one folder index.html in it.", callback=expand_home_option
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="SHEET.png", help="Write a contact sheet of the first folder too.", callback=expand_home_option
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show the clips of a folder, or those of two side by side.

    Example: `reelflow gallery old/clips new/clips --output both.html`
    """
    with readable_errors(debug):
        from launch.gallery import show_samples, show_side_by_side, write_sheet

        if other is not None and output is None:
            raise typer.BadParameter("two folders side by side need a page of their own: name it with --output")
        typer.echo(
            show_samples(one, output) if other is None or output is None else show_side_by_side(one, other, output)
        )
        if sheet is not None:
            typer.echo(write_sheet(one, sheet))
