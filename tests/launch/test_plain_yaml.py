"""Plain YAML: values are read as they look, or refused with their line; what is written is read back."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import shorten
from launch.plain_yaml import MAX_DEPTH, YamlError, read_plain_yaml

BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
)

MERGED_TWICE = "z: &z {x: 1}\na:\n  inner: &b\n    <<: *z\n    x: 2\nc:\n  <<: *b\n"
DEEP = "\n".join([f"a{i}: &a{i} {'[' * 45}{f'*a{i - 1}' if i else ''}{']' * 45}" for i in range(60)])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: off\nb: [yes, no, true, null, ~]", {"a": "off", "b": ["yes", "no", True, None, None]}),
        (
            "{0: 1_000, true: 0x1F, a: 010.5, b: 08, c: 1e-3}",
            {"0": 1000, "true": 31, "a": 10.5, "b": "08", "c": "1e-3"},
        ),
        ("a: '0100' # a comment\nb: \"1:30\"\nc: '2024-01-01'", {"a": "0100", "b": "1:30", "c": "2024-01-01"}),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        (MERGED_TWICE, {"z": {"x": 1}, "a": {"inner": {"x": 2}}, "c": {"x": 2}}),
        ("{&k 1: a, b: *k, 2024-01-01: c}", {"1": "a", "b": 1, "2024-01-01": "c"}),
        ("[!!float 1, !!int '5', !!str 5, !!bool true, !!null ~]", [1.0, 5, "5", True, None]),
        ("[0x7fffffffffffffff, -9223372036854775808]", [2**63 - 1, -(2**63)]),
    ],
)
def test_values_are_read_as_they_look(text, value):
    assert read_plain_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\n'a': 3", r"line 3: the key 'a' is there already, in line 1.*: give it once"),
        ("a:\n  b: {c: 1, c: 2}", r"line 2: the key 'c' is there already"),
        ("\na: 0100", r"line 2: '0100' would be read in base 8: write 100, or"),
        ("a: -0_17", r"line 1: '-0_17' would be read in base 8: write -17"),
        ("a: 1:30", r"line 1: '1:30' would be read in base 60"),
        ("a: 1:30.5", r"base 60"),
        ("a: 2024-13-45", r"line 1: '2024-13-45' reads as a date or time; put text in quotes"),
        ("a: !!python/object:os.system 1", r"line 1: '1' has the type 'tag:yaml.org,2002:python/object:os.system'"),
        ("a: !!int foo", r"line 1: 'foo' is no int"),
        ("a: " + "9" * 5000, r"\(5000 characters\)' is no int"),
        ("? [1]\n: 2", r"line 1: a key is a word"),
        ("a: &x [*x]", r"line 1: it refers to itself"),
        ("[a", r"line 1: it is not YAML: expected ',' or ']'"),
        ("a: 1\nb: \x00", r"line 2: YAML does not allow the character U\+0000"),
        ("a\n---\nb", r"line 2: it is not YAML: but found another document"),
        ("{" * 3000, rf"line 1: more than {MAX_DEPTH} levels"),
        ("\n".join("  " * depth + "a:" for depth in range(60)), rf"line \d+: more than {MAX_DEPTH} levels"),
        (BOMB, r"line 6: more than 100000 values"),
        (DEEP, rf"line 2: more than {MAX_DEPTH} levels"),
        ("a: !!bool maybe", r"line 1: 'maybe' is no bool"),
        ("a: 1\nb: !!int ''", r"line 2: '' is no int"),
        ("a: !!float ''", r"line 1: '' is no float"),
        ("a: !!null x", r"line 1: 'x' is no null"),
        ("a: !!int {}", r"line 1: this is no int"),
        ("a: !!map [1]", r"line 1: this is no map"),
        ("!!binary aGk=: 1", r"line 1: 'aGk=' has the type 'tag:yaml.org,2002:binary'"),
        ("{&k 2024-01-01: c, a: *k}", r"line 1: '2024-01-01' reads as a date"),
        ('a: 1\nb: "\\U00110000"', r"line 2: it is not YAML: chr"),
        ('a: "\\UFFFFFFFF"', r"line 1: it is not YAML: .*too large"),
        ("%YAML 1." + "9" * 5000 + "\n--- a", r"line 1: it is not YAML: Exceeds the limit"),
        ("a: 0x" + "f" * 5000, r"line 1: '0xfff.*\(5002 characters\)' is no number of 64 bits"),
        ("a: 9223372036854775808", r"line 1: '9223372036854775808' is no number of 64 bits"),
        ("a: 010\nb: 0" + "7" * 5000, r"line 1: '010' would be read in base 8"),
        ("a: 0" + "7" * 5000, r"would be read in base 8"),
        ("a: " + "x" * 2**20, r"it has 1048579 characters, more than 1048576"),
    ],
    ids=lambda value: shorten(value, 20),
)
def test_what_is_not_plain_is_refused_with_its_line_in_a_short_message(text, told):
    with pytest.raises(YamlError, match=told) as caught:
        read_plain_yaml(text)
    assert len(str(caught.value)) < 300


def test_a_comment_is_refused_where_none_can_be_meant():
    assert read_plain_yaml("5 #2") == 5
    with pytest.raises(YamlError, match=r"'#2' would be left out as a comment; put text with '#' in quotes"):
        read_plain_yaml("5 #2", whole=True)


def test_an_alias_is_a_copy():
    tree = read_plain_yaml("a: &x {b: 1}\nc: *x")
    tree["a"]["b"] = 2
    assert tree["c"] == {"b": 1}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(VALUES)
def test_what_is_written_is_read_back(value):
    assert read_plain_yaml(yaml.safe_dump(value)) == value


@settings(deadline=None)
@given(st.text() | st.text(alphabet="{}[]:,-&*!|>'\"#?%@~<= \n\t0123456789.eExoabnty_"))
def test_any_text_is_read_as_yaml_reads_it_or_refused(text):
    try:
        value = read_plain_yaml(text)
    except YamlError:
        return
    expected = yaml.load(text, yaml.BaseLoader)  # everything as text
    assert as_text(value, expected) == expected


def as_text(value, expected):
    """A value with the text of its numbers, truth values and nulls, where they mean the same."""
    if isinstance(expected, list):
        return [as_text(inner, text) for inner, text in zip(value, expected, strict=True)]
    if isinstance(expected, dict):
        return {key: as_text(value[key], text) for key, text in expected.items() if key in value or key != "<<"}
    if isinstance(value, bool):
        return expected if (expected.lower() == "true") is value and expected.lower() in ("true", "false") else value
    if value is None:
        return expected if expected is None or expected.lower() in ("", "~", "null") else value
    if isinstance(value, int):
        return (
            expected
            if int(expected.replace("_", ""), 0 if "x" in expected or "b" in expected else 10) == value
            else value
        )
    if isinstance(value, float):
        return expected  # 1.5, 1e+3, .inf
    return value
