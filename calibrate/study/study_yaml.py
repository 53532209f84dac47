"""YAML as one who writes a study means it: every key once, plain values, and nothing that outgrows its file.

Messages name the field and the line, and never repeat the file's text: it may hold a password.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from calibrate.errors import CalibrateError
from scope_runtime.errors import named

# No study comes near these.
_DEEPEST = 40
_MOST_VALUES = 100_000
_MOST_DIGITS = 40

_PREFIX = "tag:yaml.org,2002:"
_KINDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "null": "null"}
# A key may also be `<<`, which merges a mapping into this one, or `=`.
_KEYS = {f"{_PREFIX}{kind}" for kind in ("str", "merge", "value")}


def read_yaml(text: str) -> Any:
    """The content of a YAML file: mappings with text as keys, lists, text, numbers, booleans and null.

    Raises:
        CalibrateError: Naming line and, if there is one, field, if it is not valid YAML, a key is given twice or is not
            text, a value is of another kind, or the whole is nested too deeply or made too large by aliases.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise CalibrateError(
            f"this is not valid YAML (line {line}): it holds the character U+{error.character:04X}; remove it."
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
        problem = re.sub(r"'[^']*'|\"[^\"]*\"", _quoted, problem)
        raise CalibrateError(f"this is not valid YAML{place}: {problem}.") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; each node is looked at as soon as it has been composed, before it becomes a value."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._field: list[str] = []
        # Per node that is complete, how many values it stands for; those of an alias count each time.
        self._values: dict[Node, int] = {}
        self._lines: dict[Node, dict[str, int]] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Composes the next node, the value at `index` of `parent`; in a mapping, that is the key's node or None."""
        if isinstance(parent, MappingNode) and index is None:
            return self._compose_key(parent, index)
        if parent is not None:
            self._field.append(named(index.value if isinstance(index, ScalarNode) else str(index)))
        line = self._line()
        if len(self._field) > _DEEPEST:
            self._refuse(f"is nested more than {_DEEPEST} levels deep; write it flatter", line)
        anchor = self.peek_event().anchor if self.check_event(yaml.AliasEvent) else None
        if anchor in self.anchors and self.anchors[anchor] not in self._values:
            self._refuse("refers to itself; write out what is meant", line)
        node = super().compose_node(parent, index)
        assert node is not None
        if node not in self._values:
            self._check(node, line)
            self._values[node] = 1 + sum(self._values[child] for child in _children(node))
        if self._values[node] > _MOST_VALUES:
            self._refuse(f"holds more than {_MOST_VALUES} values, counting what aliases repeat; write fewer", line)
        if parent is not None:
            self._field.pop()
        return node

    def _compose_key(self, parent: MappingNode, index: Any) -> Node:
        line = self._line()
        if not self.check_event(yaml.ScalarEvent):
            self._refuse("has a key that is no text; use a plain word", line)
        node = super().compose_node(parent, index)
        assert isinstance(node, ScalarNode)
        self._field.append(named(node.value))
        if node.tag not in _KEYS:
            self._refuse("this key is read as something else than text; put it in quotes", line)
        lines = self._lines.setdefault(parent, {})
        if node.value in lines:
            self._refuse(f"is given twice, in lines {lines[node.value]} and {line}; remove one of them")
        lines[node.value] = line
        self._field.pop()
        self._values[node] = 1
        return node

    def _check(self, node: Node, line: int) -> None:
        """Refuses what would not become a plain value."""
        tag = node.tag.removeprefix(_PREFIX)
        if not isinstance(node, ScalarNode):
            if tag != ("map" if isinstance(node, MappingNode) else "seq"):
                self._refuse("has a tag (!...) that means nothing here; remove the tag", line)
            return
        if tag not in _KINDS:
            self._refuse("is no plain value (a date, or something with a tag !...); put it in quotes", line)
        if tag == "int" and len(node.value) > _MOST_DIGITS:
            self._refuse(f"is a number of more than {_MOST_DIGITS} digits; write a smaller one", line)
        try:
            self.construct_object(node)
        except (ValueError, LookupError, ArithmeticError, AttributeError):
            self._refuse(f"cannot be read as {_KINDS[tag]}; mend the value or its tag", line)

    def _line(self) -> int:
        return int(self.peek_event().start_mark.line) + 1

    def _refuse(self, problem: str, line: int | None = None) -> NoReturn:
        field = ".".join(self._field)
        subject = f"{field}:" if field else "the file"
        raise CalibrateError(f"{subject} {problem}{f' (line {line})' if line else ''}.")


def _quoted(quotation: re.Match[str]) -> str:
    """What PyYAML puts in quotes, unless it may be a word of the file: single signs and its own <terms> stay."""
    text = quotation[0][1:-1]
    return quotation[0] if text.startswith("<") or (len(text) <= 2 and not text.isalnum()) else "'...'"


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, SequenceNode) else []
