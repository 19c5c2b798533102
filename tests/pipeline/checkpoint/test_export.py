"""Exported weights are whole and need neither Ray nor DeepSpeed."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from pipeline.checkpoint.export import export_weights
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.checkpoint.record import CheckpointError
from testing.paths import ROOT
from testing.tiny import WEIGHTS


@pytest.fixture(scope="module")
def exported_dir(often_saved, tmp_path_factory):
    """A file of each kind of weights, from one process that loads neither Ray nor DeepSpeed."""
    folder = tmp_path_factory.mktemp("exported")
    code = (
        "import sys; from pathlib import Path; from pipeline.checkpoint.read import open_checkpoint; "
        "from pipeline.checkpoint.export import export_weights; "
        "run_dir, folder, *weights = sys.argv[1:]; "
        "[export_weights(open_checkpoint(Path(run_dir)), Path(folder, f'{w}.safetensors'), w) for w in weights]; "
        "print([name for name in ('ray', 'deepspeed') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(often_saved), str(folder), *WEIGHTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    return folder


@pytest.mark.parametrize("which", WEIGHTS)
def test_weights_leave_a_checkpoint_whole_without_ray_or_deepspeed(often_saved, exported_dir, which):
    output = exported_dir / f"{which}.safetensors"
    expected, exported = load_weights(open_checkpoint(often_saved), which), load_file(output)
    assert {f"network.{name}" for name in exported} == set(expected)
    assert all(torch.equal(exported[name.removeprefix("network.")], value) for name, value in expected.items())
    about = json.loads(output.with_suffix(".json").read_text())
    assert (about["kind"], about["weights"], about["step"]) == ("dit", which, 8)
    assert about["trained"]["flow"]["caption_drop"] == 0.3


@pytest.mark.parametrize("name", ["out.json", "out", "out.pt"])
def test_a_name_that_the_description_could_take_is_refused(often_saved, tmp_path, name):
    with pytest.raises(CheckpointError, match=rf"{name} is no name for exported weights, .*: use out\.safetensors"):
        export_weights(open_checkpoint(often_saved), tmp_path / name)
    assert not list(tmp_path.iterdir())
