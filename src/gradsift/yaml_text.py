"""YAML text as plain values: no dates, each key once, nothing that grows or goes in a circle."""

from __future__ import annotations

import re
from typing import Any

import yaml

from gradsift.errors import ConfigError

MAX_CHARACTERS = 1 << 17
MAX_NODES = 10_000
"""Values that a config may have, once its aliases are written out."""
TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
MAX_DIGITS = 400
TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """Safe, and without dates: 2024-01-01 stays the text that it is."""

    yaml_implicit_resolvers = {  # noqa: RUF012, as in the class above
        first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parsed_yaml(text: str) -> Any:
    """The value; aliases are copies. Raises ConfigError, without a place, in one line."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"has {len(text):,} characters; a config has {MAX_CHARACTERS:,} at most")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _require_plain(node, {}, ())
        return _with_floats(loader.construct_document(node))
    except RecursionError as error:
        raise ConfigError("is not read: it is nested too deeply") from error
    # What a value raises that isn't what its tag says depends on the tag.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ConfigError(f"is not valid YAML: {' '.join(str(error).split())}") from error


def _require_plain(node: yaml.Node, sizes: dict[int, int], above: tuple[int, ...]) -> int:
    """Number of values in a node, aliases counted each time. Raises ConfigError for what no config needs."""
    if id(node) in above:
        raise _at(node, "an alias stands inside what it stands for")
    if id(node) in sizes:
        return sizes[id(node)]
    if node.tag not in TAGS:
        raise _at(node, f"the tag {node.tag!r} is not read")
    if node.tag in NUMBERS and len(node.value) > MAX_DIGITS:
        raise _at(node, f"a number of {len(node.value):,} characters is none that a config needs")
    inside = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        _require_keys_once(node)
        size = 1 + sum(_require_plain(item, sizes, inside) for pair in node.value for item in pair)
    elif isinstance(node, yaml.SequenceNode):
        size = 1 + sum(_require_plain(item, sizes, inside) for item in node.value)
    else:
        size = 1
    if size > MAX_NODES:
        raise _at(node, f"more than {MAX_NODES:,} values begin here, aliases written out")
    sizes[id(node)] = size
    return size


def _require_keys_once(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _at(key, "a key is no text")
        if key.value in seen:
            raise _at(key, f"the key {key.value!r} stands twice")
        seen.add(key.value)


def _at(node: yaml.Node, problem: str) -> ConfigError:
    return ConfigError(f"line {node.start_mark.line + 1}: {problem}")


def _with_floats(value: Any) -> Any:
    """YAML 1.1 reads 2e-5 as text; what looks like such a number is one."""
    if isinstance(value, dict):
        return {key: _with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value
