"""Each field of the configuration is listed as affecting the output or not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, ValidationError

from data.records import AddedLater, Layout, Runtime, Settings
from launch.config import RunConfig, load_config
from launch.overrides import records_in
from pipeline.run.fingerprints import fingerprint, output_json, output_settings, stored


@dataclass(frozen=True)
class Decided:
    """What a change of each field of a record means; a subclass lists only the fields that it adds."""

    output: str = ""
    runtime: str = ""
    layout: str = ""
    later: str = ""


# Whoever adds a field decides here: does another value give another output? If it does, outputs made before the
# field existed stay valid only if it is `AddedLater`.
DECIDED = {
    "RunConfig": Decided(
        output="seed data autoencoder encode dit sample evaluate",
        runtime="name runs_dir local_dir store cluster",
        later="tokenizer distill",
    ),
    "TokenizerSection": Decided(
        output="model train",
    ),
    "TokenizerConfig": Decided(
        output="levels codes width depth",
    ),
    "TokenFlowSpec": Decided(
        output="source power",
    ),
    "DistillSection": Decided(
        output="map train",
        later="kind matching",
    ),
    "DistributionMatchingSpec": Decided(
        output="calls shift critic_updates max_guidance",
    ),
    "DataConfig": Decided(
        output="source mix synthetic",
    ),
    "ShardConfig": Decided(
        output="buckets choose_buckets captions max_clips_per_video validation_fraction scene_detection augment "
        "filters",
        runtime="decode_timeout_seconds decode_seconds_per_minute",
        layout="videos_per_shard",
        later="clip_placement hdr letter_box models",
    ),
    "AutoencoderSection": Decided(
        output="model loss train",
        runtime="published",
    ),
    "EncodeConfig": Decided(
        output="batch chunk_frames precision text",
        later="tile",
    ),
    "FlowSection": Decided(
        output="model flow train",
    ),
    "SampleConfig": Decided(
        output=(
            "solver steps shift bucket schedule guidance_scale guidance negative_prompt sde_sigma weights precision"
        ),
        later=(
            "grid tolerance tile ddim_eta guidance_interval zero_until rescale apg_eta apg_momentum apg_threshold "
            "guidance_weights window_overlap flow_path pyramid_delay sequence_parallel temperature corrector"
        ),
        runtime="batch attention text_encoder guidance_checkpoint",  # addresses have what that checkpoint holds
    ),
    "SampleSection": Decided(
        output="compare_unguided",
        runtime="prompts bad_rows",
    ),
    "OutputsConfig": Decided(
        later="outputs video preview_side clips_per_shard",
    ),
    "VideoConfig": Decided(
        output="codec crf pixel_format preset",
    ),
    "EvaluateConfig": Decided(
        output="max_reconstructions judge_clips prompts_per_combination",
        later="compared_clips",
        runtime="clip_features frame_features text_similarity",  # the stage's inputs have what these files hold
    ),
    "ClusterConfig": Decided(
        output="workers",
        runtime="address object_store_mib shared_folder shard_parts",
    ),
    "Bucket": Decided(
        output="num_frames height width fps",
    ),
    "BucketChoice": Decided(
        output="pixels num_frames fps max_aspects side_multiple",
    ),
    "AugmentConfig": Decided(
        output="flip crops",
    ),
    "FilterConfig": Decided(
        later=(
            "too_large_pixels min_motion max_motion min_sharpness max_clipped_share max_logo_share measures "
            "duplicate_views"
        ),
        output="too_small_pixels static_difference black_luma letter_boxed_share text_fraction duplicate_bits",
    ),
    "ModelsConfig": Decided(
        output="max_caption_tokens aesthetic_pixels min_aesthetic min_similarity",
        runtime="captioner aesthetic similarity batch_size",
    ),
    "MixPart": Decided(
        output="source weight",
    ),
    "SyntheticConfig": Decided(
        output="num_videos pixels fps seconds",
        later="captions",
    ),
    "AutoencoderConfig": Decided(
        output="latent_channels width deep_width num_blocks",
        later="architecture spatial_factor",
    ),
    "AutoencoderLossConfig": Decided(
        output="kl",
        later="squared absolute gradient perceptual adversarial",
    ),
    "PerceptualConfig": Decided(
        output="weight",
        runtime="network",
    ),
    "AdversarialConfig": Decided(
        output="weight start_step width num_layers learning_rate_scale betas",
        later="kind adaptive",
    ),
    "AutoencoderTrainConfig": Decided(
        later="image_share",
    ),
    "TrainConfig": Decided(
        output=(
            "global_batch batch_multiple learning_rate warmup_steps schedule weight_decay betas clip_norm ema "
            "precision loss_scaling"
        ),
        later="mixed_buckets weight_precision",
        runtime=(
            "steps gradient_accumulation_steps sequence_parallel readers cache non_finite_steps max_unreadable_share "
            "max_norm activation_checkpointing compile attention zero_stage offload checkpoint_every_steps "
            "checkpoint_every_minutes keep_checkpoints keep_every_steps log_every_steps stall_minutes"
        ),
    ),
    "TextEncoderConfig": Decided(
        output="max_tokens",
        runtime="folder",
    ),
    "DiTConfig": Decided(
        output="width depth heads mlp_ratio patch_size text",
        later=(
            "architecture attention_pattern rope modulation modulation_rank joint_blocks preset clip_conditions "
            "known_frames flow_map"
        ),
    ),
    "RopeConfig": Decided(
        output="theta axes trained_grid extrapolation",
    ),
    "UNetConfig": Decided(
        output="architecture width multipliers num_blocks heads text",
        later="known_frames",
    ),
    "WanConfig": Decided(
        output=(
            "architecture width depth heads mlp_width patch_size time_width text_tokens image_width condition_channels "
            "norm_eps"
        ),
    ),
    "FlowSpec": Decided(
        output="path prediction loss_weight times times_per caption_dropout null_caption",
        later="first_frame_share given sigma_min vp_betas power coupled_clips map matching noise tokens",
    ),
    "FlowMapSpec": Decided(
        output="consistency_share consistency lagrangian_step max_guidance",
    ),
    "GivenFrames": Decided(
        output="prefix ends subset",
    ),
    "FlowTrainConfig": Decided(
        output="lora",
        runtime="start_from",
    ),
    "WordsConfig": Decided(
        output="max_words buckets",
    ),
    "WorkersConfig": Decided(
        runtime="num_workers min_workers cpus_per_worker gpus_per_worker max_failures",
    ),
    "CacheConfig": Decided(
        runtime="folder limit_gib",
    ),
    "FixedDecay": Decided(
        output="decay",
    ),
    "PowerFunction": Decided(
        output="sigma_rel",
    ),
    "LossScaling": Decided(
        output="initial window hysteresis",
    ),
    "TextConfig": Decided(
        output="width depth heads max_bytes ngram_buckets",
        later="normalization words",
    ),
    "TimeLaw": Decided(
        output="law mean std mode_scale shift",
    ),
    "LoraConfig": Decided(
        output="rank alpha dropout targets",
    ),
}


def settings_records() -> dict[str, type[BaseModel]]:
    """Every record that a configuration may hold, by name."""
    found: dict[str, type[BaseModel]] = {}
    waiting: list[type[BaseModel]] = [RunConfig]
    while waiting:
        record = waiting.pop()
        if record.__name__ not in found:
            found[record.__name__] = record
            for field in record.model_fields.values():
                waiting += records_in(field.annotation)
    return found


def own_fields(record: type[BaseModel]) -> dict[str, list]:
    """The metadata of the fields that a record does not inherit."""
    inherited = {name for base in record.__mro__[1:] for name in getattr(base, "model_fields", {})}
    return {name: field.metadata for name, field in record.model_fields.items() if name not in inherited}


def test_every_record_is_decided():
    inherited_only = {name for name, record in settings_records().items() if not own_fields(record)}
    bases = {base.__name__ for record in settings_records().values() for base in record.__mro__[1:]}
    assert settings_records().keys() - inherited_only <= DECIDED.keys()
    assert DECIDED.keys() <= settings_records().keys() | bases


@pytest.mark.parametrize("name", sorted(DECIDED))
def test_every_field_is_decided(name):
    records = settings_records() | {
        base.__name__: base for record in settings_records().values() for base in record.__mro__[1:]
    }
    kinds: dict[str, set[str]] = {"output": set(), "runtime": set(), "layout": set(), "later": set()}
    for field, metadata in own_fields(records[name]).items():
        later = any(isinstance(marker, AddedLater) for marker in metadata)
        kind = "runtime" if Runtime in metadata else "layout" if Layout in metadata else "later" if later else "output"
        kinds[kind].add(field)
    decided = DECIDED[name]
    assert kinds == {kind: set(getattr(decided, kind).split()) for kind in kinds}


class Inner(Settings):
    """A record within a record."""

    speed: Annotated[int, Runtime] = Field(default=1, ge=1)
    """Only how fast."""
    size: int = 2
    """What comes out."""
    kind: Annotated[str, AddedLater("plain")] = "plain"
    """What older versions did not have."""


class Outer(Settings):
    """A record with every kind of field."""

    inner: Inner = Inner()
    """One."""
    several: tuple[Inner, ...] = (Inner(), Inner(kind="new", speed=9))
    """Some."""
    by_name: dict[str, Inner] = {"a": Inner(size=3)}  # noqa: RUF012 - pydantic copies it
    """Others."""
    per_shard: Annotated[int, Layout] = 10
    """Grouping."""
    old_name: int = Field(default=4, serialization_alias="stored_name")
    """Renamed."""


def test_only_what_changes_the_output_is_in_its_settings():
    expected = {
        "inner": {"size": 2},
        "several": [{"size": 2}, {"size": 2, "kind": "new"}],
        "by_name": {"a": {"size": 3}},
        "per_shard": 10,
        "stored_name": 4,
    }
    assert output_settings(Outer()) == expected
    assert output_settings(Outer(), layout=False) == {k: v for k, v in expected.items() if k != "per_shard"}
    assert output_json(Inner(kind="new")) == '{"size":2,"kind":"new"}'
    assert output_json(Outer(), exclude=("inner", "several", "by_name")) == '{"per_shard":10,"stored_name":4}'


def test_a_stored_record_reads_back_and_leaves_out_implied_values_only():
    assert stored(Inner()) == {"speed": 1, "size": 2}
    assert Inner(**stored(Inner(kind="new", speed=3))) == Inner(kind="new", speed=3)
    assert Inner(**stored(Inner())) == Inner()


def test_markers_keep_the_limits_of_a_field():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Inner(speed=0)


def test_fingerprints_depend_on_values_and_not_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint(None)) == 16


def test_settings_of_the_demo_that_change_nothing_change_no_fingerprint():
    plain = load_config(Path("demo"))
    hurried = load_config(Path("demo"), ["dit.train.zero_stage=3", "dit.train.readers=4", "sample.batch=2"])
    for part in ("data", "autoencoder", "encode", "dit", "sample", "evaluate"):
        assert output_settings(getattr(plain, part)) == output_settings(getattr(hurried, part))
    other = load_config(Path("demo"), ["dit.train.learning_rate=0.1"])
    assert output_settings(plain.dit) != output_settings(other.dit)
