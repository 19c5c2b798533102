"""Adapters that do not fit their base are refused by name; the bare base is never taken for the trained network."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from data.files.checksums import file_sha256
from pipeline.checkpoint.adapters import BASE_NAME, DOWN, PREFIX, UP, network_weights
from pipeline.checkpoint.config import LoraConfig
from pipeline.checkpoint.record import Checkpoint, CheckpointError, CheckpointRecord, FileRecord, rank_file
from pipeline.checkpoint.tensor_files import write_tensors

KINDS = ("master", "exp_avg", "exp_avg_sq", "ema")
LORA = LoraConfig(rank=2, alpha=4)
BASE = {"a.weight": torch.ones(4, 3), "b.weight": torch.ones(4, 3), "b.bias": torch.ones(4)}
ADAPTERS = {f"{PREFIX}a.{DOWN}": torch.ones(2, 3), f"{PREFIX}a.{UP}": torch.full((4, 2), 0.5)}


@pytest.fixture
def adapted(tmp_path):
    """Makes a checkpoint of adapters on a base, each of which may be spoilt."""

    def make(adapters: dict[str, Tensor], base: dict[str, Tensor] = BASE, lora: LoraConfig = LORA) -> Checkpoint:
        tensors = {f"{kind}/{name}": value.flatten() for name, value in adapters.items() for kind in KINDS}
        starts = {"starts": json.dumps(dict.fromkeys(adapters, 0))}
        files = {rank_file(0): write_tensors(tmp_path / rank_file(0), tensors, starts)}
        path = tmp_path / BASE_NAME
        save_file(base, path)
        files[BASE_NAME] = FileRecord(num_bytes=path.stat().st_size, sha256=file_sha256(path))
        record = CheckpointRecord(
            kind="dit",
            step=5,
            cursor=5,
            world_size=1,
            zero_stage=2,
            parameters={name: list(value.shape) for name, value in adapters.items()},
            files=files,
            trained={"model": {}, "lora": lora.model_dump()},
        )
        return Checkpoint(tmp_path, record)

    return make


def test_adapters_are_added_to_the_layers_they_name_alone(adapted):
    weights = dict(network_weights(adapted(ADAPTERS)))
    assert weights.keys() == BASE.keys()
    assert weights["a.weight"].tolist() == [[3.0] * 3] * 4  # 1 + 4 / 2 * (0.5 + 0.5)
    assert torch.equal(weights["b.weight"], BASE["b.weight"])


@pytest.mark.parametrize(
    ("adapters", "told"),
    [
        ({name.replace(".a.", ".zzz."): value for name, value in ADAPTERS.items()}, r"network\.zzz\.lora_A.* no layer"),
        ({f"{PREFIX}a.{UP}": torch.ones(4, 2)}, r"network\.a\.lora_A\.default\.weight is missing"),
        ({f"{PREFIX}a.{DOWN}": torch.ones(2, 3)}, r"network\.a\.lora_B\.default\.weight is missing"),
        ({f"{PREFIX}a.weight": torch.ones(4, 3)}, r"network\.a\.weight belongs to no layer"),
        ({}, "it holds no adapters"),
        (ADAPTERS | {f"{PREFIX}a.{UP}": torch.ones(3, 2)}, r"its adapter of a\.weight does not fit"),
    ],
    ids=["other layer", "only B", "only A", "a whole weight", "none", "other shape"],
)
def test_adapters_that_are_not_those_of_the_base_are_refused_by_name(adapted, adapters, told):
    checkpoint = adapted(adapters)
    with pytest.raises(CheckpointError, match=told) as caught:
        dict(network_weights(checkpoint))
    assert str(checkpoint.folder) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16])
def test_a_base_of_other_numbers_is_refused(adapted, dtype):
    checkpoint = adapted(ADAPTERS, {name: value.to(dtype) for name, value in BASE.items()})
    with pytest.raises(CheckpointError, match=r"base\.safetensors is damaged: \S+ is stored as \w+, not as F32"):
        dict(network_weights(checkpoint))


@pytest.mark.parametrize("alpha", [1e39, 1e308])
def test_a_factor_that_no_weight_can_hold_is_refused(adapted, alpha):
    checkpoint = adapted(ADAPTERS, lora=LORA.model_copy(update={"alpha": alpha}))
    with pytest.raises(CheckpointError, match=r"a\.weight with its adapter is not finite \(alpha 1e\+\d+, rank 2\)"):
        dict(network_weights(checkpoint))
