"""Tools of a chat: how they are explained to the model, and how calls are read from its text.

A call is the JSON `{"name": ..., "arguments": {...}}`, several are one a line. Where the model may choose, an
answer that begins with a brace is held to that form and any other is free text; where a tool is required all
of it is.
"""

import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from starcoder.chat import tool_prompt
from starcoder.request import Grammar
from starcoder.server import schemas
from starcoder.server.codec import HTTPError

log = logging.getLogger(__name__)

_MAX_CALLS = 8  # of one answer
# As models write JSON, so that one line is one call.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True, slots=True)
class Function:
    """One tool that the model may call."""

    name: str
    description: str
    parameters: dict[str, Any]  # JSON schema of its arguments
    is_strict: bool = False

    @classmethod
    def read(cls, tool: object) -> "Function | None":
        """From a tool of any dialect; None for a kind that only its vendor can run.

        Raises:
            HTTPError: not a tool, or no schema.
        """
        if not isinstance(tool, dict):
            raise HTTPError("`tools` holds something that is no tool", 'send {"type": "function", ...}')
        kind = tool.get("type", "function")
        inner: dict[str, Any] = tool["function"] if isinstance(tool.get("function"), dict) else tool
        if kind not in ("function", None, "custom") or (kind == "custom" and "input_schema" not in tool):
            _log_skipped(str(kind))
            return None
        name = inner.get("name")
        if not isinstance(name, str) or not name:
            raise HTTPError(
                "`tools` holds a function without a name", 'send {"type": "function", "function": {...}}'
            )
        given = next((inner[key] for key in _PARAMETERS if inner.get(key) is not None), schemas.ANY_OBJECT)
        if not isinstance(given, dict):
            raise HTTPError(f"the parameters of {name!r} are no JSON schema")
        return cls(name, str(inner.get("description") or ""), given, inner.get("strict") is True)


# Where the dialects put the schema of a function's arguments.
_PARAMETERS = ("parameters", "input_schema", "parametersJsonSchema")


@dataclass(frozen=True, slots=True)
class Call:
    """One call that the model made."""

    name: str
    arguments: dict[str, Any]
    id: str

    @property
    def arguments_json(self) -> str:
        return json.dumps(self.arguments, ensure_ascii=False)

    def openai(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments_json}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of one request that the model may call."""

    functions: tuple[Function, ...]
    is_required: bool
    max_calls: int = _MAX_CALLS
    is_closed: bool = True  # objects of arguments have no properties but those that are listed

    @classmethod
    def read(
        cls,
        tools: Sequence[object],
        choice: object = None,
        *,
        is_parallel: bool = True,
        is_closed: bool = True,
    ) -> "Tools | None":
        """From `tools` and `tool_choice` of any dialect; None where the model is to call nothing.

        Raises:
            HTTPError: not tools, or a choice of none of them.
        """
        functions = tuple(one for one in map(Function.read, tools) if one is not None)
        mode, names = _read_choice(choice)
        if names is not None:
            unknown = [name for name in names if name not in {function.name for function in functions}]
            if unknown or not functions:
                raise HTTPError(
                    f"`tool_choice` names {', '.join(map(repr, unknown))}, which is no tool of this request",
                    "send auto, none, required or a name",
                )
            functions = tuple(function for function in functions if function.name in names)
        if not functions or mode == "none":
            return None
        return cls(functions, mode == "required", _MAX_CALLS if is_parallel else 1, is_closed)

    def grammar(self) -> Grammar:
        """What the model may write. Raises: HTTPError: a strict tool that cannot be held to."""
        definitions, calls = {}, []
        for number, function in enumerate(self.functions):
            name = f"tool{number}"
            definitions[name] = self._arguments(function, f"#/$defs/{name}")
            calls.append(
                {
                    "type": "object",
                    "properties": {
                        "name": {"const": function.name},
                        "arguments": {"$ref": f"#/$defs/{name}"},
                    },
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
            )
        document = json.dumps({"anyOf": calls, "$defs": definitions, "x-guidance": _STYLE})
        more = f' ("\\n" call){{0,{self.max_calls - 1}}}' if self.max_calls > 1 else ""
        rules = [f"start: call{more}" if self.is_required else f"start: call{more} | text"]
        rules += [] if self.is_required else ["text: /[^{](.|\\n)*/"]
        return Grammar("lark", "\n".join([*rules, f"call: %json {document}", ""]))

    def _arguments(self, function: Function, pointer: str) -> dict[str, Any]:
        """The schema of a function's arguments at `pointer`, without what cannot be held to."""
        where = f"the tool {function.name!r}"
        schema = schemas.held(function.parameters, is_strict=function.is_strict, where=where)
        if self.is_closed:
            schema = schemas.closed(schema)
        if schema.get("type", "object") != "object":
            schema = schemas.ANY_OBJECT
        reason = schemas.problem(schema)
        if reason is not None and function.is_strict:
            raise HTTPError(f"{where} is strict, and its parameters cannot be held to: {reason}")
        if reason is not None:
            log.warning("%s has parameters that cannot be held to: any object is one", where)
            schema = schemas.ANY_OBJECT
        return schemas.rebased(schema, pointer)

    def instructions(self) -> str:
        """Instructions for the model, a part of the system message."""
        functions = [
            {"name": one.name, "description": one.description, "parameters": one.parameters}
            for one in self.functions
        ]
        prompt = tool_prompt(functions, is_required=self.is_required)
        return f"{prompt} Several calls are one a line." if self.max_calls > 1 else prompt

    def calls(self, text: str) -> list[Call]:
        """The whole calls that an answer begins with; none: it is plain text."""
        found: list[Call] = []
        names, decoder, at = {one.name for one in self.functions}, json.JSONDecoder(), 0
        while text.startswith("{", at):
            try:
                call, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):  # ended early, by max_tokens
                break
            if not isinstance(call, dict) or call.get("name") not in names:
                break
            arguments = call.get("arguments")
            arguments = arguments if isinstance(arguments, dict) else {}
            found.append(Call(call["name"], arguments, f"call_{uuid.uuid4().hex[:24]}"))
            at += text.startswith("\n", at)
        return found


def _read_choice(choice: Any) -> tuple[str, list[str] | None]:
    """`auto`, `required` or `none`, and the only tools that may be called.

    Raises:
        HTTPError: none of the forms of OpenAI's, Anthropic's or Gemini's contracts.
    """
    match choice:
        case None | "auto" | {"type": "auto"}:
            return "auto", None
        case "none" | {"type": "none"}:
            return "none", None
        case "required" | "any" | {"type": "any" | "required"}:
            return "required", None
        case str(name):
            return "required", [name]
        case {"type": "allowed_tools", "allowed_tools": {"tools": list(listed)}}:
            mode = choice["allowed_tools"].get("mode")
            return ("required" if mode == "required" else "auto"), _names(listed)
        case {"type": "allowed_tools", "tools": list(listed)}:
            return ("required" if choice.get("mode") == "required" else "auto"), _names(listed)
        case {"function": {"name": str(name)}} | {"name": str(name)}:
            return "required", [name]
        case {"type": str()}:  # a tool that only its vendor can run
            return "auto", None
    raise HTTPError("`tool_choice` is not understood", "send auto, none, required or a name")


def _names(listed: Sequence[object]) -> list[str]:
    return [function.name for function in map(Function.read, listed) if function is not None]


@lru_cache(maxsize=64)
def _log_skipped(kind: str) -> None:
    log.warning("tools of type %r are skipped: only functions can be called", kind)


class CallReader:
    """Tells an answer's text from its calls while it streams; calls come whole, at its end."""

    def __init__(self, tools: "Tools | None"):
        self._tools = tools
        self._held: dict[int, str] = {}  # what may become calls, of each choice
        self._free: set[int] = set()  # choices that are plain text

    def push(self, index: int, text: str, *, is_last: bool) -> tuple[str, list[Call]]:
        """What is text for the client, and the calls that the choice made."""
        if self._tools is None:
            return text, []
        held = self._held.pop(index, "") + text
        if held and not held.startswith("{"):
            self._free.add(index)
        if index in self._free:
            return held, []
        if not is_last:
            self._held[index] = held
            return "", []
        calls = self._tools.calls(held)
        return ("", calls) if calls else (held, [])
