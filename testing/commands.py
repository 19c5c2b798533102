"""The command line in a process of its own or in this one, and a configuration that runs in seconds."""

import subprocess
import sys
import traceback
from pathlib import Path

from typer.testing import CliRunner

from launch.commands import app
from testing.paths import ROOT

TINY = """
name: tiny
runs_dir: {runs}
data:
  synthetic: {{num_videos: 26, pixels: 48, fps: 8, seconds: 1.25}}
  buckets: [{{num_frames: 9, height: 32, width: 32, fps: 8}}]
  max_clips_per_video: 1
  videos_per_shard: 10
  validation_fraction: 0.15
autoencoder:
  model: {{latent_channels: 4, width: 8, deep_width: 16}}
  train: {{steps: 6, global_batch: 4, checkpoint_every_steps: 3, log_every_steps: 1}}
dit:
  model: {{width: 32, depth: 1, heads: 2, text: {{width: 16, depth: 1, heads: 2, max_bytes: 63}}}}
  train: {{steps: 6, global_batch: 4, checkpoint_every_steps: 3, log_every_steps: 1}}
sample: {{solver: euler, steps: 2, batch: 8, compare_unguided: true}}
evaluate: {{judge_clips: 4, prompts_per_combination: 1, max_reconstructions: 2}}
cluster: {{object_store_mib: 128}}
"""


def launch(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `reelflow` with these arguments in a process of its own."""
    command = [sys.executable, "-m", "launch", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=400)


def launch_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which saves the seconds that imports take."""
    wide = {"COLUMNS": "500"}  # so that no message is wrapped, whatever the lengths of paths
    result = CliRunner().invoke(app, arguments, prog_name="reelflow", env=wide)
    unexpected = isinstance(result.exception, Exception)
    told = "".join(traceback.format_exception(result.exception)) if unexpected else ""
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr + told)
