"""Options: a path or text is used as it was given, other values are YAML, and messages stay short."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from launch.config import RunConfig, load_config
from launch.overrides import ConfigError, Given, apply_override, explain
from launch.plain_yaml import read_plain_yaml
from pipeline.ingest.config import DataConfig


def overridden(override: str | Given) -> RunConfig:
    return load_config(Path("demo"), [override])


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("my videos #2", "my videos #2"),
        ("a: b", "a: b"),
        ("[a", "[a"),
        ("0100", "0100"),
        ("null", "null"),
        ("-5", "-5"),
        ("' x '", " x "),
        (' "x" ', "x"),
        ('"a" and "b"', '"a" and "b"'),
        ("'it's'", "'it's'"),
        ("'my videos #2'", "my videos #2"),
        ('"caf\\u00e9"', "café"),
        ("it's", "it's"),
    ],
)
def test_a_path_is_the_text_that_was_given(text, source):
    assert overridden(f"data.source={text}").data.source == source


def test_spaces_around_the_equals_sign_are_not_part_of_the_value():
    assert overridden("data.source = my videos").data.source == "my videos"


@pytest.mark.parametrize("text", ["p #2.txt", "a: b.txt", "'quoted'", "null"])
def test_the_path_of_another_option_is_never_read_as_yaml(text):
    assert overridden(Given("sample.prompts", text)).sample.prompts == text


@pytest.mark.parametrize("text", ["", "null", "~"])
def test_nothing_is_none_where_a_field_may_be_none(text):
    assert overridden(f"sample.prompts={text}").sample.prompts is None
    assert overridden(f"sample.negative_prompt={text}").sample.negative_prompt is None


def test_the_home_folder_takes_the_place_of_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = overridden("runs_dir=~")
    assert config.runs_dir == tmp_path
    assert overridden("runs_dir=~/runs").runs_dir == tmp_path / "runs"
    assert overridden("data.source=~/*.mp4").data.source == f"{tmp_path}/*.mp4"
    assert overridden("data.mix={a: {source: ~/a}}").data.mix["a"].source == f"{tmp_path}/a"
    assert overridden("data.source=s3://bucket//~").data.source == "s3://bucket//~"
    with pytest.raises(ConfigError, match=r"runs_dir: ~nobody-of-that-name/x begins with ~, and there is no such user"):
        overridden("runs_dir=~nobody-of-that-name/x")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("dit.train.steps=0100", r"--set dit\.train\.steps=0100: line 1: '0100' would be read in base 8: write 100"),
        ("dit.train.steps=1:30", r"'1:30' would be read in base 60"),
        ("dit.train.steps=5 #2", r"'#2' would be left out as a comment"),
        ("dit.train={steps: 5, steps: 6}", r"the key 'steps' is there already"),
        ("dit.train.steps=" + "9" * 5000, r"is no int"),
        ("dit.train.steps=0x" + "f" * 5000, r"is no number of 64 bits"),
        ("seed=9223372036854775808", r"--set seed=9223372036854775808: line 1: .* is no number of 64 bits"),
        ("dit.train.steps='" + "9" * 4000 + "'", r"dit\.train\.steps: it is no number of 64 bits"),
        ("dit.train.betas=[false, 0.9]", r"dit\.train\.betas: true and false are no numbers"),
        ("data.source=x ", r"--set data\.source=x : the value begins or ends with white space; leave it out, or put"),
        ("sample.negative_prompt=\tx", r"the value begins or ends with white space"),
        ("data.buckets=" + "[" * 3000, r"more than 50 levels"),
        ("data.buckets." + "1" * 5000 + ".height=64", r"must be a number below 1"),
        ("x" * 10_000 + "=1", r"there is no such field"),
        ("data.mix={" + ", ".join(f"A{number}: {{source: x}}" for number in range(1000)) + "}", r"and 980 more"),
        ("dit.train.betas=" + str(list(range(5000))), r"dit\.train\.betas"),
    ],
    ids=lambda value: value[:30],
)
def test_refusals_are_short(override, told):
    with pytest.raises(ConfigError, match=told) as caught:
        overridden(override)
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("field", ["seed", "dit.train.steps", "dit.train.learning_rate", "sample.guidance_scale"])
def test_a_truth_value_is_no_number(field):
    with pytest.raises(ConfigError, match=rf"{field}: true and false are no numbers \(it is True\)"):
        overridden(f"{field}=true")


def test_the_problems_of_an_alias_bomb_are_shown_in_brief():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 4)
    )
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate({"name": "x", "data": {"captions": read_plain_yaml(bomb)["a3"]}})
    assert len(explain(caught.value, "config", RunConfig)) < 400


# Characters that neither YAML nor file names can hold are left out.
PATHS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), min_size=1)


@settings(deadline=None)
@given(PATHS)
def test_any_text_is_used_as_given_and_read_back(text):
    if text.startswith("~") or text != text.strip() or (text[0] == text[-1] and text[0] in "'\""):
        return  # the home folder, spaces that no one sees, and text in quotes
    for override in (f"data.source={text}", Given("data.source", text)):
        tree: dict = {}
        apply_override(tree, override, RunConfig)
        data = DataConfig.model_validate(tree["data"])
        assert data.source == text
        assert DataConfig.model_validate(read_plain_yaml(yaml.safe_dump(data.model_dump(mode="json")))) == data
