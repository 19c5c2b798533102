"""Captions through a frozen text encoder: from a folder of hub weights to a clip sampled with it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from test_road import TINY, launch_here
from text_encoders import WIDTH, write_text_encoder
from transformers import AutoTokenizer, T5EncoderModel

from data.dataset.index import read_index
from data.dataset.manifest import read_manifest
from data.dataset.reader import PayloadReader
from data.errors import DatasetError
from models.networks.config import DiTConfig
from models.networks.dit import DiT
from models.text.bytes import CaptionTokens
from models.text.caption import joined
from models.text.config import TextConfig
from models.text.embeddings import CaptionEmbeddings
from models.text.pretrained import PretrainedTextEncoder, TextEncoderError, text_encoder_fingerprint
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.encode.captions import read_embeddings, text_tensors
from pipeline.run.stage import read_record
from pipeline.sample.outputs import read_samples

CPU = torch.device("cpu")
CAPTIONS = ["a red circle moves left", "", "a blue star"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_text_encoder(tmp_path_factory.mktemp("t5"))


def test_embeddings_are_those_of_the_model_itself(folder):
    embedded = PretrainedTextEncoder(folder, 8, CPU)(CAPTIONS)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), T5EncoderModel.from_pretrained(folder).eval()
    for caption, values, mask in zip(CAPTIONS, embedded.values, embedded.mask, strict=True):
        ids = tokenizer(caption, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = model(ids).last_hidden_state[0]
        length = len(caption.split()) + 1  # the end token
        assert mask.tolist() == [True] * length + [False] * (8 - length)
        torch.testing.assert_close(values[:length].float(), expected, rtol=2e-3, atol=2e-3)  # 11 bits
        assert not values[length:].any()


def test_long_captions_are_cut_and_counted(folder):
    encoder = PretrainedTextEncoder(folder, 4, CPU)
    assert encoder([CAPTIONS[0]]).values.shape == (1, 4, WIDTH)
    assert [encoder.num_cut([caption]) for caption in (*CAPTIONS, "a blue star moves")] == [1, 0, 0, 1]


def test_what_is_stored_is_what_is_read(folder):
    embedded = PretrainedTextEncoder(folder, 8, CPU)(CAPTIONS)
    payloads = [save({"mean": torch.zeros(1), **tensors}) for tensors in text_tensors(embedded)]
    again = read_embeddings(payloads)
    assert torch.equal(again.values, embedded.values)
    assert torch.equal(again.mask, embedded.mask)
    with pytest.raises(DatasetError, match="text"):
        read_embeddings([save({"mean": torch.zeros(1)})])


def test_dropped_captions_become_the_null_caption(folder):
    embedded = PretrainedTextEncoder(folder, 8, CPU)(CAPTIONS)
    null = CaptionEmbeddings(embedded.values[1:2], embedded.mask[1:2])
    replaced = embedded.replaced(torch.tensor([True, False, False]), null)
    assert torch.equal(replaced.values, embedded.values[[1, 1, 2]])
    assert torch.equal(replaced.mask, embedded.mask[[1, 1, 2]])
    with pytest.raises(TypeError, match="cannot share a batch"):
        joined(embedded, CaptionTokens.encode(["a"], 8))


def test_the_network_reads_embeddings_and_not_their_padding():
    torch.manual_seed(0)
    network = DiT(DiTConfig(width=32, depth=1, heads=2, text=TextConfig(width=16, depth=1, heads=2)), 4, WIDTH)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # nothing is the identity
    mask = torch.arange(6) < torch.tensor([[3], [6]])
    caption = CaptionEmbeddings(torch.randn(2, 6, WIDTH), mask)
    x, t = torch.randn(2, 4, 2, 4, 4), torch.tensor([0.2, 0.7])
    velocity = network(x, t, caption)
    noisy = CaptionEmbeddings(torch.where(mask[..., None], caption.values, 9.0), mask)
    assert torch.equal(network(x, t, noisy), velocity)
    other = CaptionEmbeddings(caption.values.flip(-1), mask)
    assert not torch.allclose(network(x, t, other), velocity)


def test_a_folder_that_cannot_be_used_is_refused_and_says_why(folder, tmp_path):
    def broken(name):
        return shutil.copytree(folder, tmp_path / name)

    def refused(path, match):
        with pytest.raises(TextEncoderError, match=match) as caught:
            PretrainedTextEncoder(path, 8, CPU)
        assert str(path) in str(caught.value)

    refused(tmp_path / "nowhere", "holds no config.json")
    pickled = broken("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, r"only pickled weights \(pytorch_model.bin\)")
    partial = broken("partial")
    weights = load_file(partial / "model.safetensors")
    weights.pop("encoder.block.1.layer.1.DenseReluDense.wo.weight")
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    refused(partial, r"lacks weights .*block\.1\.layer\.1")
    unpadded = broken("unpadded")
    settings = json.loads((unpadded / "tokenizer_config.json").read_text())
    (unpadded / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    refused(unpadded, "no padding token")
    damaged = broken("damaged")
    (damaged / "config.json").write_text("{")
    refused(damaged, "cannot be loaded")


def test_the_fingerprint_is_of_what_changes_an_embedding(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("about")
    assert text_encoder_fingerprint(copy) == text_encoder_fingerprint(folder)
    assert text_encoder_fingerprint(write_text_encoder(tmp_path / "other", seed=1)) != text_encoder_fingerprint(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, folder):
    """A finished run of every stage, with previews while training."""
    base = tmp_path_factory.mktemp("text-road")
    config = base / "tiny.yaml"
    config.write_text(TINY.format(runs=base / "runs"), encoding="utf-8")
    arguments = [
        *("run", str(config), "--set", f"encode.text.folder={folder}", "--set", "encode.text.max_tokens=5"),
        *("--set", "dit.train.sample_every_steps=6"),
        *("--set", "sample.compare_unguided=false"),
    ]
    done = launch_here(*arguments)
    assert done.returncode == 0, done.stderr
    return arguments, base / "runs" / "tiny", done.stdout


@pytest.mark.slow
def test_every_clip_has_its_embeddings_and_the_network_is_made_for_them(run, folder):
    _, run_dir, out = run
    encoder = PretrainedTextEncoder(folder, 5, CPU)
    rows, reader = read_index(run_dir / "latents"), PayloadReader(run_dir / "latents")
    for row in rows:
        stored = read_embeddings([reader.read(row)])
        expected = encoder([row.caption])
        torch.testing.assert_close(stored.values, expected.values, rtol=2e-3, atol=2e-3)  # batches of other sizes
        assert torch.equal(stored.mask, expected.mask)
    record = read_manifest(run_dir / "latents").text_encoder
    assert (record.max_tokens, record.width) == (5, WIDTH)
    assert record.fingerprint == text_encoder_fingerprint(folder)
    assert f"{len(rows)} of {len(rows)} captions have more than 5 tokens" in out  # five words and the end
    weights = load_weights(open_checkpoint(run_dir / "dit"), "ema")
    assert weights["network.text.project.weight"].shape == (16, WIDTH)
    assert len(list((run_dir / "dit" / "samples" / "step_0000006").glob("*.mp4"))) == 4
    assert all((run_dir / "samples" / clip.file).is_file() for clip in read_samples(run_dir / "samples"))


@pytest.mark.slow
def test_a_second_start_does_nothing_and_another_encoder_remakes_what_it_read(run, folder, tmp_path):
    arguments, run_dir, _ = run
    again = launch_here(*arguments)
    assert again.stdout.count("nothing to do") == 7, again.stdout
    moved = shutil.copytree(folder, tmp_path / "moved")  # the same files elsewhere are the same encoder
    elsewhere = launch_here("encode", *arguments[1:], "--set", f"encode.text.folder={moved}")
    assert "encode: nothing to do" in elsewhere.stdout
    builds = {name: read_record(run_dir / name).build for name in ("clips", "autoencoder", "latents")}
    other = write_text_encoder(tmp_path / "other", seed=1)
    done = launch_here("encode", *arguments[1:], "--set", f"encode.text.folder={other}")
    assert done.returncode == 0, done.stderr
    assert "config.text changed" in done.stdout
    now = {name: read_record(run_dir / name).build for name in builds}
    assert [name for name in builds if now[name] != builds[name]] == ["latents"]
    encode = launch_here("encode", *arguments[1:])  # as it was, for the other tests
    assert encode.returncode == 0, encode.stderr


@pytest.mark.slow
def test_sampling_needs_the_same_encoder_and_says_where_it_was(run, folder, tmp_path):
    _, run_dir, _ = run
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a red circle moves left\n")
    sampled = ("sample", str(run_dir / "dit"), "--prompts", str(prompts), "--output", str(out), "--set")
    other = write_text_encoder(tmp_path / "other", seed=1)
    done = launch_here(*sampled, f"sample.text_encoder={other}")
    assert done.returncode != 0
    assert f"{other} is another text encoder" in done.stderr
    assert str(folder) in done.stderr
    done = launch_here(*sampled, f"sample.text_encoder={tmp_path / 'gone'}")
    assert done.returncode != 0
    assert "sample.text_encoder" in done.stderr
    moved = shutil.copytree(folder, tmp_path / "moved")
    done = launch_here(*sampled, f"sample.text_encoder={moved}")
    assert done.returncode == 0, done.stderr
    (clip,) = read_samples(out)
    assert (out / clip.file).is_file()


@pytest.mark.slow
def test_a_missing_encoder_ends_a_run_before_it_begins(run, tmp_path):
    arguments, _, _ = run
    name = ("--set", "name=another", "--set", f"encode.text.folder={tmp_path / 'nowhere'}")
    done = launch_here(*arguments, *name)
    assert done.returncode != 0
    assert "holds no config.json" in done.stderr
    assert "draw" not in done.stdout
