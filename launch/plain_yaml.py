"""YAML for configurations: what two readers could read as different values is refused, with its line.

Compared with YAML 1.1: only `true` and `false` are truth values (`off`, `no` and `on` are text, which fields of type
bool accept too); a key given twice, numbers in base 8 or 60 or beyond 64 bits, dates, and tags that the value does not
look like are refused. A file that would take much memory or a deep stack is refused before its values are made.
"""

import re
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from data.errors import ReelflowError, shorten
from data.records import is_64_bit

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
    loader = None
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        rest = text[node.end_mark.index :].strip()
        if whole and rest:
            raise YamlError(f"{shorten(rest)!r} would be left out as a comment; put text with '#' in quotes")
        return _unshared(loader.construct_document(node))
    except YamlError:
        raise
    except yaml.MarkedYAMLError as error:
        raise YamlError(f"{_line(error.problem_mark)}it is not YAML: {shorten(str(error.problem))}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"line {line}: YAML does not allow the character U+{ord(text[error.position]):04X}") from error
    except (ValueError, OverflowError, LookupError, RecursionError) as error:  # of PyYAML, such as for "\UFFFFFFFF"
        place = "" if loader is None else f"line {loader.line + 1}: "
        raise YamlError(f"{place}it is not YAML: {shorten(str(error))}") from error


class _PlainLoader(yaml.SafeLoader):
    """Makes plain values only, and names the line of any other."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[Node, _Size] = {}  # of the nodes that are whole

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:  # noqa: ANN401 - as the base class
        event = self.peek_event()
        self._depth += 1
        self._check_depth(event.start_mark, 0)
        node = super().compose_node(parent, index)
        is_key = isinstance(parent, MappingNode) and index is None
        if isinstance(node, ScalarNode) and not (is_key and getattr(event, "tag", None) is None):
            _check_type(node)  # a key without a tag is text, whatever it looks like
        if isinstance(event, AliasEvent):
            self._check_alias(event, node)
        elif node is not None:
            self._finish(node)
        self._depth -= 1
        return node

    def _check_depth(self, mark: yaml.Mark, height: int) -> None:
        if self._depth + height > MAX_DEPTH:
            raise YamlError(f"{_line(mark)}more than {MAX_DEPTH} levels; a configuration has 6")

    def _check_alias(self, alias: AliasEvent, node: Node | None) -> None:
        size = None if node is None else self._sizes.get(node)
        if size is None:
            raise YamlError(f"{_line(alias.start_mark)}it refers to itself; write the values out")
        self._check_depth(alias.start_mark, size.height)

    def _finish(self, node: Node) -> None:
        """Check a node whose children are whole, and keep its size, with each alias as what it stands for."""
        children = node.value if isinstance(node, SequenceNode) else []
        if isinstance(node, MappingNode):
            _check_keys(node)
            children = [child for pair in node.value for child in pair]
            node.value = [(_as_text(key), value) for key, value in node.value]
        if not isinstance(node, ScalarNode):
            _check_type(node)
        sizes = [self._sizes[child] for child in children]
        count, height = 1 + sum(size.count for size in sizes), max((size.height + 1 for size in sizes), default=0)
        if count > MAX_VALUES:
            raise YamlError(f"{_line(node.start_mark)}more than {MAX_VALUES} values, with aliases written out")
        self._sizes[node] = _Size(count, height)

    def construct_number(self, node: ScalarNode) -> int | float:
        if _BASE_8.match(node.value):
            sign = "-" if node.value.startswith("-") else ""
            decimal = shorten(sign + (node.value.replace("_", "").lstrip("+-0") or "0"))
            raise YamlError(f"{_shown(node)} would be read in base 8: write {decimal}, or put text in quotes")
        if _BASE_60.match(node.value):
            raise YamlError(f"{_shown(node)} would be read in base 60: write a number, or put text in quotes")
        kind = node.tag.removeprefix(_TAG)
        try:
            value = self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)
        except (ValueError, OverflowError) as error:  # a number of 5000 digits
            raise YamlError(f"{_shown(node)} is no {kind}") from error
        if isinstance(value, int) and not is_64_bit(value):
            raise YamlError(f"{_shown(node)} is no number of 64 bits")
        return value


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_PLAIN_TYPES = _PlainLoader("")
_PlainLoader.add_constructor(f"{_TAG}int", _PlainLoader.construct_number)
_PlainLoader.add_constructor(f"{_TAG}float", _PlainLoader.construct_number)


@dataclass(frozen=True)
class _Size:
    """The number of values that a node makes, and of levels below it."""

    count: int
    height: int


def _check_type(node: Node) -> None:
    """Refuse a type that is not plain, or that the value does not have."""
    kind = node.tag.removeprefix(_TAG)
    if kind not in _MADE:
        what = "reads as a date or time" if kind == "timestamp" else f"has the type {shorten(node.tag)!r}"
        raise YamlError(f"{_shown(node)} {what}; put text in quotes")
    if kind not in _kinds_of(node):
        raise YamlError(f"{_shown(node)} is no {kind}")


def _check_keys(node: MappingNode) -> None:
    """Refuse keys that are no words, and two of one name."""
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


def _kinds_of(node: Node) -> set[str]:
    """The types that a tag may name for a node."""
    if not isinstance(node, ScalarNode):
        return {"map"} if isinstance(node, MappingNode) else {"seq"}
    read = str(_PLAIN_TYPES.resolve(ScalarNode, node.value, (True, False))).removeprefix(_TAG)
    return {"str", read, *(["float"] if read == "int" else [])}


def _as_text(key: Node) -> Node:
    """The key as text, since a dataset may be called 1 or null; a merge as it is."""
    is_merge = key.tag == f"{_TAG}merge"
    return key if is_merge else ScalarNode(f"{_TAG}str", key.value, key.start_mark, key.end_mark)


def _unshared(value: Any) -> Any:  # noqa: ANN401 - any plain value
    """The same value with a copy for each alias, so that a later change of one place is no change of another."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _line(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f"line {mark.line + 1}: "


def _shown(node: Node) -> str:
    return _line(node.start_mark) + (repr(shorten(node.value)) if isinstance(node, ScalarNode) else "this")
