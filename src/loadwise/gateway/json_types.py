"""Whether a JSON value has the types that its schema names; settings alone would take "1" or false for 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from loadwise.errors import ConfigurationError

Schema = Mapping[str, Any]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "number": _is_number,
    # 3.0 is an integer in JSON Schema.
    "integer": lambda value: _is_number(value) and value == int(value),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema with its `$defs` put where they are used."""
    definitions = schema.get("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            rest = {key: value for key, value in node.items() if key != "$ref"}
            return {**inline(definitions[node["$ref"].rsplit("/", 1)[-1]]), **inline(rest)}
        return {key: inline(value) for key, value in node.items() if key != "$defs"}

    result: dict[str, Any] = inline(schema)
    return result


def check_types(values: Mapping[str, Any], schema: Schema, prefix: str = "") -> None:
    """Passes an object whose fields have the types of the schema's properties; unknown fields pass too.

    Raises `ConfigurationError` that names field, value and type.
    """
    properties: Mapping[str, Schema] = schema.get("properties", {})
    extra = schema.get("additionalProperties")
    for name, value in values.items():
        expected = properties.get(name, extra if isinstance(extra, Mapping) else None)
        if expected is not None:
            _check(value, expected, prefix + name)


def _check(value: Any, schema: Schema, where: str) -> None:
    options = [schema, *schema.get("anyOf", [])]
    kinds = [option["type"] for option in options if "type" in option]
    if kinds and not any(_TYPES[kind](value) for kind in kinds):
        expected = " or ".join(kinds)
        raise ConfigurationError(f"{where}: expected {expected}, not {value!r:.80}", field=where)
    if isinstance(value, dict):
        for option in options:
            if option.get("type") == "object":
                check_types(value, option, f"{where}.")
