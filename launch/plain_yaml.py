"""YAML for configurations: what two readers could read as different values is refused, with its line.

Compared with YAML 1.1: only `true` and `false` are truth values (`off`, `no` and `on` are text, which fields of type
bool accept too); a key given twice, numbers in base 8 or 60, dates and tags are refused. A file that would take much
memory or a deep stack is refused before its values are made.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from data.errors import ReelflowError, shorten

MAX_CHARACTERS = 2**20
MAX_DEPTH = 50
MAX_VALUES = 100_000
_TAG = "tag:yaml.org,2002:"
_BASE_8 = re.compile(r"[-+]?0[0-7_]*[0-7][0-7_]*$")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?$")
_MADE = {"map", "seq", "str", "int", "float", "bool", "null", "merge"}


class YamlError(ReelflowError, ValueError):
    """A text that is not YAML, or not plain; the message names the line and the way out."""


def read_plain_yaml(text: str, *, whole: bool = False) -> Any:  # noqa: ANN401 - whatever the text holds
    """The value of a YAML text; None for an empty one.

    Args:
        whole: refuse comments after the value, because `#` in the value of an option is meant as part of it.

    Raises:
        YamlError: it is not YAML, not plain, or has more than `MAX_CHARACTERS` characters, `MAX_DEPTH` levels or
            `MAX_VALUES` values (an alias counts as what it stands for).
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"it has {len(text)} characters, more than {MAX_CHARACTERS}; a configuration is shorter")
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        rest = text[node.end_mark.index :].strip()
        if whole and rest:
            raise YamlError(f"{shorten(rest)!r} would be left out as a comment; put text with '#' in quotes")
        _count_values(node, {}, set())
        return _unshared(loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        raise YamlError(f"{_line(error.problem_mark)}it is not YAML: {shorten(str(error.problem))}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"line {line}: YAML does not allow the character U+{ord(text[error.position]):04X}") from error


class _PlainLoader(yaml.SafeLoader):
    """Makes plain values only, and names the line of any other."""

    _depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:  # noqa: ANN401 - as the base class
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise YamlError(f"{_line(self.peek_event().start_mark)}more than {MAX_DEPTH} levels; a configuration has 6")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: Node, deep: bool = False) -> Any:  # noqa: ANN401 - any plain value
        kind = node.tag.removeprefix(_TAG)
        if kind not in _MADE:
            what = "reads as a date or time" if kind == "timestamp" else f"has the type {shorten(node.tag)!r}"
            raise YamlError(f"{_shown(node)} {what}; put text in quotes")
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:  # a number of 5000 digits
            if isinstance(error, YamlError):
                raise
            raise YamlError(f"{_shown(node)} is no {kind}") from error

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise YamlError(f"{_line(key.start_mark)}a key is a word, not a list or section")
            here = key.start_mark.line + 1
            if key.value in lines:
                raise YamlError(
                    f"line {here}: the key {shorten(key.value)!r} is there already, in line {lines[key.value]}, and "
                    "only one of the two would count: give it once"
                )
            lines[key.value] = here
            if key.tag != f"{_TAG}merge":
                key.tag = f"{_TAG}str"  # a dataset may be called 1 or null
        return super().construct_mapping(node, deep)

    def construct_yaml_map(self, node: MappingNode) -> Any:  # noqa: ANN401 - a generator, as in the base class
        value: dict[Hashable, Any] = {}
        yield value
        value.update(self.construct_mapping(node))

    def construct_number(self, node: ScalarNode) -> int | float:
        if _BASE_8.match(node.value):
            decimal = int(node.value.replace("_", ""), 10)
            raise YamlError(f"{_shown(node)} would be read in base 8: write {decimal}, or put text in quotes")
        if _BASE_60.match(node.value):
            raise YamlError(f"{_shown(node)} would be read in base 60: write a number, or put text in quotes")
        return self.construct_yaml_int(node) if node.tag == f"{_TAG}int" else self.construct_yaml_float(node)


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_PlainLoader.add_constructor(f"{_TAG}map", _PlainLoader.construct_yaml_map)
_PlainLoader.add_constructor(f"{_TAG}int", _PlainLoader.construct_number)
_PlainLoader.add_constructor(f"{_TAG}float", _PlainLoader.construct_number)


def _count_values(node: Node, known: dict[int, int], above: set[int]) -> int:
    """The number of values that a node makes, with each alias as what it stands for.

    Args:
        known: counts of nodes that were met before, by the id of the node.
        above: ids of the nodes that this one is in.
    """
    place = id(node)
    if place in above:
        raise YamlError(f"{_line(node.start_mark)}it refers to itself; write the values out")
    if place not in known:
        children = node.value if isinstance(node, SequenceNode) else []
        if isinstance(node, MappingNode):
            children = [child for pair in node.value for child in pair]
        known[place] = 1 + sum(_count_values(child, known, above | {place}) for child in children)
    if known[place] > MAX_VALUES:
        raise YamlError(f"{_line(node.start_mark)}more than {MAX_VALUES} values, with aliases written out")
    return known[place]


def _unshared(value: Any) -> Any:  # noqa: ANN401 - any plain value
    """The same value with a copy for each alias, so that a later change of one place is no change of another."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _line(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f"line {mark.line + 1}: "


def _shown(node: Node) -> str:
    return _line(node.start_mark) + (repr(shorten(node.value)) if isinstance(node, ScalarNode) else "this")
