"""The commands of `python -m launch ...`, or `reelflow ...` once installed.

Heavy libraries are imported by the command that needs them, so that help and bad input answer at once.
"""

import inspect as introspection
import logging
import os
import warnings
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from data.files.locations import is_uri
from launch.command_options import Config, Debug, Overrides
from launch.command_options import expand_home_option as _expand_home
from launch.command_options import read_place_option as _read_place
from launch.command_options import readable_errors as _readable_errors
from launch.job_commands import job_app, submit
from launch.overrides import Given, Override
from launch.stages import NAMES, STAGES, Entry, Options, stages_of
from launch.store_commands import pull, push

CLIPS_SHOWN = 24
app = typer.Typer(
    help="Turn a folder of videos into a video generator: shard, train, encode, train, sample, evaluate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
train_app = typer.Typer(help="Train the autoencoder or the diffusion transformer.", no_args_is_help=True)
app.add_typer(train_app, name="train")


Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="SETTING=VALUE", help="Take the sampled clips with this setting; may be repeated."),
]
ClipFeatures = Annotated[
    Path | None,
    typer.Option(help="TorchScript of a network for clips, such as I3D.", callback=_expand_home),
]
FrameFeatures = Annotated[
    Path | None,
    typer.Option(help="TorchScript of a network for frames, such as Inception.", callback=_expand_home),
]
SimilarityModel = Annotated[
    Path | None, typer.Option(help="Folder of a CLIP model, for the similarity to the text.", callback=_expand_home)
]
MaxClips = Annotated[int, typer.Option(min=4, help="The most clips of each set, evenly chosen.")]
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
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the plan; do nothing.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show debugging messages too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")]


@dataclass(frozen=True)
class _Start:
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


def _run(config: str, stages: Collection[str], start: _Start) -> None:
    """Load the configuration, then print the plan or run the stages."""
    with _readable_errors(start.debug):
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


@app.command()
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


@app.command()
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
    _run(config, NAMES, _Start(overrides, dry_run, verbose, quiet, debug))
    if not dry_run and not quiet:
        from launch.plan import closing_summary

        with _readable_errors(debug):
            from launch.config import load_config

            typer.echo(closing_summary(load_config(config, overrides or [])))


def _add_command(entry: Entry, options: Options) -> None:
    """Give a stage its command: `reelflow NAME CONFIG`, or `reelflow train NAME CONFIG`, with the options it takes."""
    group, _, name = entry.name.rpartition(" ")

    def plain(
        config: Config,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        verbose: Verbose = False,
        quiet: Quiet = False,
        debug: Debug = False,
    ) -> None:
        _run(config, entry.runs, _Start(overrides, dry_run, verbose, quiet, debug))

    def retrying(
        config: Config,
        overrides: Overrides = None,
        retry: Retry = False,
        dry_run: DryRun = False,
        verbose: Verbose = False,
        quiet: Quiet = False,
        debug: Debug = False,
    ) -> None:
        _run(config, entry.runs, _Start(overrides, dry_run, verbose, quiet, debug, retry=retry))

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
        start = _Start(overrides, dry_run, verbose, quiet, debug, resume=resume, allow_change=allow_change, local=local)
        _run(config, entry.runs, start)

    command = {"plain": plain, "retry": retrying, "training": training}[options]
    (train_app if group else app).command(name, help=introspection.getdoc(entry.stage))(command)


for _entry in STAGES:
    if _entry.options is not None:
        _add_command(_entry, _entry.options)


@app.command()
def sample(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A config, or a folder with a DiT checkpoint, also of a run in a store.",
            callback=_read_place,
        ),
    ],
    prompts: Annotated[
        str | None, typer.Option(metavar="PATH", help="Text with one prompt a line, or a table; a path or a URI.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="Where clips go when TARGET is a checkpoint: a folder, or the URI of one in a store.",
            callback=_read_place,
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
        _run(target, ("sample",), _Start(given, dry_run, verbose, quiet, debug))
        return
    with _readable_errors(debug):
        from launch.local_copies import local_copies
        from launch.sample import sample_checkpoint

        if prompts is None or output is None:
            raise typer.BadParameter("a checkpoint is sampled with --prompts FILE and --output FOLDER")
        from pipeline.run.logs import console_log
        from pipeline.sample.shards import Shard

        with console_log(_Start(given, dry_run, verbose, quiet, debug).level()), local_copies(target) as (folder,):
            part = None if shard is None else Shard.of_text(shard)
            for line in sample_checkpoint(folder, output, given, dry_run=dry_run, shard=part):
                if not quiet or line.startswith("warning:"):
                    typer.echo(line)


def _is_checkpoint(target: str, debug: bool) -> bool:
    """Whether TARGET of `sample` is a folder of a run, and not a run or a configuration."""
    if not is_uri(target):
        return Path(target).is_dir()
    with _readable_errors(debug):
        from launch.local_copies import find_stored
        from pipeline.run.run_files import CONFIG_NAME

        return find_stored(target).name not in (".", CONFIG_NAME)


@app.command()
def serve(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A folder with a DiT checkpoint, also of a run in a store, or of a published pipeline.",
            callback=_read_place,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Where clips go.", callback=_expand_home)] = Path("served"),
    host: Annotated[
        str, typer.Option(help="Address to listen on. One that other machines reach takes a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 7860,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Holds the token that opens the page; without it, REELFLOW_SERVE_TOKEN does.",
            callback=_expand_home,
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
    with _readable_errors(debug):
        from launch.local_copies import local_copies
        from launch.serve.server import Listening, serve_checkpoint
        from pipeline.run.logs import console_log

        start = _Start(overrides, False, verbose, quiet, debug)
        with console_log(start.level()), local_copies(checkpoint) as (folder,):
            for line in serve_checkpoint(folder, output, overrides or [], Listening(host, port, token_file)):
                if not quiet or line.startswith(("warning:", "serving")):
                    typer.echo(line)


@app.command()
def remake(
    target: Annotated[
        Path,
        typer.Argument(metavar="CLIP", help="A sampled MP4 file, or a manifest.jsonl.", callback=_expand_home),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="The checkpoint that made it, if it is not where it was.", callback=_expand_home),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write: .mp4, .gif, .webp, or .zip for frames as PNG. Without it, beside the clip.",
            callback=_expand_home,
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
        Path | None, typer.Option(help="The weaker checkpoint of autoguidance, if moved.", callback=_expand_home)
    ] = None,
    text_encoder: Annotated[
        Path | None, typer.Option(help="The folder of the text encoder, if moved.", callback=_expand_home)
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="As cluster.workers.cpus_per_worker of the job.")] = 1,
    debug: Debug = False,
) -> None:
    """Make a sampled clip again, with the same bytes, from what its file says.

    Example: `reelflow remake clips/a-red-circle-moves-left-0123456789ab.mp4`
    """
    with _readable_errors(debug):
        from launch.remake import Asked, remake_clip
        from pipeline.sample.remake import Places

        places = Places(checkpoint, guidance_checkpoint, text_encoder)
        for line in remake_clip(Asked(target, places, name, inputs or (), output, threads)):
            typer.echo(line)


@app.command()
def sweep(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="A folder with a DiT checkpoint, also of a run in a store.", callback=_read_place
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
            help="Where clips, figures and pages go: a folder, or the URI of one in a store.", callback=_read_place
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            help="Real clips to compare with: those of the checkpoint's run if not given.", callback=_read_place
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
    with _readable_errors(debug):
        from launch.local_copies import local_copies
        from launch.sweep import Swept, sweep_checkpoint
        from launch.sweep_plan import read_varied
        from pipeline.evaluate.measure import Networks
        from pipeline.run.logs import console_log

        networks = Networks(clip_features, frame_features, text_similarity)
        given = [*(overrides or []), Given("sample.prompts", prompts)]
        places, also = (target,) if reference is None else (target, reference), () if reference else ("clips",)
        level = _Start(given, dry_run, verbose, quiet, debug).level()
        with console_log(level), local_copies(*places, also=also) as (folder, *others):
            asked = Swept(folder, output, read_varied(vary), next(iter(others), None), networks, max_clips)
            for line in sweep_checkpoint(asked, given, dry_run=dry_run):
                if not quiet or line.startswith("warning:"):
                    typer.echo(line)


@app.command()
def gallery(
    one: Annotated[Path, typer.Argument(help="A folder of sampled clips.", callback=_expand_home)],
    other: Annotated[
        Path | None, typer.Argument(help="Another one, of the same prompts, to show beside it.", callback=_expand_home)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE.html", help="The page to write; of one folder index.html in it.", callback=_expand_home
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="SHEET.png", help="Write a contact sheet of the first folder too.", callback=_expand_home),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show the clips of a folder, or those of two side by side.

    Example: `reelflow gallery old/clips new/clips --output both.html`
    """
    with _readable_errors(debug):
        from launch.gallery import show_samples, show_side_by_side, write_sheet

        if other is not None and output is None:
            raise typer.BadParameter("two folders side by side need a page of their own: name it with --output")
        typer.echo(
            show_samples(one, output) if other is None or output is None else show_side_by_side(one, other, output)
        )
        if sheet is not None:
            typer.echo(write_sheet(one, sheet))


@app.command()
def compare(
    samples: Annotated[
        str,
        typer.Argument(
            metavar="SAMPLES",
            help="Sampled clips, or a dataset of clips, also of a run in a store.",
            callback=_read_place,
        ),
    ],
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="What they are compared with, likewise.", callback=_read_place)
    ],
    output: Annotated[
        str,
        typer.Option(help="Where figures and page go: a folder, or the URI of one in a store.", callback=_read_place),
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
    with _readable_errors(debug):
        from launch.compare import Compared, compare_folders, read_where
        from launch.local_copies import local_copies
        from pipeline.evaluate.measure import Networks
        from pipeline.run.logs import console_log

        networks = Networks(clip_features, frame_features, text_similarity)
        level = _Start(overrides, False, verbose, quiet, debug).level()
        with console_log(level), local_copies(samples, reference) as (ours_dir, theirs_dir):
            ours, theirs = (
                read_where(folder, given or [], guidance_scale)
                for folder, given in ((ours_dir, where), (theirs_dir, reference_where))
            )
            asked = Compared(ours_dir, theirs_dir, output, networks, max_clips, split, ours, theirs)
            for line in compare_folders(asked, overrides or []):
                if not quiet:
                    typer.echo(line)


@app.command()
def likelihood(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A training of a DiT, or one of its checkpoints, also of a run in a store.", callback=_read_place
        ),
    ],
    latents: Annotated[str, typer.Argument(help="Latents of the same run.", callback=_read_place)],
    output: Annotated[Path, typer.Option(help="Where figures and noises go.", callback=_expand_home)],
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
    with _readable_errors(debug):
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


@app.command()
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
    with _readable_errors(debug):
        from launch.config import load_config
        from launch.plan_hardware import Hardware, parse_peak, parse_size
        from launch.plan_run import describe_run_plan, plan_run

        hardware = Hardware(gpus, parse_size(gpu_memory), parse_peak(gpu), utilisation, price)
        planned = plan_run(load_config(config, overrides or []), hardware, clips)
        typer.echo(planned.as_json() if as_json else describe_run_plan(planned))
    if not planned.fits:
        raise typer.Exit(3)


@app.command()
def inspect(
    path: Annotated[
        str,
        typer.Argument(
            help="A run, a dataset, a checkpoint, or a samples folder, also of a run in a store.", callback=_read_place
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Of a dataset: write a page and a contact sheet there.", callback=_expand_home
        ),
    ] = None,
    clips: Annotated[int | None, typer.Option(min=1, help="How many clips the page shows: 24 if not given.")] = None,
    debug: Debug = False,
) -> None:
    """Say what a folder holds, and show a dataset.

    Example: `reelflow inspect runs/demo/clips --html look`
    """
    with _readable_errors(debug):
        if clips is not None and html is None:
            raise typer.BadParameter("--clips is the number of clips that a page shows; give --html FOLDER too")
        from launch.inspect import describe_folder, show_folder
        from launch.local_copies import local_copies

        with local_copies(path) as (folder,):
            typer.echo(describe_folder(folder))
            if html is not None:
                for file in show_folder(folder, html, CLIPS_SHOWN if clips is None else clips):
                    typer.echo(f"  wrote {file} ({file.stat().st_size / 1e6:.1f} MB)")


@app.command()
def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, or a folder with checkpoints, as runs/NAME/dit, also of a run in a store.",
            callback=_read_place,
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="The safetensors file to write; a .json goes beside it. With --layout, a folder.",
            callback=_expand_home,
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
    with _readable_errors(debug):
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


app.command()(push)
app.command()(pull)
app.command()(submit)
app.add_typer(job_app, name="job")
