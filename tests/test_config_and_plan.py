"""Configuration: what is refused, and how the refusal reads."""

from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from launch.config import PRESETS_DIR, ConfigError, RunConfig, dump_config, find_config, load_config
from launch.jobs import absolute_paths
from launch.plan import STAGES, describe_plan


@pytest.mark.parametrize("preset", sorted(PRESETS_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_valid_and_survive_a_round_trip(preset, tmp_path):
    saved = tmp_path / "config.yaml"
    for overrides in (
        [],
        ["data.choose_buckets={num_frames: [1, 17]}"],
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


def test_a_mix_takes_the_place_of_the_source():
    config = load_config(Path("demo"), ["data.mix={a: {source: x, weight: 2}, b: {source: synthetic}}"])
    assert config.data.places == {"a": "x", "b": "synthetic"}
    assert config.data.weights == (("a", 2.0), ("b", 1.0))
    assert not config.data.is_synthetic
    with pytest.raises(ConfigError, match=r"data: mix stands beside source \(videos\); keep one of them"):
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
        ("dit.model.patch_size=3", "data.buckets.0.height is 64.*does not split into patches"),
        ("data.source=[a", r"'\[a' is not YAML"),
        ("dit.model.heads=5", "dit.model: heads is 5.*use 4 heads"),
        ("dit.train.global_batch=33", "dit.train.global_batch is 33.*use 32"),
        ("autoencoder.model.deep_width=100", "deep_width is 100.*use 96"),
        ("sample.solver=rk5", "sample.solver: input should be 'euler', .*'rk5'"),
        ("dit.flow.prediction=noise", "dit.flow: prediction is 'noise'.*use path 'vp'"),
        ("sample.schedule=pyramid", "sample.schedule is 'pyramid'.*set dit.flow.times_per to frame"),
        ("name=../x", "name: string should match pattern"),
        ("steps", "write section.field=value"),
    ],
)
def test_refusals_name_field_value_and_way_out(override, said):
    with pytest.raises(ConfigError, match=said):
        load_config(Path("demo"), [override])


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(ConfigError, match="presets are demo, real-tiny"):
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


def test_overrides_reach_any_depth_and_the_file_on_disk_comes_first(tmp_path, monkeypatch):
    config = load_config(
        Path("demo"), ["dit.model.text.depth=3", "data.source=/videos", "cluster.workers.num_workers=4"]
    )
    assert (config.dit.model.text.depth, config.data.source, config.cluster.workers.num_workers) == (3, "/videos", 4)
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("name: mine", encoding="utf-8")
    assert find_config(Path("demo")) == Path("demo")


def test_the_default_tree_is_valid():
    assert yaml.safe_load(dump_config(RunConfig(name="x")))["dit"]["train"]["zero_stage"] == 2


def test_a_job_is_told_places_that_do_not_depend_on_where_it_was_submitted():
    mix = "data.mix={a: {source: x/*.mp4}, b: {source: s3://bucket/y}, c: {source: synthetic}}"
    sources = {name: part.source for name, part in absolute_paths(load_config(Path("demo"), [mix])).data.mix.items()}
    assert sources == {"a": str(Path("x/*.mp4").absolute()), "b": "s3://bucket/y", "c": "synthetic"}
    names = ("runs_dir", "data.captions", "encode.text.folder", "dit.train.start_from", "dit.train.cache.folder")
    names += ("autoencoder.train.cache.folder", "sample.prompts", "sample.text_encoder")
    given = [f"{name}=x/{name}" for name in names]
    given += [f"{section}.train.cache.limit_gib=1" for section in ("dit", "autoencoder")]
    told = absolute_paths(load_config(Path("demo"), given))
    for name in names:
        assert attrgetter(name)(told) == Path(f"x/{name}").absolute()


def test_the_plan_names_every_stage_and_the_sizes():
    plan = describe_plan(load_config(Path("demo")), STAGES)
    assert all(stage in plan for stage in STAGES)
    assert "of 80 tokens" in plan
    assert "17 frames, 64 x 64, 8 fps" in plan
    several = "[{num_frames: 17, height: 64, width: 64, fps: 8}, {num_frames: 1, height: 64, width: 64, fps: 8}]"
    plan = describe_plan(load_config(Path("demo"), [f"data.buckets={several}"]), STAGES)
    assert "1500 steps of 32 clips of 80 tokens (17x64x64@8) or 160 clips of 16 tokens (1x64x64@8)" in plan
    plan = describe_plan(load_config(Path("demo"), ["data.choose_buckets={max_aspects: 2}"]), STAGES)
    assert "clips of 17 frames in up to 2 aspect ratios, chosen from the videos" in plan
