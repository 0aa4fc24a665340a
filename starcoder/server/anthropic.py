"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`, which Claude Code speaks: text and tools."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BeforeValidator

from starcoder.chat import Message
from starcoder.errors import StarcoderError
from starcoder.request import Chunk, Completion, CompletionRequest, FinishReason, Usage
from starcoder.server import chat
from starcoder.server.codec import (
    Body,
    CompletionFields,
    ErrorFormat,
    Json,
    ServerInfo,
    format_error,
    sse,
)
from starcoder.server.tools import Call, CallReader, Tools

_STOPS = {"eos": "end_turn", "stop": "stop_sequence", "length": "max_tokens", "deadline": "max_tokens"}
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def _blocks(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Block(Body):
    """A part of a message: text, a call, or its result."""

    type: str = "text"
    text: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}  # noqa: RUF012  # pydantic copies defaults
    tool_use_id: str = ""
    content: Annotated[str, BeforeValidator(chat.joined)] = ""


class TurnBody(Body):
    role: str
    content: Annotated[list[Block], BeforeValidator(_blocks)]

    def messages(self) -> Iterator[Message]:
        """The turn as templates know it: results of calls are messages of their own."""
        for block in self.content:
            if block.type == "tool_result":
                yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": block.content}
        unknown = {"image", "document"} & {block.type for block in self.content}
        chat.joined([{"type": kind} for kind in unknown])  # raises ValueError: text only
        text = "\n".join(block.text for block in self.content if block.type == "text" and block.text)
        calls = [
            {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
            for block in self.content
            if block.type == "tool_use"
        ]
        if text or calls or not self.content:
            message: dict[str, object] = {"role": self.role, "content": text}
            yield message | ({"tool_calls": calls} if calls else {})


class MessagesBody(CompletionFields, wire={"stop": ("stop_sequences",)}):
    """Body of `/v1/messages`."""

    model: str = ""
    messages: list[TurnBody]
    system: Annotated[str, BeforeValidator(chat.joined)] = ""
    tools: tuple[Any, ...] = ()
    tool_choice: dict[str, Any] | None = None
    stream: bool = False


def error(problem: StarcoderError) -> Json:
    status = ERRORS.status(problem)
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": format_error(problem)}}


ERRORS = ErrorFormat(error)


def read(data: object, info: ServerInfo) -> "MessagesExchange":
    """Parse a request. Raises: HTTPError, RequestError: what is wrong with it."""
    body = MessagesBody.read(data)
    choice = body.tool_choice or {}
    tools = Tools.read(
        body.tools,
        body.tool_choice,
        is_parallel=choice.get("disable_parallel_tool_use") is not True,
        is_closed=info.closed_objects,
    )
    turns = [message for turn in body.messages for message in turn.messages()]
    if body.system:
        turns = [{"role": "system", "content": body.system}, *turns]
    return MessagesExchange([chat.ask(body, turns, info, tools)], body.stream, info, tools)


def count_tokens(data: object, info: ServerInfo) -> Json:
    """`/v1/messages/count_tokens`. Raises: as `read`."""
    [request] = read(data, info).requests
    return {"input_tokens": len(request.tokens or ())}


@dataclass
class MessagesExchange:
    """One request and the format of its answer."""

    requests: Sequence[CompletionRequest]
    is_stream: bool
    info: ServerInfo
    tools: Tools | None = None
    media_type: str = "text/event-stream"
    id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    _num_tokens: int = 0
    _has_begun: bool = False
    _has_text: bool = False

    def __post_init__(self) -> None:
        self._calls = CallReader(self.tools)

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        one = samples[0][0]
        text, calls = self._calls.push(0, one.text, is_last=True)
        content = ([{"type": "text", "text": text}] if text or not calls else []) + [*map(_block, calls)]
        usage = _usage(one.usage, len(one.tokens))
        return self._message(content) | _ending(one.finish_reason, one.stop, calls) | {"usage": usage}

    def events(self, position: int, chunk: Chunk) -> Iterator[str]:
        if not self._has_begun:
            self._has_begun = True
            num_prompt = len(self.requests[0].tokens or ())
            usage = {"input_tokens": num_prompt, "output_tokens": 0}
            message = self._message([]) | {"stop_reason": None, "stop_sequence": None, "usage": usage}
            yield _event("message_start", message=message)
        self._num_tokens += len(chunk.tokens)
        text, calls = self._calls.push(0, chunk.text, is_last=chunk.finish_reason is not None)
        if text and not self._has_text:
            self._has_text = True
            yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        if text:
            yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
        if chunk.finish_reason is None or chunk.usage is None:
            return
        if self._has_text:
            yield _event("content_block_stop", index=0)
        for index, call in enumerate(calls, int(self._has_text)):
            yield _event("content_block_start", index=index, content_block=_block(call) | {"input": {}})
            delta = {"type": "input_json_delta", "partial_json": call.arguments_json}
            yield _event("content_block_delta", index=index, delta=delta)
            yield _event("content_block_stop", index=index)
        ending = _ending(chunk.finish_reason, chunk.stop, calls)
        yield _event("message_delta", delta=ending, usage=_usage(chunk.usage, self._num_tokens))
        yield _event("message_stop")

    def end(self) -> str:
        return ""

    def failure(self, problem: StarcoderError) -> str:
        return sse(error(problem), event="error")

    def _message(self, content: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.info.model,
            "content": list(content),
        }


def _event(kind: str, **fields: Any) -> str:
    return sse({"type": kind, **fields}, event=kind)


def _block(call: Call) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments}


def _ending(finish: FinishReason, stop: str | int | None, calls: Sequence[Call]) -> dict[str, Any]:
    is_sequence = finish == "stop" and isinstance(stop, str)
    reason = "tool_use" if calls else _STOPS.get(finish, "end_turn")
    return {"stop_reason": reason, "stop_sequence": stop if is_sequence and not calls else None}


def _usage(usage: Usage, num_tokens: int) -> dict[str, int]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": num_tokens,
    }
