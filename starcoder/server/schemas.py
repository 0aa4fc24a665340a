"""Structured output: JSON schemas, GBNF and TGI's grammars of all dialects as one `Grammar`.

A schema is held to as far as llguidance can. What it cannot (`uniqueItems`, `not`, a look-ahead, ...) is
dropped and named in the log, or refused where the request says `strict`.
"""

import json
import logging
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from starcoder.request import Grammar
from starcoder.server.codec import HTTPError

log = logging.getLogger(__name__)

ANY_OBJECT: dict[str, Any] = {"type": "object"}

# Keywords of JSON Schema whose values are schemas, lists of schemas, and schemas by name.
# Source: https://json-schema.org/draft/2020-12/schema
_SCHEMAS = frozenset(
    {
        "items",
        "additionalItems",
        "additionalProperties",
        "contains",
        "propertyNames",
        "not",
        "if",
        "then",
        "else",
    }
    | {"unevaluatedItems", "unevaluatedProperties"}
)
_SCHEMA_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_SCHEMAS_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})

# What llguidance holds to, and what says nothing about a value. Source: llguidance, docs/json_schema.md.
_HELD = frozenset(
    {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions", "$anchor", "$id"}
    | {
        "items",
        "prefixItems",
        "additionalItems",
        "minItems",
        "maxItems",
        "properties",
        "additionalProperties",
    }
    | {"required", "patternProperties", "minProperties"}
    | {"maxProperties", "minLength", "maxLength", "pattern", "format"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "x-guidance"}
)
_ANNOTATIONS = frozenset(
    {
        "$schema",
        "$comment",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
    }
    | {"nullable", "example", "discriminator", "externalDocs", "xml"}
)


def json_grammar(schema: object, *, is_strict: bool = False, where: str = "the JSON schema") -> Grammar:
    """JSON that a schema describes. Raises: HTTPError: `is_strict`, and something cannot be held to."""
    if isinstance(schema, dict):
        schema = held(schema, is_strict=is_strict, where=where)
    return Grammar("json_schema", json.dumps(schema))


def wanted(response_format: dict[str, Any] | None, json_schema: object, grammar: object) -> Grammar | None:
    """The first of OpenAI's, llama.cpp's and TGI's fields that says something.

    Raises:
        HTTPError: it is none of the forms that these contracts know.
    """
    if response_format is not None:
        return _of_format(response_format)
    if json_schema is not None:
        return json_grammar(json_schema)
    if isinstance(grammar, str):
        return Grammar("gbnf", grammar) if grammar.strip() else None
    return _of_tgi(grammar) if isinstance(grammar, dict) else None


def of_ollama(format: object) -> dict[str, Any] | None:
    """Ollama's `format`, a word or a schema, as OpenAI's `response_format`. Raises: HTTPError."""
    if format in (None, ""):
        return None
    if format == "json":
        return {"type": "json_object"}
    if not isinstance(format, dict):
        raise HTTPError(f"`format` is {format!r}", 'send "json" or a JSON schema')
    return {"type": "json_schema", "json_schema": {"schema": format}}


def _of_format(given: dict[str, Any]) -> Grammar | None:
    match given.get("type"):
        case "text" | None:
            return None
        case "json_object":
            return json_grammar(given.get("schema") or ANY_OBJECT)  # llama.cpp takes a schema here
        case "json_schema":
            inner = given["json_schema"] if isinstance(given.get("json_schema"), dict) else given
            schema = inner.get("schema")
            if isinstance(schema, dict | bool):
                return json_grammar(schema, is_strict=inner.get("strict") is True, where="`response_format`")
    raise HTTPError(
        "`response_format` is not understood",
        'send {"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}',
    )


def _of_tgi(given: dict[str, Any]) -> Grammar:
    kind, value = given.get("type"), given.get("value")
    if kind == "regex" and isinstance(value, str):
        return Grammar("regex", value)
    if kind == "json_schema" and isinstance(value, dict) and isinstance(value.get("schema"), dict):
        return json_grammar(value["schema"])
    if kind in ("json", "json_object", "json_schema") and isinstance(value, dict):
        return json_grammar(value)
    raise HTTPError("`grammar` is not understood", 'send {"type": "json" or "regex", "value": ...}, or GBNF')


def held(schema: dict[str, Any], *, is_strict: bool, where: str) -> dict[str, Any]:
    """The schema without what cannot be held to; the same where all can be, or where it is not valid at all.

    Raises:
        HTTPError: `is_strict`, and something cannot be held to; it names the keyword.
    """
    if problem(schema) is None:
        return schema
    dropped: list[str] = []
    kept = _without_unheld(schema, dropped)
    if not dropped:
        return schema  # its fault is another one
    names = tuple(sorted(set(dropped)))
    if is_strict:
        raise HTTPError(
            f"{where} is strict, and these keywords cannot be held to: {', '.join(names)}",
            "leave them out, or send `strict` false",
        )
    _log_once(where, names)
    return kept


def problem(schema: object) -> str | None:
    """Why llguidance cannot hold to a schema; None if it can, or if it is not installed."""
    try:
        from llguidance import LLMatcher
    except ImportError:
        return None  # the engine names the extra
    try:
        reason: str = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(schema)), None)
    except ValueError as error:
        reason = str(error)
    return reason.strip().partition("\n")[0] or None


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, objects with listed properties having no others unless the schema says so."""

    def close(node: dict[str, Any]) -> dict[str, Any]:
        others = ("additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref")
        if "properties" in node and not any(name in node for name in others):
            return node | {"additionalProperties": False}
        return node

    closed_ = _map(schema, close)
    assert isinstance(closed_, dict), "a schema stays one"
    return closed_


def rebased(schema: dict[str, Any], pointer: str) -> dict[str, Any]:
    """The schema for a place inside another document: references to itself begin with `pointer`."""

    def rebase(node: dict[str, Any]) -> dict[str, Any]:
        node = {key: value for key, value in node.items() if key not in ("$id", "$schema")}
        ref = node.get("$ref")
        if isinstance(ref, str) and (ref == "#" or ref.startswith("#/")):
            node["$ref"] = pointer + ref[1:]
        return node

    rebased_ = _map(schema, rebase)
    assert isinstance(rebased_, dict), "a schema stays one"
    return rebased_


def _without_unheld(schema: dict[str, Any], dropped: list[str]) -> dict[str, Any]:
    def drop(node: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in node.items() if not is_dropped(key, value)}

    def is_dropped(key: str, value: object) -> bool:
        if isinstance(value, str) and key in ("pattern", "format"):
            is_lost = problem({"type": "string", key: value}) is not None
        elif isinstance(value, dict) and key == "patternProperties":
            is_lost = problem({"type": "object", key: dict.fromkeys(value, True)}) is not None
        else:
            is_lost = key not in _HELD and key not in _ANNOTATIONS and not key.startswith("x-")
        if is_lost:
            dropped.append(key)
        return is_lost

    kept = _map(schema, drop)
    assert isinstance(kept, dict), "a schema stays one"
    return kept


def _map(schema: object, change: Callable[[dict[str, Any]], dict[str, Any]]) -> object:
    """The schema with every subschema changed; values of `enum`, `const` and `default` stay as they are."""
    if not isinstance(schema, dict):
        return schema
    return dict(_mapped_items(change(schema), change))


def _mapped_items(
    node: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if key in _SCHEMA_LISTS and isinstance(value, list):
            yield key, [_map(one, change) for one in value]
        elif key in _SCHEMAS_BY_NAME and isinstance(value, dict):
            yield key, {name: _map(one, change) for name, one in value.items()}
        elif key in _SCHEMAS:
            yield key, _map(value, change)
        else:
            yield key, value


@lru_cache(maxsize=256)
def _log_once(where: str, names: tuple[str, ...]) -> None:
    log.warning("%s has keywords that cannot be held to: %s", where, ", ".join(names))
