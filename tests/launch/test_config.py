"""Configuration: what is refused, and how the refusal reads."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from launch.config import PRESETS_DIR, RunConfig, dump_config, find_config, load_config
from launch.overrides import ConfigError
from launch.plan import describe_plan
from launch.stages import stages_of
from models.networks.config import DiTConfig
from pipeline.checkpoint.published import PublishedError
from pipeline.engine.ema_profile import FixedDecay, PowerFunction
from testing.paths import CASES_DIR, ROOT
from testing.wan import SMALL_SETTINGS, make_published


def test_a_number_is_a_fixed_decay_under_its_old_name_too(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("name: x\ndit: {train: {ema_decay: 0.9}}\nautoencoder: {train: {ema: [0.8, {sigma_rel: 0.1}]}}\n")
    config = load_config(path)
    assert config.dit.train.ema == (FixedDecay(decay=0.9),)
    assert config.autoencoder.train.ema == (FixedDecay(decay=0.8), PowerFunction(sigma_rel=0.1))
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert load_config(Path("demo"), ["dit.train.ema_decay=0.5"]).dit.train.ema == (FixedDecay(decay=0.5),)


def test_an_override_by_an_old_name_takes_the_place_of_the_new_one_and_the_reverse(tmp_path):
    path = tmp_path / "config.yaml"
    for old, override in (
        ("accumulate", "gradient_accumulation_steps"),
        ("gradient_accumulation_steps", "accumulate"),
    ):
        path.write_text(f"name: x\ndit: {{train: {{{old}: 2, global_batch: 32}}}}\n", encoding="utf-8")
        assert load_config(path).dit.train.gradient_accumulation_steps == 2
        config = load_config(path, [f"dit.train.{override}=4", "dit.flow.caption_drop=0.3"])
        assert (config.dit.train.gradient_accumulation_steps, config.dit.flow.caption_dropout) == (4, 0.3)
    path.write_text("name: x\ndit: {train: {accumulate: 2, gradient_accumulation_steps: 2}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="accumulate is the old name of gradient_accumulation_steps"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("dit.train.ema=[{sigma_rel: 0.5}]", r"dit\.train\.ema\.0\.power\.sigma_rel: .* less than or equal to 0\.288"),
        ("dit.train.ema=1.5", r"dit\.train\.ema\.0\.decay\.decay: .*less than 1 \(it is 1\.5\)"),
        ("dit.train.ema=[{sigma: 0.1}]", r"a profile is a number, {decay: 0\.999} or {sigma_rel: 0\.10}, not"),
        ("dit.train.ema=[]", r"dit\.train\.ema: .*at least 1 item"),
        ("dit.train.ema=[0.9, 0.9]", r"ema lists decay-0\.9, decay-0\.9: keep each once"),
        ("dit.train.validate_weights=[power-0.10]", r"validate_weights names 'power-0\.10', but ema gives raw, ema, "),
        ("dit.train.sample_weights=raw", r"sample_weights names 'raw', but ema gives ema, decay-0\.99"),
        ("sample.weights=power-0.10", r"sample\.weights is 'power-0\.10', but dit\.train\.ema gives ema, master, dec"),
    ],
)
def test_profiles_that_cannot_be_used_are_refused_by_name(override, told):
    with pytest.raises(ConfigError, match=told):
        load_config(Path("demo"), [override])


def test_the_caption_dropout_is_read_under_its_old_name_too(tmp_path):
    assert load_config(Path("real-tiny"), ["dit.flow.caption_drop=0.2"]).dit.flow.caption_dropout == 0.2
    assert load_config(Path("real-tiny"), ["dit.flow.caption_dropout=0.2"]).dit.flow.caption_dropout == 0.2
    config = load_config(Path("demo"), ["dit.flow.caption_dropout=0.2"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert "caption_dropout: 0.2" in dump_config(config)
    assert load_config(tmp_path / "config.yaml") == config


def test_the_weight_of_the_kl_divergence_is_read_under_its_old_name_too(tmp_path):
    path = tmp_path / "config.yaml"
    for section in ("model: {kl_weight: 0.01}", "loss: {kl: 0.01}"):
        path.write_text(f"name: x\nautoencoder: {{{section}}}\n", encoding="utf-8")
        assert load_config(path).autoencoder.loss.kl == 0.01
        for override in ("model.kl_weight", "loss.kl"):
            assert load_config(path, [f"autoencoder.{override}=0.5", "seed=1"]).autoencoder.loss.kl == 0.5
    path.write_text("name: x\nautoencoder: {model: {kl_weight: 1}, loss: {kl: 1}}\n", encoding="utf-8")
    for overrides in ([], ["seed=1"]):
        with pytest.raises(ConfigError, match=r"autoencoder: model\.kl_weight is the old name of loss\.kl, and both"):
            load_config(path, overrides)
    for section in ("3", "{model: 3}", "{model: {kl_weight: 1}, loss: 3}"):
        path.write_text(f"name: x\nautoencoder: {section}\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="autoencoder"):
            load_config(path, ["seed=1"])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.zero_stage=3", "train.zero_stage is 3, .* set train.zero_stage to 2, or leave loss.adversarial out"),
        ("train.compile=true", "train.compile is true, .* to false, or leave loss.adversarial out"),
        ("loss.adversarial.weight=-1", "adversarial.weight: .*greater than or equal to 0"),
        ("loss.gradient=-1", "loss.gradient: .*greater than or equal to 0"),
        ("loss.perceptual={}", "loss.perceptual.network: field required"),
        ("model.spatial_factor=4", "model.spatial_factor: input should be 8 or 16"),
    ],
)
def test_losses_that_cannot_be_trained_are_refused_by_name(override, told):
    with pytest.raises(ConfigError, match=told):
        load_config(Path("demo"), ["autoencoder.loss.adversarial={}", f"autoencoder.{override}"])


def test_sides_that_do_not_fit_to_a_larger_stride_are_refused():
    with pytest.raises(ConfigError, match=r"data\.buckets\.0\.height is 48: its latent of 3 does not split"):
        load_config(
            Path("demo"),
            ["autoencoder.model.spatial_factor=16", "data.buckets=[{num_frames: 5, height: 48, width: 64, fps: 8}]"],
        )


def test_the_configuration_of_a_run_of_an_older_version_is_read():
    config = load_config(ROOT / "tests" / "golden" / "run_before" / "run" / "config.yaml")
    assert config.dit.flow.caption_dropout == 0.1
    assert config.autoencoder.loss.kl == 1e-6
    assert config.dit.model.architecture == "dit"


@pytest.mark.parametrize("preset", sorted(PRESETS_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_valid_and_survive_a_round_trip(preset, tmp_path):
    saved = tmp_path / "config.yaml"
    for overrides in (
        [],
        ["data.buckets=[{}]", "data.choose_buckets={num_frames: [1, 17]}"],
        ["data.source=synthetic", "data.mix={a: {source: x}}"],
    ):
        config = load_config(preset, overrides)
        saved.write_text(dump_config(config), encoding="utf-8")
        assert load_config(saved) == config


def test_several_buckets_need_batches_that_every_worker_can_share():
    settings = ["data.choose_buckets={}", "cluster.workers.num_workers=3", "dit.train.global_batch=33"]
    settings += ["autoencoder.train.global_batch=3"]
    with pytest.raises(ConfigError, match=r"autoencoder.train.batch_multiple is 4, but .*num_workers 3.*use 12"):
        load_config(Path("demo"), settings)
    settings += ["autoencoder.train.batch_multiple=12", "dit.train.batch_multiple=3"]
    assert load_config(Path("demo"), settings).dit.train.batch_multiple == 3
    with pytest.raises(ConfigError, match=r"side_multiple is 16, but with dit.model.patch_size 4 .*of 32: use 32"):
        load_config(Path("demo"), ["data.choose_buckets={}", "dit.model.patch_size=4"])
    unet = "dit.model={architecture: unet, multipliers: [1, 1, 3]}"
    with pytest.raises(ConfigError, match=r"is 16, but with dit\.model\.multipliers \(1, 1, 3\) sides .*of 32: use 32"):
        load_config(Path("demo"), ["data.choose_buckets={}", unet])


def test_a_mix_takes_the_place_of_the_source():
    config = load_config(Path("demo"), ["data.mix={a: {source: x, weight: 2}, b: {source: synthetic}}"])
    assert config.data.places == {"a": "x", "b": "synthetic"}
    assert config.data.weights == (("a", 2.0), ("b", 1.0))
    assert not config.data.is_synthetic
    with pytest.raises(ConfigError, match=r"data: both mix and source \(videos\) are given; keep one of them"):
        load_config(Path("real-tiny"), ["data.mix={a: {source: x}}"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dit.train.stepz=5", "dit.train.stepz: there is no such field; did you mean steps?"),
        ("dits.train.steps=5", "dits: there is no such field; did you mean dit?"),
        ("dit.train.steps=many", "dit.train.steps: input should be a valid integer.*'many'"),
        ("dit.train.learning_rate=-1", "dit.train.learning_rate: input should be greater than 0.*-1"),
        ("data.buckets.0.num_frames=16", "data.buckets.0: num_frames is 16.*use 13 or 17"),
        ("data.buckets.0.heigth=64", "data.buckets.0.heigth: there is no such field; did you mean height"),
        ("data.buckets.1.height=64", "'1' must be a number below 1"),
        ("data.bucket.height=64", "data.bucket: there is no such field; did you mean buckets"),
        ("data.choose_buckets={pixel: 3}", "data.choose_buckets.pixel: there is no such field; did you mean pixels"),
        ("data.mix={Big: {source: x}}", "data.mix.Big.*should match pattern"),
        ("data.mix={a: {sauce: x}}", "data.mix.a.sauce: there is no such field; did you mean source"),
        (
            "dit.model.patch_size=3",
            "data.buckets.0.height is 64: its latent of 8 does not split into patches of 3, as dit.model.patch_size 3 "
            "needs: use 48 or 72",
        ),
        (
            "dit.model={architecture: unet, multipliers: [1, 1, 1, 1, 3]}",
            r"data.buckets.0.height is 64: its latent of 8 does not split into patches of 16, as dit.model.multipliers "
            r"\(1, 1, 1, 1, 3\) needs: use 128$",
        ),
        ("dit.model={architecture: unet, depth: 4}", r"dit\.model\.depth: there is no such field"),
        ("data.buckets=[a", r"--set data.buckets=\[a: line 1: it is not YAML: expected ',' or ']'"),
        ("dit.model.architecture=mamba", "dit.model.architecture: input should be 'dit', 'unet', 'wan' .*'mamba'"),
        ("dit.model.heads=5", "dit.model: heads is 5.*use 4 heads"),
        ("dit.train.global_batch=33", "dit.train.global_batch is 33.*use 32"),
        ("autoencoder.model.deep_width=100", "deep_width is 100.*use 96"),
        ("sample.solver=rk5", "sample.solver: input should be 'euler', .*'rk5'"),
        ("dit.flow.prediction=noise", "dit.flow: prediction is 'noise'.*use path 'vp'"),
        ("sample.solver=flow_map", "sample.solver is flow_map, but no flow map is trained: set distill"),
        ("sample.solver=jumps", "sample.solver is jumps, but dit predicts latents: use another solver"),
        ("tokenizer={}", "dit.flow.tokens is null, but tokenizer is not null: set both"),
        (
            "dit.flow.tokens={}",
            "dit.flow: tokens is set, whose states jump, but first_frame_share is of a flow of latents",
        ),
        ("dit.flow.map={}", "dit.model.flow_map is false, but dit.flow.map is not null: set both"),
        ("dit.model.flow_map=true", "dit.model.flow_map is true, but dit.flow.map is null: set both"),
        ("distill={train: {start_from: x}}", "distill.train.start_from is set, but a student starts from"),
        ("distill={matching: {calls: 2}}", "matching is of the kind distribution_matching, and kind is flow_map"),
        ("distill={kind: distribution_matching, map: {max_guidance: 2}}", "map is of the kind flow_map, and kind is"),
        ("distill={kind: distribution_matching}", "sample.solver is heun, but distill.kind is distribution_matching"),
        ("dit.flow.matching={}", "dit.flow.matching is of students: leave it out"),
        ("sample.solver=renoise", "sample.solver is renoise, but no flow map is trained: set distill"),
        ("distill={train: {mixed_buckets: true}}", "distill.train.mixed_buckets is set"),
        ("distill={train: {global_batch: 33}}", "distill.train.global_batch is 33.*use 32"),
        ("dit.flow.coupled_clips=5", "coupled_clips is 5, but dit.train.global_batch 32, in . parts .*a multiple of"),
        ("sample.schedule=pyramid", "sample.schedule is 'pyramid'.*set dit.flow.times_per to frame"),
        ("name=../x", "name: string should match pattern"),
        ("steps", "write section.field=value"),
    ],
)
def test_refusals_name_field_value_and_way_out(override, said):
    with pytest.raises(ConfigError, match=said):
        load_config(Path("demo"), [override])


def test_channels_for_frames_that_are_never_given_are_refused():
    overrides = ["dit.flow.first_frame_share=0", "dit.flow.given={}", "dit.model.known_frames=channels"]
    said = r"known_frames is 'channels', but dit\.flow\.first_frame_share is 0.*set first_frame_share above 0"
    with pytest.raises(ConfigError, match=said):
        load_config(Path("demo"), overrides)


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(ConfigError, match="presets are demo, demo-tokens, gpu-1, gpu-64, gpu-8, real-tiny"):
        load_config(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(bad)
    bad.write_text("- 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds a list, not sections"):
        load_config(bad)
    bad.write_text("seed: 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="name: field required"):
        load_config(bad)
    with bad.open("r+b") as file:
        file.truncate(2**40)  # of which the disk holds nothing
    with pytest.raises(ConfigError, match=r"bad\.yaml has 1099511627776 bytes, more than 4194304; a configuration is"):
        load_config(bad)


def test_overrides_reach_any_depth_and_the_file_on_disk_comes_first(tmp_path, monkeypatch):
    config = load_config(
        Path("demo"), ["dit.model.text.depth=3", "data.source=/videos", "cluster.workers.num_workers=4"]
    )
    assert isinstance(config.dit.model, DiTConfig)
    assert (config.dit.model.text.depth, config.data.source, config.cluster.workers.num_workers) == (3, "/videos", 4)
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("name: mine", encoding="utf-8")
    assert find_config(Path("demo")) == Path("demo")


def test_the_default_tree_is_valid():
    assert yaml.safe_load(dump_config(RunConfig(name="x")))["dit"]["train"]["zero_stage"] == 2


def test_a_smallest_number_that_cannot_be_is_refused():
    many = ["cluster.workers.num_workers=4"]
    with pytest.raises(ConfigError, match=r"min_workers is 3, but .*global_batch \d+ does not divide .* use 2"):
        load_config(Path("demo"), [*many, "cluster.workers.min_workers=3"])
    with pytest.raises(ConfigError, match="min_workers is 9, but num_workers is 4"):
        load_config(Path("demo"), [*many, "cluster.workers.min_workers=9"])
    assert load_config(Path("demo"), [*many, "cluster.workers.min_workers=2"]).cluster.workers.num_required == 2


def test_adapters_need_something_to_adapt():
    with pytest.raises(ConfigError, match="name its checkpoint in start_from"):
        load_config(Path("demo"), ["dit.train.lora={rank: 4}"])


@pytest.mark.parametrize(
    ("stage", "offload", "told"),
    [
        (1, "optimizer", r"offload is 'optimizer', which needs ZeRO 2 or 3, but zero_stage is 1: set zero_stage to 2"),
        (2, "optimizer_and_parameters", r"needs ZeRO 3, but zero_stage is 2: set zero_stage to 3, or offload to none"),
    ],
)
def test_stages_that_cannot_are_refused(stage, offload, told):
    with pytest.raises(ConfigError, match=told):
        load_config(Path("demo"), [f"dit.train.zero_stage={stage}", f"dit.train.offload={offload}"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["dit.train.sequence_parallel=2"], r"dit\.model\.heads is 3, but 2 workers .* use 2 heads"),
        (
            ["dit.train.sequence_parallel=2", "dit.model={architecture: unet}"],
            r"train\.sequence_parallel is 2, but dit\.model\.architecture is unet, which has no tokens to share: leave",
        ),
        (["dit.train.sequence_parallel=3"], r"sequence_parallel is 3, but .*num_workers 2 do not .* use 3 workers"),
        (["autoencoder.train.sequence_parallel=2"], "is for the DiT"),
        (
            ["dit.train.sequence_parallel=2", "dit.model.heads=4", "dit.model.patch_size=8"],
            r"bucket .* has 1 tokens, but 2 workers .* use train\.sequence_parallel=1",
        ),
    ],
)
def test_a_configuration_that_cannot_be_shared_is_refused(overrides, told):
    with pytest.raises(ConfigError, match=told):
        load_config(Path("demo"), ["cluster.workers.num_workers=2", *overrides])


SHAPES = (
    "data.buckets=[{num_frames: 1, height: 64, width: 64, fps: 8}, {num_frames: 17, height: 64, width: 64, fps: 8}]"
)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["dit.model={architecture: unet}"],
            r"architecture unet computes clips of one shape at a time: set dit\.train",
        ),
        (["dit.train.global_batch=4"], r"4 clips of each of 2 buckets: use 8, or a lower train\.batch_multiple"),
        (["dit.train.batch_multiple=6", "dit.train.global_batch=20"], r"multiple of batch_multiple 6: use 18"),
        (["dit.train.batch_multiple=3", "dit.train.global_batch=24"], r"num_workers 2 must divide it.* use 6"),
        (
            ["dit.train.sequence_parallel=2"],
            r"sequence_parallel is 2, and packed clips cannot be shared .* set sequence_parallel to 1",
        ),
        (["autoencoder.train.mixed_buckets=true"], "is for the DiT, which packs clips: leave it out"),
    ],
)
def test_mixed_buckets_that_cannot_be_are_refused(overrides, told):
    mixed = ["cluster.workers.num_workers=2", SHAPES, "dit.train.mixed_buckets=true"]
    assert load_config(Path("demo"), mixed).dit.train.mixed_buckets
    with pytest.raises(ConfigError, match=told):
        load_config(Path("demo"), [*mixed, *overrides])


def test_groups_may_have_more_workers_than_clips():
    config = load_config(
        Path("demo"),
        [
            "cluster.workers.num_workers=4",
            "dit.train.sequence_parallel=4",
            "dit.train.global_batch=1",
            "dit.model.heads=4",
            "dit.model.width=192",
        ],
    )
    assert config.dit.train.global_batch == 1


REFUSED_CASES = {
    "dup.yaml": r"dup\.yaml: line 4: the key 'dit' is there already, in line 2",
    "dup_key.yaml": r"dup_key\.yaml: line 3: the key 'seed' is there already, in line 2",
    "octal.yaml": r"octal\.yaml: line 2: '0100' would be read in base 8: write 100",
    "sexa.yaml": r"sexa\.yaml: line 2: '1:30' would be read in base 60",
}


def test_every_file_that_two_readers_may_read_differently_is_refused_with_its_line():
    found = sorted((CASES_DIR / "config").iterdir())
    assert {path.name for path in found} == REFUSED_CASES.keys()
    for path in found:
        with pytest.raises(ConfigError, match=REFUSED_CASES[path.name]):
            load_config(path)


def float_fields(record: type[BaseModel], name: str = "") -> list[str]:
    """The fields below a record that hold one number with a fraction, as `section.field`."""
    found = []
    for field, info in record.model_fields.items():
        place = f"{name}.{field}".removeprefix(".")
        if float in (info.annotation, *get_args(info.annotation)) and "tuple" not in str(info.annotation):
            found.append(place)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found += float_fields(info.annotation, place)
    return found


LISTED = [
    "data.buckets.0.fps={}",
    "data.choose_buckets={{fps: {}}}",
    "data.mix={{a: {{source: x, weight: {}}}}}",
    "dit.train.betas=[0.9, {}]",
    "dit.train.ema=[{{decay: {}}}]",
    "dit.train.cache={{folder: x, limit_gib: {}}}",
    "dit.train.lora={{alpha: {}}}",
]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e400"])
@pytest.mark.parametrize("override", [*(f"{field}={{}}" for field in float_fields(RunConfig)), *LISTED])
def test_a_setting_that_is_not_finite_is_refused_by_name(override, value):
    field = override.partition("=")[0].replace(".", "[.]")
    with pytest.raises(ConfigError, match=rf"{field}\S*: input should be .*(finite|less|greater)"):
        load_config(Path("demo"), [override.format(value)])


def field_names(record: type[BaseModel], name: str = "") -> list[str]:
    """The fields of a record and of those in it, as `section.field`."""
    found = []
    for field, info in record.model_fields.items():
        place = f"{name}.{field}".removeprefix(".")
        found.append(place)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found += field_names(info.annotation, place)
    return found


SCALARS = st.sampled_from(
    [
        *("1", "0", "-1", "2.5", ".nan", "1.0e+308", "0x10", "9223372036854775807", "9" * 5000, "0x" + "f" * 5000),
        *(
            "true",
            "null",
            "~",
            "''",
            "a",
            "'a' b'",
            '"\\uD800"',
            '"\\0"',
            '"\\UFFFFFFFF"',
            "!!bool maybe",
            "2024-01-01",
        ),
        *("[]", "{}", "[0.9, 0.99]", "[[true]]", "{source: x}", "{folder: x}", "<<", "&a 1", "*a", "~nobody-here/x"),
    ]
)
TEXTS = st.text(alphabet="{}[]:,-&*!|>'\"#?%@~<= \n\t0123456789.eExoabntyr_\\Uu\x00é/")
VALUES = SCALARS | TEXTS
NAMES = sorted({part for name in field_names(RunConfig) for part in name.split(".")})
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3).map(
            lambda fields: "{" + ", ".join(f"{name}: {value}" for name, value in fields.items()) + "}"
        )
    ),
    max_leaves=8,
)
SECTIONS = st.dictionaries(st.sampled_from(list(RunConfig.model_fields)), TREES, max_size=3)
FILES = SECTIONS.map(lambda tree: "".join(f"{name}: {value}\n" for name, value in ({"name": "x"} | tree).items()))


def loaded_or_refused(text: str, overrides: list[str]) -> None:
    """A configuration is refused by name in a bounded message, or is the same once it is written and read."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            config = load_config(path, overrides)
        except ConfigError as error:
            refusal = str(error)
            assert len(refusal) < 5000
            return
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(path) == config


@settings(deadline=None, max_examples=60)
@given(FILES | TEXTS)
def test_any_file_is_used_or_refused_by_name(text):
    loaded_or_refused(text, [])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(field_names(RunConfig)), VALUES)
def test_any_override_is_used_or_refused_by_name(name, value):
    loaded_or_refused("name: x", [f"{name}={value}"])


@pytest.mark.timeout(60)  # a search for the nearest width that fits took hours
@pytest.mark.parametrize(
    "override",
    [
        "autoencoder.model.width=4611686018427387904",
        "autoencoder.model.deep_width=4611686018427387905",
        "dit.model.width=4611686018427387904",
        "dit.model.heads=4611686018427387904",
        "dit.model.text.width=4611686018427387904",
        "dit.model.text.heads=4611686018427387904",
        "cluster.workers.num_workers=4611686018427387904",
        "data.buckets.0.height=4611686018427387904",
        "data.buckets.0.width=4611686018427387904",
    ],
)
def test_a_size_beyond_its_limit_is_refused_by_name(override, tmp_path):
    name = override.split("=")[0]
    config = tmp_path / "config.yaml"
    config.write_text("name: x\ndata: {buckets: [{num_frames: 17}]}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{re.escape(name)}.*should be less than or equal to"):
        load_config(config, [override])


@pytest.mark.timeout(60)
def test_the_largest_sizes_are_compared_in_time(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("name: x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="must divide 8 x width = 524280: use"):
        load_config(config, ["autoencoder.model.width=65535", "autoencoder.model.deep_width=65536"])
    with pytest.raises(ConfigError, match="use 8190 heads"):
        load_config(config, ["dit.model.width=65520", "dit.model.heads=65536"])


WAN = "dit.model={architecture: wan, width: 48, depth: 1, heads: 2, mlp_width: 64}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], r"architecture is wan, which reads captions as embeddings, but encode\.text is not set"),
        (
            ["encode.text={folder: t5, max_tokens: 600}"],
            r"max_tokens is 600, but .* takes at most 512: use 512",
        ),
        (["encode.text={folder: t5}", "dit.model.heads=5"], r"dit\.model: heads is 5, but width 48 .* use 6 heads"),
        (["encode.text={folder: t5}", "dit.model.depht=3"], r"dit\.model\.depht: there is no such field; .* depth\?"),
        (["encode.text={folder: t5}", "dit.model.text.width=32"], r"dit\.model\.text: there is no such field"),
        (
            ["encode.text={folder: t5}", "dit.model.image_width=8"],
            r"dit\.model: image_width is 8, but condition_channels is 0",
        ),
        (
            ["encode.text={folder: t5}", "dit.model.condition_channels=20"],
            r"condition_channels is above 0: a network of architecture wan .* sampled, but not trained; train one",
        ),
    ],
)
def test_a_network_that_reads_embeddings_needs_them(overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config(Path("demo"), [WAN, *overrides])


def test_a_published_autoencoder_is_checked_against_the_clips_before_anything_starts(tmp_path):
    config = load_config(Path("demo"), [f"autoencoder.published={tmp_path}", "data.buckets=[{height: 48, width: 64}]"])
    with pytest.raises(PublishedError, match=r"config\.json is missing"):
        stages_of(config)
    make_published(SMALL_SETTINGS["2.2"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"buckets\.0\.height is 48: its latent of 3 does not split into patches"):
        stages_of(config)
    fitting = load_config(Path("demo"), [f"autoencoder.published={tmp_path}"])
    plan = describe_plan(fitting)
    assert f"nothing: {tmp_path} is used" in plan
    assert "20 tokens" in plan  # 5 x 4 x 4 latent positions, in patches of 2 x 2


def test_machines_that_share_no_folder_need_a_store_and_videos_that_all_of_them_reach():
    apart = {"name": "x", "cluster": {"shared_folder": False}}
    with pytest.raises(ValueError, match=r"the machines need a store to share: set runs_dir to the URI"):
        RunConfig.model_validate(apart)
    stored, joined = apart | {"store": "s3://bucket/runs"}, {"shared_folder": False, "address": "auto"}
    with pytest.raises(
        ValueError,
        match=r"data\.source is the folder my/videos of one machine, .*: put the videos into an object store",
    ):
        RunConfig.model_validate(stored | {"cluster": joined, "data": {"source": "my/videos"}})
    for source in ("synthetic", "s3://bucket/videos"):
        assert not RunConfig.model_validate(stored | {"data": {"source": source}}).cluster.shared_folder
