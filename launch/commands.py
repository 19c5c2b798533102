"""The commands of `python -m launch ...`, or `reelflow ...` once installed, in the order of `--help`.

Heavy libraries are imported by the command that needs them, so that help and bad input answer at once.
"""

from inspect import getdoc

import typer

from launch.inspect_commands import export, inspect, plan
from launch.job_commands import job_app, submit
from launch.measure_commands import compare, likelihood, sweep
from launch.sample_commands import gallery, remake, sample, serve
from launch.stage_commands import demo, run, stage_command
from launch.stages import STAGES
from launch.store_commands import pull, push

app = typer.Typer(
    help="Turn a folder of videos into a video generator: shard, train, encode, train, sample, evaluate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
train_app = typer.Typer(help="Train the autoencoder or the diffusion transformer.", no_args_is_help=True)
app.add_typer(train_app, name="train")

for _command in (demo, run):
    app.command()(_command)
for _entry in STAGES:
    if _entry.options is not None:
        _group, _, _name = _entry.name.rpartition(" ")  # as in `reelflow train autoencoder`
        _app, _command = train_app if _group else app, stage_command(_entry, _entry.options)
        _app.command(_name, help=getdoc(_entry.stage))(_command)
for _command in (sample, serve, remake, sweep, gallery, compare, likelihood, plan, inspect, export, push, pull, submit):
    app.command()(_command)
app.add_typer(job_app, name="job")
