"""Fragments in the files of a checkpoint cover every parameter, and damage is detected."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

from pipeline.checkpoint.read import open_checkpoint, read_last_save, require_checkpoint
from pipeline.checkpoint.record import CheckpointError, step_folders


def test_fragments_tile_every_parameter_once(two_workers):
    checkpoint = open_checkpoint(two_workers)
    covered = {
        name: torch.zeros(int(np.prod(shape)), dtype=torch.int) for name, shape in checkpoint.record.parameters.items()
    }
    sizes = []
    for path in sorted(checkpoint.folder.glob("rank_*.safetensors")):
        with safe_open(path, framework="pt") as file:
            starts = json.loads(file.metadata()["starts"])
            sizes.append(sum(file.get_slice(f"master/{n}").get_shape()[0] for n in starts))
            for name, start in starts.items():
                covered[name][start : start + file.get_slice(f"power-0.10/{name}").get_shape()[0]] += 1
    assert all(bool((count == 1).all()) for count in covered.values())
    assert abs(sizes[0] - sizes[1]) < 0.1 * sum(sizes)  # and the ranks share fairly


def test_damage_is_noticed_and_named(straight, tmp_path):
    _, _, run_dir = straight
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    shard = copy / "checkpoints" / "step_0000008" / "rank_00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors is damaged"):
        open_checkpoint(copy)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"rank_00000\.safetensors is missing"):
        open_checkpoint(copy)
    (copy / "latest").write_text("../../etc")
    with pytest.raises(CheckpointError, match="instead of a checkpoint's name"):
        open_checkpoint(copy)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        open_checkpoint(tmp_path)


def test_a_file_that_every_checkpoint_lacks_is_named_and_nothing_false_is_promised(two_workers, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(two_workers, copy)
    require_checkpoint(copy)
    for folder in step_folders(copy).values():
        (folder / "rank_00001.safetensors").unlink()
    with pytest.raises(CheckpointError) as refused:
        require_checkpoint(copy)
    told = str(refused.value)
    assert f"{copy} has no checkpoint to resume from: {copy}/checkpoints/step_0000008/rank_00001.safetensors is" in told
    assert "step_0000004/rank_00001.safetensors is missing. Restore one, or to train from the beginning move" in told
    assert "without --resume" not in told  # which would refuse as well


def test_resuming_is_refused_with_the_right_reason_where_there_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from; without --resume training starts"):
        require_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"although one was saved at step 7: .* on a disk that is not mounted"):
        require_checkpoint(tmp_path, saved_step=7)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": -1}', '{"step": 8, "more": 1}', '{"step": "x"}'])
def test_a_last_save_that_cannot_be_read_is_never_taken_for_none(tmp_path, content):
    assert read_last_save(tmp_path) == 0
    path = tmp_path / "last_save.json"
    path.write_text('{"step": 8}')
    assert read_last_save(tmp_path) == 8
    path.write_text(content)
    with pytest.raises(CheckpointError, match=rf"^{path} is damaged: .*write that into it, or delete it"):
        read_last_save(tmp_path)
