"""YAML as plain JSON data, from files that nobody vouches for: every value has its place, every size its limit.

PyYAML's parser gives the events, and one loop makes values of them. It never recurses, and it weighs what aliases
repeat before it repeats it. What JSON does not know (dates, sets, bytes, keys that are no text) is refused where it
stands, as is what PyYAML's own constructors would let through and a Kubernetes client would not.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, NoReturn

import yaml

from videotrain_api.schema import DEEPEST, field_path

MOST_VALUES: Final = 100_000
"""Values of a file with its aliases written out; the largest example has 300."""
MOST_CHARACTERS: Final = 3 * 1024 * 1024
"""Characters of all texts with aliases written out: what an API server takes in one request."""
LONGEST_NUMBER: Final = 100
"""Characters of a number; a thousand digits take long to compute with and cannot be shown."""

_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = object()
_NO_KEY: Final = object()
_ALIAS_OF_ITSELF: Final = object()
_FAST: Final = yaml.__with_libyaml__
_Parser: Final[Any] = yaml.CSafeLoader if _FAST else yaml.SafeLoader


class YamlRefused(ValueError):
    """Text that is not used; `line` and `column` count from 1."""

    def __init__(self, problem: str, line: int, column: int) -> None:
        super().__init__(problem)
        self.problem, self.line, self.column = problem, line, column


def parse_documents(text: str) -> list[Any]:
    """The documents of a text: dicts with text keys, lists, texts, numbers, booleans and None, in trees.

    Raises:
        YamlRefused: it is not YAML, holds something that JSON does not know, gives a key twice, or is too large, too
            deep or too often repeated.
    """
    builder = _Builder()
    try:
        for event in yaml.parse(text, Loader=_Parser):
            builder.take(event)
    except yaml.reader.ReaderError as error:
        before = text.encode()[: error.position].decode(errors="ignore") if _FAST else text[: error.position]
        lines = (before + "|").splitlines()
        problem = f"not valid YAML: character #x{error.character:04x} is not allowed"
        raise YamlRefused(problem, len(lines), len(lines[-1])) from None
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        problem = f"{error.context}: {error.problem}" if error.context else str(error.problem)
        raise YamlRefused(f"not valid YAML: {problem}", mark.line + 1, mark.column + 1) from None
    return builder.documents


class _Numbers(yaml.constructor.SafeConstructor, yaml.resolver.Resolver):
    """Which plain texts are numbers, booleans or null, and their values."""

    def __init__(self) -> None:
        yaml.constructor.SafeConstructor.__init__(self)
        yaml.resolver.Resolver.__init__(self)


_Numbers.add_implicit_resolver(  # kubectl reads 5e-5 as a number; YAML 1.1, and so PyYAML, wants 5.0e-5
    _TAG + "float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
_NUMBERS: Final[Any] = _Numbers()
_MAKERS: Final = {
    _TAG + "null": _NUMBERS.construct_yaml_null,
    _TAG + "bool": _NUMBERS.construct_yaml_bool,
    _TAG + "int": _NUMBERS.construct_yaml_int,
    _TAG + "float": _NUMBERS.construct_yaml_float,
}
_HINTS: Final = {
    "timestamp": "a date or time, which JSON does not know; write it in quotes",
    "binary": "binary data, which JSON does not know; write its base64 as a text, without the tag",
    "set": "a set, which JSON does not know; write a list",
    "omap": "an ordered mapping, which JSON does not know; write a mapping",
    "pairs": "a list of pairs, which JSON does not know; write a mapping",
    "value": "the key '=', which nothing here has; write it in quotes if it is a text",
    "merge": "a merge key where no key belongs; write it in quotes if it is a text",
}


class _Anchored(NamedTuple):
    """A value with a name, and what an alias of it adds."""

    value: Any
    values: int
    characters: int
    height: int


@dataclass
class _Level:
    """A mapping or list that is being read."""

    container: dict[str, Any] | list[Any]
    anchor: str | None
    values: int
    characters: int
    """What was read before it."""
    height: int = 1
    """Levels from here down."""
    key: Any = _NO_KEY
    """Key whose value comes next."""
    lines: dict[str, int] = field(default_factory=dict)
    merged: dict[str, Any] = field(default_factory=dict)
    """What `<<` brings."""


class _Builder:
    """Makes documents of events."""

    def __init__(self) -> None:
        self.documents: list[Any] = []
        self._levels: list[_Level] = []
        self._anchors: dict[str, Any] = {}
        self._values = 0
        self._characters = 0

    def take(self, event: Any) -> None:
        """Use the next event."""
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close(event)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self._anchors.clear()

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        self._weigh(event, 1, len(event.value))
        tag = event.tag
        if tag is None or tag == "!":
            tag = _NUMBERS.resolve(yaml.ScalarNode, event.value, event.implicit)
        if tag == _TAG + "merge" and self._awaits_key():
            self._levels[-1].key = _MERGE
            return
        value = self._value(event, tag)
        if event.anchor:
            self._anchors[event.anchor] = _Anchored(value, 1, len(event.value), 0)
        self._put(value, event)

    def _value(self, event: yaml.ScalarEvent, tag: str) -> Any:
        text = event.value
        if tag == _TAG + "str":
            if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
                self._refuse(event, f"{text[:40]!r} holds half a surrogate pair, which is no character")
            return text
        if tag not in _MAKERS:
            self._refuse(event, f"{text[:40]!r} is {_what(tag)}")
        kind = tag.removeprefix(_TAG)
        if len(text) > LONGEST_NUMBER:
            self._refuse(event, f"{text[:40]!r}... is a number of {len(text)} characters; at most {LONGEST_NUMBER} fit")
        try:
            return _MAKERS[tag](yaml.ScalarNode(tag, text))
        except (ValueError, LookupError, OverflowError):
            self._refuse(event, f"{text[:40]!r} is no {kind}; write it in quotes if it is a text")

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        mapping = isinstance(event, yaml.MappingStartEvent)
        kind = "map" if mapping else "seq"
        if self._awaits_key():
            self._refuse(event, f"a {'mapping' if mapping else 'list'} cannot be a key; a key is a text")
        if event.tag not in (None, "!", _TAG + kind):
            self._refuse(event, f"this is {_what(event.tag)}")
        self._check_depth(event, 1)
        if event.anchor:
            self._anchors[event.anchor] = _ALIAS_OF_ITSELF
        level = _Level({} if mapping else [], event.anchor, self._values, self._characters)
        self._weigh(event, 1, 0)
        self._levels.append(level)

    def _close(self, event: yaml.CollectionEndEvent) -> None:
        level = self._levels.pop()
        value = level.container
        if level.merged and isinstance(value, dict):
            value = level.merged | value
        if level.anchor:
            values, characters = self._values - level.values, self._characters - level.characters
            self._anchors[level.anchor] = _Anchored(value, values, characters, level.height)
        self._put(value, event, level.height)

    def _alias(self, event: yaml.AliasEvent) -> None:
        found: Any = self._anchors.get(event.anchor or "")
        if found is None:
            self._refuse(event, f"alias '*{event.anchor}' has no anchor '&{event.anchor}' before it")
        if found is _ALIAS_OF_ITSELF:
            self._refuse(event, f"'&{event.anchor}' contains itself")
        self._weigh(event, found.values, found.characters)
        self._check_depth(event, found.height)
        if self._awaits_key() and found.height:
            self._refuse(event, f"alias '*{event.anchor}' cannot be a key; a key is a text")
        self._put(copy.deepcopy(found.value), event, found.height)

    def _put(self, value: Any, event: Any, height: int = 0) -> None:
        if not self._levels:
            self.documents.append(value)
            return
        level = self._levels[-1]
        level.height = max(level.height, height + 1)
        if isinstance(level.container, list):
            level.container.append(value)
        elif level.key is _NO_KEY:
            level.key = self._key(value, level, event)
        elif level.key is _MERGE:
            self._merge(value, level, event)
            level.key = _NO_KEY
        else:
            level.container[level.key] = value
            level.key = _NO_KEY

    def _key(self, value: Any, level: _Level, event: Any) -> str:
        line = event.start_mark.line + 1
        if not isinstance(value, str):
            kind = {bool: "a boolean", type(None): "null"}.get(type(value), "a number")
            self._refuse(event, f"key {json.dumps(value)} is {kind}; a key is a text: write it in quotes")
        if value in level.lines:
            self._refuse(event, f"key {value[:80]!r} is given twice, first in line {level.lines[value]}; keep one")
        level.lines[value] = line
        return value

    def _merge(self, value: Any, level: _Level, event: Any) -> None:
        """As in YAML 1.1: a key of the mapping's own wins, then the first of a list."""
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            self._refuse(event, "'<<' needs a mapping or a list of mappings")
        for part in reversed(parts):
            level.merged.update(part)

    def _awaits_key(self) -> bool:
        return bool(self._levels) and isinstance(self._levels[-1].container, dict) and self._levels[-1].key is _NO_KEY

    def _check_depth(self, event: Any, height: int) -> None:
        if len(self._levels) + height - 1 > DEEPEST:
            self._refuse(event, f"is nested deeper than {DEEPEST} levels, which no pod needs", shown=3)

    def _weigh(self, event: Any, values: int, characters: int) -> None:
        self._values += values
        self._characters += characters
        if self._values > MOST_VALUES:
            self._refuse(
                event, f"the file has more than {MOST_VALUES} values here, aliases written out; split it", shown=3
            )
        if self._characters > MOST_CHARACTERS:
            limit = f"{MOST_CHARACTERS} characters of text"
            self._refuse(event, f"the file has more than {limit} here, aliases written out; split it", shown=3)

    def _refuse(self, event: Any, problem: str, shown: int | None = None) -> NoReturn:
        place: list[int | str] = []
        for level in self._levels[:shown]:
            if isinstance(level.container, list):
                place.append(len(level.container))
            elif isinstance(level.key, str):
                place.append(level.key)
        path = field_path(tuple(place))
        mark = event.start_mark
        raise YamlRefused(f"{path}: {problem}" if path else problem, mark.line + 1, mark.column + 1)


def _what(tag: str) -> str:
    kind = tag.removeprefix(_TAG)
    return _HINTS.get(kind, f"of the tag '{tag}', which is not valid YAML here; leave it out")
