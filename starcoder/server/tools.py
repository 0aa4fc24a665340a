"""Tools of a chat: how they are explained to the model, and how a call is read from its text.

A call is the JSON `{"name": ..., "arguments": {...}}`. Where the model may choose, an answer that begins
with a brace is held to that form and any other is free text; where a tool is required all of it is.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starcoder.chat import tool_prompt
from starcoder.request import Grammar
from starcoder.server.codec import HTTPError
from starcoder.server.schemas import ANY_OBJECT, json_grammar


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of one request that the model may call."""

    functions: tuple[dict[str, Any], ...]
    is_required: bool

    @classmethod
    def read(cls, tools: Sequence[object], choice: object) -> "Tools | None":
        """From OpenAI's `tools` and `tool_choice`; None where the model is to call nothing.

        Raises:
            HTTPError: not functions, or a choice of none of them.
        """
        functions = tuple(_function(tool) for tool in tools)
        if not functions or choice == "none":
            return None
        if choice in (None, "auto", "required"):
            return cls(functions, choice == "required")
        inner = choice.get("function") if isinstance(choice, dict) else None
        name = inner.get("name") if isinstance(inner, dict) else choice
        chosen = tuple(function for function in functions if function["name"] == name)
        if not chosen:
            raise HTTPError(
                "`tool_choice` names no tool of this request", "send auto, none, required or a name"
            )
        return cls(chosen, True)

    def grammar(self) -> Grammar:
        """What the model may write."""
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": function["name"]},
                    "arguments": function.get("parameters") or ANY_OBJECT,
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for function in self.functions
        ]
        schema = {"anyOf": calls}
        if self.is_required:
            return json_grammar(schema)
        style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        styled = json.dumps(schema | {"x-guidance": style})
        return Grammar("lark", f"start: call | text\ntext: /[^{{](.|\\n)*/\ncall: %json {styled}\n")

    def instructions(self) -> str:
        """Instructions for the model, a part of the system message."""
        return tool_prompt(self.functions, is_required=self.is_required)

    def call(self, text: str) -> dict[str, Any] | None:
        """The call that an answer is, in OpenAI's words; None: it is plain text."""
        try:
            found = json.loads(text) if text.startswith("{") else None
        except ValueError:  # ended early, by max_tokens
            return None
        if not isinstance(found, dict) or found.get("name") not in {one["name"] for one in self.functions}:
            return None
        arguments = json.dumps(found.get("arguments", {}), ensure_ascii=False)
        function = {"name": found["name"], "arguments": arguments}
        return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _function(tool: object) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise HTTPError(
            "`tools` holds something that is no function", 'send {"type": "function", "function": {...}}'
        )
    if not isinstance(function.get("parameters") or {}, dict):
        raise HTTPError(f"the parameters of {function['name']!r} are no JSON schema")
    return function
