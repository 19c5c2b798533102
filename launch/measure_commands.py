"""The commands that measure clips and networks: `sweep`, `compare` and `likelihood`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.command_options import (
    Debug,
    Overrides,
    Quiet,
    Verbose,
    expand_home_option,
    read_place_option,
    readable_errors,
)
from launch.overrides import Given
from launch.stage_commands import Start

Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="SETTING=VALUE", help="Take the sampled clips with this setting; may be repeated."),
]
ClipFeatures = Annotated[
    Path | None,
    typer.Option(help="TorchScript of a network for clips, such as I3D.", callback=expand_home_option),
]
FrameFeatures = Annotated[
    Path | None,
    typer.Option(help="TorchScript of a network for frames, such as Inception.", callback=expand_home_option),
]
SimilarityModel = Annotated[
    Path | None,
    typer.Option(help="Folder of a CLIP model, for the similarity to the text.", callback=expand_home_option),
]
MaxClips = Annotated[int, typer.Option(min=4, help="The most clips of each set, evenly chosen.")]


def sweep(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A folder with a DiT checkpoint, also of a run in a store.",
            callback=read_place_option,
        ),
    ],
    prompts: Annotated[
        str, typer.Argument(metavar="PROMPTS", help="Text with one prompt a line, or a table; a path or a URI.")
    ],
    vary: Annotated[
        list[str],
        typer.Option("--vary", metavar="SETTING=VALUE,VALUE", help="Values of a setting of sampling; may be repeated."),
    ],
    output: Annotated[
        str,
        typer.Option(
            help="Where clips, figures and pages go: a folder, or the URI of one in a store.",
            callback=read_place_option,
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            help="Real clips to compare with: those of the checkpoint's run if not given.", callback=read_place_option
        ),
    ] = None,
    clip_features: ClipFeatures = None,
    frame_features: FrameFeatures = None,
    text_similarity: SimilarityModel = None,
    max_clips: MaxClips = 2048,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the combinations; do nothing.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Sample every combination of some settings, and measure what each is good for and what it costs.

    Example: `reelflow sweep runs/demo/dit prompts.txt --vary steps=4,8 --vary solver=heun,ab2 --output sweep`
    """
    with readable_errors(debug):
        from launch.local_copies import local_copies
        from launch.sweep import Swept, sweep_checkpoint
        from launch.sweep_plan import read_varied
        from pipeline.evaluate.measure import Networks
        from pipeline.run.logs import console_log

        networks = Networks(clip_features, frame_features, text_similarity)
        given = [*(overrides or []), Given("sample.prompts", prompts)]
        places, also = (target,) if reference is None else (target, reference), () if reference else ("clips",)
        level = Start(given, dry_run, verbose, quiet, debug).level()
        with console_log(level), local_copies(*places, also=also) as (folder, *others):
            asked = Swept(folder, output, read_varied(vary), next(iter(others), None), networks, max_clips)
            for line in sweep_checkpoint(asked, given, dry_run=dry_run):
                if not quiet or line.startswith("warning:"):
                    typer.echo(line)


def compare(
    samples: Annotated[
        str,
        typer.Argument(
            metavar="SAMPLES",
            help="Sampled clips, or a dataset of clips, also of a run in a store.",
            callback=read_place_option,
        ),
    ],
    reference: Annotated[
        str,
        typer.Argument(metavar="REFERENCE", help="What they are compared with, likewise.", callback=read_place_option),
    ],
    output: Annotated[
        str,
        typer.Option(
            help="Where figures and page go: a folder, or the URI of one in a store.", callback=read_place_option
        ),
    ],
    clip_features: ClipFeatures = None,
    frame_features: FrameFeatures = None,
    text_similarity: SimilarityModel = None,
    max_clips: MaxClips = 2048,
    split: Annotated[
        Literal["train", "validation"] | None, typer.Option(help="Of the reference: all clips if not given.")
    ] = None,
    where: Where = None,
    reference_where: Annotated[
        list[str] | None,
        typer.Option("--reference-where", metavar="SETTING=VALUE", help="As --where, of the reference."),
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Short for --where guidance_scale=..., of each set that was sampled.")
    ] = None,
    overrides: Overrides = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure how far samples are from real clips, or from the samples of another model.

    Example: `reelflow compare runs/demo/samples runs/demo/clips --output compared --guidance-scale 3`
    """
    with readable_errors(debug):
        from launch.compare import Compared, compare_folders, read_where
        from launch.local_copies import local_copies
        from pipeline.evaluate.measure import Networks
        from pipeline.run.logs import console_log

        networks = Networks(clip_features, frame_features, text_similarity)
        level = Start(overrides, False, verbose, quiet, debug).level()
        with console_log(level), local_copies(samples, reference) as (ours_dir, theirs_dir):
            ours, theirs = (
                read_where(folder, given or [], guidance_scale)
                for folder, given in ((ours_dir, where), (theirs_dir, reference_where))
            )
            asked = Compared(ours_dir, theirs_dir, output, networks, max_clips, split, ours, theirs)
            for line in compare_folders(asked, overrides or []):
                if not quiet:
                    typer.echo(line)


def likelihood(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A training of a DiT, or one of its checkpoints, also of a run in a store.", callback=read_place_option
        ),
    ],
    latents: Annotated[str, typer.Argument(help="Latents of the same run.", callback=read_place_option)],
    output: Annotated[Path, typer.Option(help="Where figures and noises go.", callback=expand_home_option)],
    split: Annotated[Literal["train", "validation"], typer.Option(help="Of the latents.")] = "validation",
    max_clips: Annotated[int, typer.Option(min=1, help="The most clips to measure.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Clips that are computed together; fewer take less memory.")] = 8,
    weights: Annotated[str, typer.Option(metavar="NAME", help="As sample.weights.")] = "ema",
    steps: Annotated[int, typer.Option(min=1, help="Of the Runge-Kutta method.")] = 20,
    probes: Annotated[int, typer.Option(min=1, help="Random directions of the estimated divergence.")] = 1,
    bound_steps: Annotated[int, typer.Option(min=1, help="Of the variational bound.")] = 100,
    debug: Debug = False,
) -> None:
    """Measure how likely a network holds clips, in bits per dimension, and the noises that it makes them from.

    Example: `reelflow likelihood runs/demo/dit runs/demo/latents --output likelihood`
    """
    with readable_errors(debug):
        from launch.config import check_writable
        from launch.local_copies import local_copies
        from pipeline.evaluate.likelihood import RESULT_NAME, Accuracy, measure_likelihoods

        check_writable(output)
        with local_copies(checkpoint, latents) as (checkpoint_dir, latents_dir):
            found = measure_likelihoods(
                checkpoint_dir,
                latents_dir,
                output,
                split=split,
                max_clips=max_clips,
                batch=batch,
                weights=weights,
                accuracy=Accuracy(steps, probes, bound_steps),
            )
        error = "" if found.standard_error is None else f" ± {found.standard_error:.3f}"
        typer.echo(f"{found.num_clips} clips: {found.bits_per_dimension:.3f}{error} bits per dimension of the latents")
        typer.echo(f"  variational bound   {found.bound_bits_per_dimension:.3f}")
        typer.echo(f"  noise               {found.noise_rms:.3f} root mean square, 1 in the mean of sampling")
        typer.echo(f"  sampled from it     {found.round_trip_rms:.2g} away from the latents, root mean square")
        typer.echo(f"wrote {output / RESULT_NAME}")
