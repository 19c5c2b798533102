"""Configuration: what is refused, and how the refusal reads."""

from pathlib import Path

import pytest
import yaml

from launch.config import PRESETS_DIR, ConfigError, RunConfig, dump_config, find_config, load_config
from launch.plan import STAGES, describe_plan


@pytest.mark.parametrize("preset", sorted(PRESETS_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_valid_and_survive_a_round_trip(preset, tmp_path):
    config = load_config(preset)
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_config(config), encoding="utf-8")
    assert load_config(saved) == config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dit.train.stepz=5", "dit.train.stepz: there is no such field; did you mean steps?"),
        ("dits.train.steps=5", "dits: there is no such field; did you mean dit?"),
        ("dit.train.steps=many", "dit.train.steps: input should be a valid integer.*'many'"),
        ("dit.train.learning_rate=-1", "dit.train.learning_rate: input should be greater than 0.*-1"),
        ("data.bucket.num_frames=16", "data.bucket: num_frames is 16.*use 13 or 17"),
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


def test_the_plan_names_every_stage_and_the_sizes():
    plan = describe_plan(load_config(Path("demo")), STAGES)
    assert all(stage in plan for stage in STAGES)
    assert "of 80 tokens" in plan
    assert "(8, 5, 8, 8)" in plan
