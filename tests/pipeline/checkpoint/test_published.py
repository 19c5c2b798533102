"""Published folders: read whole and in shards, written back, and refused by file and key where they are wrong."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.networks.build import build_network
from models.networks.wan_published import (
    PublishedTransformer,
    published_fields,
    published_tensors,
    read_transformer,
    unused_tensors,
)
from pipeline.checkpoint.published import (
    CONFIG_NAME,
    INDEX_NAME,
    WEIGHTS_NAME,
    PublishedError,
    open_component,
    open_published,
    write_published,
)
from testing.published import TINY_TRANSFORMER, make_transformer


@pytest.fixture(scope="module")
def peer() -> Any:
    return make_transformer()


@pytest.fixture
def folder(peer, tmp_path) -> Path:
    peer.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def sharded(peer, tmp_path) -> Path:
    peer.save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert (tmp_path / "sharded" / INDEX_NAME).is_file()
    return tmp_path / "sharded"


def described(folder: Path) -> PublishedTransformer:
    return open_published(folder).described(read_transformer)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Our weights, as the program reads them."""
    found = open_published(folder)
    model = found.described(read_transformer)
    with torch.device("meta"):
        network = build_network(model.config, model.channels, model.embedding_width)
    tensors = published_tensors(model)
    found.check_tensors(tensors)
    return dict(found.weights(tensors, {name: weight.shape for name, weight in network.state_dict().items()}))


def settings_of(peer: Any) -> dict:
    """As in a file, without who wrote it."""
    return {name: value for name, value in json.loads(peer.to_json_string()).items() if not name.startswith("_")}


def check(folder: Path) -> None:
    open_published(folder).check_tensors(published_tensors(described(folder)))


def test_one_file_and_shards_hold_the_same(folder, sharded):
    whole, parts = weights_of(folder), weights_of(sharded)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_component_is_found_in_its_pipeline(peer, tmp_path):
    peer.save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    assert open_component(tmp_path, "transformer") == open_component(tmp_path / "transformer", "transformer")


@pytest.mark.parametrize("max_shard_bytes", [10**9, 60_000, 1])
def test_what_is_written_diffusers_reads(peer, folder, tmp_path, max_shard_bytes):
    model = described(folder)
    weights, tensors = weights_of(folder), published_tensors(model)
    in_order = {name: tensors[name] for name in weights}
    write_published(tmp_path / "out", published_fields(model), in_order, iter(weights.items()), max_shard_bytes)
    again = type(peer).from_pretrained(tmp_path / "out")
    ours, theirs = again.state_dict(), peer.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert settings_of(again) == settings_of(peer)
    assert not list(tmp_path.glob(".tmp-*"))
    if max_shard_bytes == 60_000:
        sizes = [sum(t.nbytes for t in load_file(path).values()) for path in (tmp_path / "out").glob("*.safetensors")]
        assert len(sizes) > 2
        assert max(sizes) <= 60_000
    with pytest.raises(PublishedError, match="out exists, and nothing is replaced"):
        write_published(tmp_path / "out", {}, in_order, iter(weights.items()))


def test_half_precision_is_read_as_it_is(tmp_path):
    half = make_transformer().bfloat16()
    half.save_pretrained(tmp_path / "half")
    weights = weights_of(tmp_path / "half")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert torch.equal(weights["blocks.0.out.bias"], half.state_dict()["blocks.0.attn1.to_out.0.bias"].float())


def test_tensors_that_published_files_hold_and_nothing_uses_are_left_out(tmp_path):
    fields: dict[str, Any] = TINY_TRANSFORMER | {"image_dim": 12, "added_kv_proj_dim": 48}
    fields["in_channels"] = fields["out_channels"] + 5  # what an image is given by beside its embedding
    make_transformer(fields).save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS_NAME
    extra = {f"blocks.{number}.attn2.norm_added_q.weight": torch.ones(48) for number in range(2)}
    save_file(load_file(path) | extra, path)
    found = open_published(tmp_path)
    model = found.described(read_transformer)
    found.check_tensors(published_tensors(model), unused_tensors(model))
    with pytest.raises(PublishedError, match=r"holds the tensor blocks\.0\.attn2\.norm_added_q"):
        found.check_tensors(published_tensors(model))


def test_the_fingerprint_changes_with_a_weight_and_with_the_configuration(folder):
    first = open_published(folder).fingerprint()
    assert open_published(folder).fingerprint() == first
    tensors = load_file(folder / WEIGHTS_NAME)
    tensors["proj_out.bias"][0] += 1
    save_file(tensors, folder / WEIGHTS_NAME)
    second = open_published(folder).fingerprint()
    (folder / CONFIG_NAME).write_text((folder / CONFIG_NAME).read_text() + " ", encoding="utf-8")
    assert len({first, second, open_published(folder).fingerprint()}) == 3


def change_config(folder: Path, **fields: object) -> None:
    path = folder / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields), encoding="utf-8")


def change_index(folder: Path, name: str, file: str | None) -> None:
    path = folder / INDEX_NAME
    index = json.loads(path.read_text())
    index["weight_map"] |= {name: file}
    if file is None:
        del index["weight_map"][name]
    path.write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, r"config\.json: _class_name: .*'WanTransformer3DModel'"),
        ({"window_size": [1, 1]}, r"config\.json: window_size: Extra inputs are not permitted"),
        ({"qk_norm": "rms_norm"}, r"config\.json: qk_norm: .*'rms_norm_across_heads'"),
        ({"pos_embed_seq_len": 514}, r"config\.json: pos_embed_seq_len: "),
        ({"patch_size": [1, 2, 3]}, r"config\.json: patch_size is \[1, 2, 3\]"),
        ({"num_layers": "many"}, r"config\.json: num_layers: "),
        ({"attention_head_dim": 25}, r"config\.json: .*multiple of 8"),
        ({"in_channels": 2}, r"config\.json: in_channels is 2, less than out_channels 4"),
        ({"added_kv_proj_dim": 48}, r"config\.json: added_kv_proj_dim is 48 and image_dim None"),
        ({"num_layers": 3}, r"lacks the tensor blocks\.2\.\S+ \[\d+.* \(and \d+ more\)"),
        ({"num_layers": 1}, r"holds the tensor blocks\.1\..* \(and \d+ more\)"),
        (
            {"ffn_dim": 64},
            r"blocks\.0\.ffn\.net\.0\.proj\.weight is F32 \[56, 48\], but .* describes \[64, 48\]",
        ),
    ],
    ids=lambda value: str(next(iter(value.items()))) if isinstance(value, dict) else "",
)
def test_a_configuration_of_another_model_is_refused_by_field(folder, fields, message):
    change_config(folder, **fields)
    with pytest.raises(PublishedError, match=re.escape(str(folder)) + ".*" + message):
        check(folder)


def test_a_missing_shard_is_named(sharded):
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(PublishedError, match=rf"{re.escape(str(lost))} is missing: .*holds \d+ tensors"):
        check(sharded)


def test_an_index_that_names_no_file_of_the_folder_is_refused(sharded):
    for name in ("../other.safetensors", "/etc/hostname", "weights.bin"):
        change_index(sharded, "proj_out.bias", name)
        with pytest.raises(PublishedError, match=rf"names {re.escape(name)}, which is no safetensors file in that"):
            check(sharded)


def test_an_index_and_files_that_disagree_are_refused(sharded):
    index = json.loads((sharded / INDEX_NAME).read_text())["weight_map"]
    first, last = index["patch_embedding.bias"], index["proj_out.bias"]
    assert first != last
    change_index(sharded, "proj_out.bias", first)
    with pytest.raises(PublishedError, match=rf"proj_out\.bias is in {first}, but it is in {last}"):
        check(sharded)
    change_index(sharded, "proj_out.bias", None)
    with pytest.raises(PublishedError, match=rf"proj_out\.bias is in no file, but it is in {last}"):
        check(sharded)
    change_index(sharded, "proj_out.bias", last)
    change_index(sharded, "another", last)
    with pytest.raises(PublishedError, match=rf"another is in {last}, but it is in none of the files"):
        check(sharded)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"weight_map": 3}', '{"weight_map": {}}', "{}"])
def test_a_damaged_index_is_named(sharded, content):
    (sharded / INDEX_NAME).write_text(content, encoding="utf-8")
    with pytest.raises(PublishedError, match=rf"{re.escape(INDEX_NAME)} is damaged"):
        check(sharded)


def test_tensors_of_another_kind_are_refused(folder):
    tensors = load_file(folder / WEIGHTS_NAME)
    save_file(tensors | {"lora": torch.zeros(1)}, folder / WEIGHTS_NAME)
    with pytest.raises(PublishedError, match=r"holds the tensor lora, which the model that config\.json describes has"):
        check(folder)
    save_file(tensors | {"proj_out.bias": tensors["proj_out.bias"].double()}, folder / WEIGHTS_NAME)
    with pytest.raises(PublishedError, match=r"proj_out\.bias is F64 .* of F32, F16, BF16"):
        check(folder)


def test_a_file_that_is_cut_short_is_named(folder):
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PublishedError, match=rf"{re.escape(str(path))} is damaged"):
        check(folder)


def test_pickled_weights_and_empty_folders_are_refused(folder, tmp_path):
    shutil.move(folder / WEIGHTS_NAME, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(PublishedError, match=r"diffusion_pytorch_model\.bin; pickled files could run code"):
        check(folder)
    shutil.move(folder / "diffusion_pytorch_model.bin", folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(PublishedError, match=r"it has diffusion_pytorch_model\.fp16\.safetensors: .*without a variant"):
        check(folder)
    with pytest.raises(PublishedError, match=r"nowhere/config\.json is missing; name a folder"):
        check(tmp_path / "nowhere")
