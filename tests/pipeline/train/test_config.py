"""Settings of training: names that older configurations use, and which fields may change when a training resumes."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from data.records import Runtime
from launch.config import ConfigError, dump_config, load_config
from pipeline.engine.ema_profile import FixedDecay
from pipeline.run.fingerprints import output_settings
from pipeline.train.config import OLD_NAMES, FlowTrainConfig, TrainConfig

VALUES = {"accumulate": 2, "bad_steps": "skip", "ema_decay": 0.9}
READ = {"accumulate": 2, "bad_steps": "skip", "ema_decay": (FixedDecay(decay=0.9),)}


@pytest.mark.parametrize("old", OLD_NAMES)
def test_a_field_is_read_by_its_old_name(old):
    new = OLD_NAMES[old]
    for name in (old, new):
        config = TrainConfig.model_validate({name: VALUES[old]})
        assert getattr(config, new) == READ[old]
        assert new in config.model_dump(by_alias=True)
        assert old not in config.model_dump(by_alias=True)


@pytest.mark.parametrize("old", OLD_NAMES)
def test_both_names_of_a_field_are_refused(old):
    new = OLD_NAMES[old]
    with pytest.raises(ValidationError, match=f"{old} is the old name of {new}, and both are given: remove {old}"):
        TrainConfig.model_validate({old: VALUES[old], new: VALUES[old]})


@pytest.mark.parametrize("name", ["accumulate", "gradient_accumulation_steps"])
def test_bounds_hold_by_either_name(name):
    with pytest.raises(ValidationError, match=rf"{name}\n  Input should be greater than or equal to 1"):
        TrainConfig.model_validate({name: 0})


def test_old_names_work_in_overrides_and_are_stored_by_the_new_ones(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: test\ndit: {train: {bad_steps: skip}}\n")
    config = load_config(path, ["dit.train.accumulate=2", "autoencoder.train.ema_decay=0.9"])
    assert config.dit.train.gradient_accumulation_steps == 2
    assert config.dit.train.non_finite_steps == "skip"
    assert config.autoencoder.train.ema == (FixedDecay(decay=0.9),)
    stored = yaml.safe_load(dump_config(config))["dit"]["train"]
    assert (stored["gradient_accumulation_steps"], stored["non_finite_steps"]) == (2, "skip")
    assert not stored.keys() & OLD_NAMES.keys()


def test_a_file_with_both_names_is_refused_and_an_override_replaces_either(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: test\ndit: {train: {gradient_accumulation_steps: 1}}\n")
    assert load_config(path, ["dit.train.accumulate=2"]).dit.train.gradient_accumulation_steps == 2
    path.write_text("name: test\ndit: {train: {gradient_accumulation_steps: 1, accumulate: 2}}\n")
    with pytest.raises(ConfigError, match=r"dit\.train: accumulate is the old name of gradient_accumulation_steps"):
        load_config(path)


def test_constraints_hold_beside_the_marker():
    """A marker in `Annotated` replaces neither the bounds nor the description of a field."""
    for name, field in FlowTrainConfig.model_fields.items():
        assert field.description, name
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        TrainConfig(steps=0)
    assert Runtime in TrainConfig.model_fields["steps"].metadata


def test_what_may_change_when_a_training_resumes():
    """The fields of a training's inputs in stage.json; everything else is `Runtime`."""
    assert list(output_settings(FlowTrainConfig(start_from=Path("runs/x")))) == [
        "global_batch",
        "batch_multiple",
        "learning_rate",
        "warmup_steps",
        "schedule",
        "weight_decay",
        "betas",
        "clip_norm",
        "ema",
        "precision",
        "loss_scaling",
        "lora",
    ]


def test_selective_checkpointing_excludes_what_would_undo_it():
    assert TrainConfig(activation_checkpointing="selective").activation_checkpointing == "selective"
    assert TrainConfig(activation_checkpointing=True, compile=True).activation_checkpointing is True
    with pytest.raises(ValidationError, match=r"activation_checkpointing is 'selective', but compile is true"):
        TrainConfig(activation_checkpointing="selective", compile=True)
    with pytest.raises(ValidationError, match=r"activation_checkpointing is 'selective', but zero_stage is 3"):
        TrainConfig(activation_checkpointing="selective", zero_stage=3)
    with pytest.raises(ConfigError, match=r"activation_checkpointing.*'selective'"):
        load_config(Path("demo"), ["dit.train.activation_checkpointing=some"])
    chosen = load_config(Path("demo"), ["dit.train.activation_checkpointing=selective"])
    assert chosen.dit.train.activation_checkpointing == "selective"


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"precision": "fp32"}, "precision is fp32: set precision to bf16, or weight_precision to fp32"),
        ({"precision": "fp16"}, "precision is fp16: set precision to bf16, or weight_precision to fp32"),
        ({"zero_stage": 0}, "zero_stage is 0, where there are no other master weights: set zero_stage to 1"),
        (
            {"zero_stage": 1, "gradient_accumulation_steps": 2},
            "zero_stage is 1, where gradients of 2 accumulation steps would be added in bf16: set zero_stage to 2",
        ),
    ],
)
def test_weights_in_bf16_exclude_what_they_cannot_be_with(others, message):
    assert TrainConfig(**others).weight_precision == "auto"  # which is fp32 then
    with pytest.raises(ValidationError, match=f"weight_precision is bf16, but {message}"):
        TrainConfig(weight_precision="bf16", **others)


@pytest.mark.parametrize("others", [{"zero_stage": 1}, {"zero_stage": 2, "gradient_accumulation_steps": 2}, {}])
def test_weights_in_bf16(others):
    for precision in ("auto", "bf16"):
        config = TrainConfig(weight_precision="bf16", precision=precision, **others)
        assert config.weight_precision == "bf16"
