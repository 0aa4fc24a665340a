"""Structured output: JSON schemas, GBNF and TGI's grammars of all dialects as one `Grammar`."""

import json
from typing import Any

from starcoder.request import Grammar
from starcoder.server.codec import HTTPError

ANY_OBJECT: dict[str, Any] = {"type": "object"}


def json_grammar(schema: object) -> Grammar:
    """JSON that a schema describes. Raises: HTTPError: it is nested too deeply."""
    try:
        return Grammar("json_schema", json.dumps(schema))
    except RecursionError:
        raise HTTPError("the JSON schema is nested too deeply", "send a flatter one") from None


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
            inner = given.get("json_schema")
            schema = inner.get("schema") if isinstance(inner, dict) else given.get("schema")
            if isinstance(schema, dict | bool):
                return json_grammar(schema)
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
