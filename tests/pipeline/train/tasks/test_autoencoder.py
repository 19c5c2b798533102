"""The autoencoder's loss, its terms and both its networks: values, gradients, images, resuming, and what is stored."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import relu

from data.dataset.reader import PayloadReader
from data.stream.loader import Sample
from data.video.codec import decode_clip
from models.autoencoder.config import AutoencoderLossConfig, PerceptualConfig, PerceptualError
from models.autoencoder.losses import gradient_difference
from models.autoencoder.perceptual import PerceptualDistance
from pipeline.checkpoint.export import export_weights
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.distributed.torchrun import train_here
from pipeline.encode.codec import export_autoencoder, load_autoencoder, to_pixels
from pipeline.train.loop import train
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.tasks.autoencoder import AutoencoderTask
from pipeline.train.tasks.autoencoder_loss import AutoencoderLoss, PixelBatch
from testing.autoencoders import ADVERSARIAL, CONFIG, LOSS, MODEL, make_task, train_both, write_dataset
from testing.features import write_features
from testing.groups import Job, run_jobs
from testing.records import SMALL

PLAIN = AutoencoderLossConfig()
NOW = ADVERSARIAL.model_copy(update={"start_step": 0})


def module_of(task: AutoencoderTask) -> AutoencoderLoss:
    torch.manual_seed(task.seed)
    module = task.build()
    assert isinstance(module, AutoencoderLoss)
    module.mean_over_ranks = lambda x: x  # there are no ranks
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def samples(data):
    rows = make_task(data).subsets()[0].rows
    reader = PayloadReader(data)
    payloads = [reader.read(row) for row in rows]
    return [Sample(position, rows, position % len(rows), payloads[position % len(rows)]) for position in range(40)]


# ---------------------------------------------------------------- the terms


def test_the_loss_without_options_is_what_it_has_always_been(data, samples):
    task = make_task(data, PLAIN, image_share=0)
    module, batch = module_of(task), task.collate(samples[:4])
    (clips,) = batch.parts
    posterior = module.network.encode(clips.pixels)
    made = module.network.decode(posterior.sample(clips.noise))
    squared, absolute = (made - clips.pixels).square().mean(), (made - clips.pixels).abs().mean()
    losses = module(batch)
    assert list(losses) == ["total", "squared_error", "absolute_error", "kl"]
    assert losses["total"].item() == (squared + 0.1 * absolute + 1e-6 * posterior.kl().mean()).item()
    assert task.metadata() == {
        "model": {"latent_channels": 4, "width": 8, "deep_width": 16, "num_blocks": 1, "kl_weight": 1e-6},
        "seed": 7,
    }


def test_the_total_is_the_weighted_sum_of_the_terms_by_name(data, samples, tmp_path):
    write_features(tmp_path / "features.pt")
    perceptual = PerceptualConfig(weight=0.7, network=tmp_path / "features.pt")
    loss = AutoencoderLossConfig(squared=0.2, absolute=0.3, kl=0.01, gradient=0.4, perceptual=perceptual)
    task = make_task(data, loss, image_share=0)
    module, batch = module_of(task), task.collate(samples[:3])
    losses = module(batch)
    weights = {"squared_error": 0.2, "absolute_error": 0.3, "kl": 0.01, "gradient": 0.4, "perceptual": 0.7}
    assert losses.keys() == weights.keys() | {"total"}
    torch.testing.assert_close(losses["total"], sum((w * losses[n] for n, w in weights.items()), torch.tensor(0.0)))
    (clips,) = batch.parts
    made = module.network.decode(module.network.encode(clips.pixels).sample(clips.noise))
    torch.testing.assert_close(losses["gradient"], gradient_difference(clips.pixels, made))
    distance = PerceptualDistance(tmp_path / "features.pt")
    torch.testing.assert_close(losses["perceptual"], distance(clips.pixels, made))


def test_each_network_gets_the_gradient_of_its_own_loss(data, samples):
    """Against the formulas, with one graph for each network and the weight from whole graphs."""
    task = make_task(data, LOSS.model_copy(update={"adversarial": NOW}))
    module, batch = module_of(task), task.collate(samples[:6])
    assert [len(part.pixels) for part in batch.parts] == [5, 1]
    network, discriminator = module.network, module.discriminator
    assert discriminator is not None
    losses = module(batch)
    losses["total"].backward()

    terms = torch.zeros(5)
    for part in batch.parts:
        posterior = network.encode(part.pixels)
        made = network.decode(posterior.sample(part.noise))
        error = made - part.pixels
        rest = error.square().mean() + 0.1 * error.abs().mean() + 0.5 * gradient_difference(part.pixels, made)
        real, judged = discriminator(part.pixels), discriminator(made.detach())
        own = relu(1 - real).mean() + relu(1 + judged).mean()
        generator = -discriminator(made).mean()
        terms = terms + len(part.pixels) / 6 * torch.stack([rest, posterior.kl().mean(), generator, own, rest * 0])
    rest, kl, generator, own, _ = terms
    norms = [torch.autograd.grad(term, network.last_weight, retain_graph=True)[0].norm() for term in (rest, generator)]
    weight = 0.5 * norms[0] / (norms[1] + 1e-6)
    torch.testing.assert_close(losses["adversarial_weight"], weight, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["adversarial"], generator.detach())
    torch.testing.assert_close(losses["discriminator"], own)
    for total, part in ((rest + 1e-6 * kl + weight * generator, network), (own, discriminator)):
        expected = torch.autograd.grad(total, list(part.parameters()), retain_graph=True)
        for parameter, gradient in zip(part.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_a_weight_that_is_not_adaptive_is_the_factor_of_the_term(data, samples):
    """With the relativistic loss, whose logits are compared patch by patch."""
    term = NOW.model_copy(update={"kind": "relativistic", "adaptive": False, "weight": 0.03})
    task = make_task(data, LOSS.model_copy(update={"adversarial": term}))
    module, batch = module_of(task), task.collate(samples[:6])
    network, discriminator = module.network, module.discriminator
    assert discriminator is not None
    losses = module(batch)
    losses["total"].backward()
    assert losses["adversarial_weight"].item() == pytest.approx(0.03)

    rest, generator, own = torch.zeros(3)
    for part in batch.parts:
        posterior = network.encode(part.pixels)
        made = network.decode(posterior.sample(part.noise))
        error, share = made - part.pixels, len(part.pixels) / 6
        terms = error.square().mean() + 0.1 * error.abs().mean() + 0.5 * gradient_difference(part.pixels, made)
        rest = rest + share * (terms + 1e-6 * posterior.kl().mean())
        real, judged = discriminator(part.pixels), discriminator(made)
        generator = generator - share * torch.sigmoid(judged - real).log().mean()
        own = own - share * torch.sigmoid(real - judged).log().mean()
    torch.testing.assert_close(losses["adversarial"], generator.detach())
    torch.testing.assert_close(losses["discriminator"], own.detach())
    for total, part in ((rest + 0.03 * generator, network), (own, discriminator)):
        expected = torch.autograd.grad(total, list(part.parameters()), retain_graph=True)
        for parameter, gradient in zip(part.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_the_weight_does_not_underflow_in_float16(data, samples):
    task = make_task(data, LOSS.model_copy(update={"adversarial": NOW}))
    module, batch = module_of(task), task.collate(samples[:4])
    exact = module(batch)["adversarial_weight"]
    with torch.autocast("cpu", torch.float16):
        torch.testing.assert_close(module(batch)["adversarial_weight"], exact, rtol=0.05, atol=0)


def test_before_the_start_the_discriminator_has_gradients_of_zero(data, samples):
    task = make_task(data)
    module, batch = module_of(task), task.collate(samples[:4])
    losses = module(batch)
    assert not losses.keys() & {"adversarial", "adversarial_weight", "discriminator"}
    losses["total"].backward()
    assert module.discriminator is not None
    assert all(p.grad is not None and not p.grad.any() for p in module.discriminator.parameters())
    module.num_steps = ADVERSARIAL.start_step
    assert module(batch).keys() >= {"adversarial", "adversarial_weight", "discriminator"}


def test_validation_measures_the_reconstruction_alone(data, samples):
    task = make_task(data, LOSS.model_copy(update={"adversarial": NOW}))
    module = module_of(task).eval()
    batch = task.validation_batch(samples[0].row, bytes(samples[0].payload))
    with torch.no_grad():
        losses = module(batch)
    expected = module_of(make_task(data, LOSS.model_copy(update={"adversarial": None}))).eval()(batch)
    assert {name: value.item() for name, value in losses.items()} == {n: v.item() for n, v in expected.items()}


# ---------------------------------------------------------------- images


def test_images_are_single_frames_of_a_share_of_the_samples(data, samples):
    task = make_task(data)
    batches = [task.collate([sample]) for sample in samples]
    is_image = [batch.parts[1].share == 1 for batch in batches]
    assert 0.15 < np.mean(is_image) < 0.45
    frames = set()
    for sample, batch, image in zip(samples, batches, is_image, strict=True):
        videos, images = batch.parts
        assert (videos.share, images.share) == (not image, image)
        clip = to_pixels(decode_clip(sample.payload))
        assert torch.equal(videos.pixels[0], clip)
        assert images.pixels.shape == (1, 3, 1, 16, 16)
        assert images.noise.shape == (1, 4, 1, 2, 2)
        frames |= {t for t in range(5) if torch.equal(images.pixels[0, :, 0], clip[:, t])} if image else set()
    assert len(frames) >= 4


def test_the_loss_of_a_batch_is_the_mean_over_its_samples(data, samples):
    """However they are divided among ranks and accumulation steps."""
    task = make_task(data, LOSS.model_copy(update={"adversarial": None}))
    module = module_of(task)
    whole = module(task.collate(samples[:6]))
    apart = [module(task.collate([sample])) for sample in samples[:6]]
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([losses[name] for losses in apart]).mean())


def test_a_batch_of_images_alone_trains_on_nothing_else(data, samples):
    task = make_task(data, PLAIN, image_share=1)
    module, batch = module_of(task), task.collate(samples[:3])
    images = PixelBatch((batch.parts[1],))
    assert {name: value.item() for name, value in module(batch).items()} == {
        name: value.item() for name, value in module(images).items()
    }


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Folders of trainings of 6 steps: by two workers at each stage, and by one that resumes another's step 3."""
    folder = tmp_path_factory.mktemp("runs")
    jobs = [Job(2, train_both, (data, folder / f"two-{stage}", stage, 6)) for stage in (0, 1, 2)]
    run_jobs([*jobs, Job(1, train_both, (data, folder / "one", 2, 6))], folder)
    for path in folder.glob("store-*"):
        path.unlink()
    resumed = [("one", 2), ("two-0", 1), ("two-2", 0)]  # the run that saved step 3, and the stage that goes on
    for name, stage in resumed:
        shutil.copytree(folder / name, folder / f"{name}-to-{stage}")
        shutil.rmtree(folder / f"{name}-to-{stage}" / "checkpoints" / "step_0000006")
        (folder / f"{name}-to-{stage}" / "latest").write_text("step_0000003\n")
    run_jobs([Job(1, train_both, (data, folder / f"{n}-to-{stage}", stage, 6)) for n, stage in resumed], folder)
    return folder


LOGGED = ("total", "squared_error", "absolute_error", "kl", "gradient", "gradient_norm")
LATER = ("adversarial", "adversarial_weight", "discriminator")


def logged(folder):
    return [{name: row[name] for name in (*LOGGED, *LATER) if name in row} for row in read_metrics(folder)]


@pytest.mark.slow
def test_every_term_that_is_used_is_logged_by_name(runs):
    rows = logged(runs / "one")
    assert [set(row) for row in rows] == [set(LOGGED)] * 2 + [{*LOGGED, *LATER}] * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two-0", "two-1", "two-2", "two-0-to-1", "two-2-to-0"])
def test_losses_do_not_depend_on_workers_and_stages(runs, name):
    for row, expected in zip(logged(runs / name), logged(runs / "one"), strict=True):
        assert row == pytest.approx(expected, rel=2e-4, abs=1e-4)


@pytest.mark.slow
def test_a_training_of_both_networks_resumes_bit_for_bit(runs):
    assert logged(runs / "one-to-2") == logged(runs / "one")
    one, two = (open_checkpoint(runs / name) for name in ("one", "one-to-2"))
    assert any(name.startswith("discriminator.") for name in one.record.parameters)
    for which in ("master", "ema"):
        first, second = load_weights(one, which), load_weights(two, which)
        assert all(torch.equal(first[name], second[name]) for name in first)
    files = [checkpoint.folder / "rank_00000.safetensors" for checkpoint in (one, two)]
    assert files[0].read_bytes() == files[1].read_bytes()  # moments too


@pytest.mark.slow
def test_the_discriminator_does_not_move_before_its_start(runs, data):
    module = module_of(make_task(data))
    step_3 = load_weights(open_checkpoint(runs / "one" / "checkpoints" / "step_0000003"), "master")
    moved = {name for name, weight in module.named_parameters() if not torch.equal(weight, step_3[name])}
    assert any(name.startswith("discriminator.") for name in moved)  # step 2 is the first
    early = runs / "early"
    train_here(lambda worker: train_both(worker, data, early, 2, 2), 1)
    step_2 = load_weights(open_checkpoint(early), "master")
    moved = {name.partition(".")[0] for name, weight in module.named_parameters() if not weight.equal(step_2[name])}
    assert moved == {"network"}


@pytest.mark.slow
def test_what_leaves_a_checkpoint_is_the_autoencoder_alone(runs, tmp_path):
    checkpoint = open_checkpoint(runs / "one")
    export_autoencoder(checkpoint, tmp_path / "a.safetensors")
    network = load_autoencoder(tmp_path / "a.safetensors")
    assert network.config == MODEL
    average = load_weights(checkpoint)
    assert all(torch.equal(weight, average[f"network.{name}"]) for name, weight in network.state_dict().items())
    export_weights(checkpoint, tmp_path / "b.safetensors")
    assert load_autoencoder(tmp_path / "b.safetensors").config == MODEL


@pytest.mark.slow
def test_a_checkpoint_names_the_loss(runs):
    trained = open_checkpoint(runs / "one").record.trained
    assert trained["model"]["kl_weight"] == 1e-6
    adversarial = ADVERSARIAL.model_dump(mode="json", exclude={"kind", "adaptive"})  # which were added later
    assert trained["loss"] == {"gradient": 0.5, "adversarial": adversarial}


def test_of_a_perceptual_network_the_content_counts_and_not_the_place(data, tmp_path):
    write_features(tmp_path / "one.pt")
    shutil.copyfile(tmp_path / "one.pt", tmp_path / "other.pt")
    tasks = [
        make_task(data, AutoencoderLossConfig(perceptual=PerceptualConfig(network=tmp_path / name)))
        for name in ("one.pt", "other.pt")
    ]
    assert tasks[0].metadata() == tasks[1].metadata()
    stored = tasks[0].metadata()["loss"]["perceptual"]
    assert stored["weight"] == 1.0
    assert len(stored["network"]) == 16
    (tmp_path / "other.pt").write_bytes(b"")
    assert tasks[0].metadata() != tasks[1].metadata()
    (tmp_path / "other.pt").unlink()
    with pytest.raises(PerceptualError, match=r"other\.pt cannot be read"):
        tasks[1].metadata()


def test_a_perceptual_network_is_used_in_training_and_saved_nowhere(data, tmp_path):
    write_features(tmp_path / "features.pt")
    loss = AutoencoderLossConfig(perceptual=PerceptualConfig(network=tmp_path / "features.pt"))
    task = make_task(data, loss, image_share=0)
    train_here(lambda worker: train(task, CONFIG.model_copy(update={"steps": 2}), tmp_path / "run", worker), 1)
    assert all(row["perceptual"] > 0 for row in read_metrics(tmp_path / "run"))
    assert all(name.startswith("network.") for name in open_checkpoint(tmp_path / "run").record.parameters)


def test_tokens_are_latent_positions_of_the_autoencoder():
    for factor, expected in ((8, 2 * 4 * 4), (16, 2 * 2 * 2)):
        model = MODEL.model_copy(update={"spatial_factor": factor})
        assert AutoencoderTask(model, dataset_dir=Path(), seed=0).num_tokens(SMALL) == expected
