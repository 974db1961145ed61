"""Reading YAML and JSON strictly: what two programs would read differently, or a reader would misread, is refused."""

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mgi.errors import ConfigError
from mgi.names import quote

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_VALUES = 100_000

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_INT_TAG = "tag:yaml.org,2002:int"
_FLOAT_TAG = "tag:yaml.org,2002:float"
_MERGE_TAG = "tag:yaml.org,2002:merge"


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Refused are duplicate keys, keys that are no text, numbers that YAML 1.1 does not read as they are written (`010` is
    8, `1:30` is 90), infinities and NaN, files that are not UTF-8, and what nests or repeats itself without bounds.

    Raises
    ------
    ConfigError
        Naming the file, the place and what to write instead.
    """
    text = _read_text(path)
    try:
        value = yaml.load(text, _StrictLoader)
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{path} is not valid YAML: {_place(text[: error.position])}: {error.reason}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        context = f"{error.context}, " if error.context else ""
        raise ConfigError(f"{path}{place}: {context}{error.problem}") from error
    except (ValueError, TypeError, RecursionError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no mapping; start from config/config.yaml")
    return value


def read_mapping(source: str | Path, what: str) -> dict[str, Any]:
    """Read a mapping given as JSON text, recognised by its first character `{`, or as the name of a YAML file.

    Raises
    ------
    ConfigError
        As `read_yaml`, or if it is no valid JSON; `what` says what was read.
    """
    if not str(source).lstrip().startswith("{"):
        return read_yaml(source)
    try:
        value = json.loads(str(source), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the {what} is not valid JSON: {error}") from error
    return value


def _read_text(path: Path | str) -> str:
    """Read a file as UTF-8, naming the place of a byte that is not."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {quote(str(path), 200)}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:
        raise ConfigError(f"cannot read {quote(str(path), 200)}: {error}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES} bytes, which no configuration needs")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", errors="replace")
        raise ConfigError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} at {_place(before)}; save the file as UTF-8"
        ) from error


def _place(before: str) -> str:
    """Return the line and column that follow a text."""
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, less what it reads otherwise than it is meant."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {MAX_DEPTH} deep", problem_mark=self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> Node | None:
        node = super().get_single_node()
        if node is not None:
            _check_size(node)
            _check_nodes(node)
        return node


def _check_size(root: Node) -> None:
    """Refuse a document whose aliases, written out, make it enormous, deep or endless."""
    measured: dict[int, tuple[int, int]] = {}
    unfinished: set[int] = set()

    def measure(node: Node) -> tuple[int, int]:
        """Return how many values a node holds, aliases written out, and how deep they nest."""
        if id(node) in unfinished:
            raise _error(node, "an alias refers to what it is part of")
        if id(node) not in measured:
            unfinished.add(id(node))
            parts = [measure(part) for part in _children(node)]
            unfinished.remove(id(node))
            size, depth = 1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
            if size > MAX_VALUES or depth > MAX_DEPTH:
                raise _error(node, f"more than {MAX_VALUES} values or {MAX_DEPTH} levels, aliases written out")
            measured[id(node)] = size, depth
        return measured[id(node)]

    measure(root)


def _check_nodes(root: Node) -> None:
    """Refuse duplicate and odd keys, and numbers that are not read as they are written."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        waiting += _children(node)
        if isinstance(node, ScalarNode):
            _check_number(node)
        elif isinstance(node, MappingNode):
            _check_keys(node)


def _children(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, SequenceNode) else []


def _check_keys(node: MappingNode) -> None:
    keys: dict[str, Node] = {}
    for key, _ in node.value:
        if key.tag == _MERGE_TAG:
            continue
        if not isinstance(key, ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            shown = f"write {quote(key.value)} in quotes" if isinstance(key, ScalarNode) else "not a list or a mapping"
            raise _error(key, f"a key is text: {shown}")
        if key.value in keys:
            first = keys[key.value].start_mark.line + 1
            raise _error(key, f"duplicate key {quote(key.value)}, first in line {first}: keep one of them")
        keys[key.value] = key


def _check_number(node: ScalarNode) -> None:
    text = str(node.value)
    if node.tag == _INT_TAG and not _INTEGER.fullmatch(text):
        raise _error(
            node, f"{quote(text)} is not read as it is written: use decimal digits without leading zeros, or quotes"
        )
    if node.tag == _FLOAT_TAG:
        try:
            finite = math.isfinite(float(text.replace("_", "")))
        except ValueError:
            finite = False
        if not finite:
            raise _error(node, f"{quote(text)} is no finite decimal number: write it in full, or in quotes")


def _error(node: Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {quote(next(name for name in names if names.count(name) > 1))}")
    return value


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no finite number")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [part for parts in inner for part in parts]
