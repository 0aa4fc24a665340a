"""OpenAI's `/v1/responses`, which Codex speaks. Nothing is stored: each request carries its whole input.

Items and tools of types that only OpenAI can run are skipped. Text only.
"""

import time
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
    HTTPError,
    Json,
    ServerInfo,
    format_error,
    sse,
)
from starcoder.server.tools import Call, CallReader, Tools


class TextOptions(Body):
    format: dict[str, Any] | None = None


class Item(Body):
    """A message, a call or its result."""

    type: str = "message"
    role: str = "user"
    content: Annotated[str, BeforeValidator(chat.joined)] = ""
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: Annotated[str, BeforeValidator(chat.joined)] = ""

    def message(self) -> Message | None:
        """The item as templates know it; None: a kind that no template knows."""
        if self.type == "message":
            return {"role": self.role, "content": self.content}
        if self.type == "function_call":
            function = {"name": self.name, "arguments": self.arguments}
            call = {"id": self.call_id, "type": "function", "function": function}
            return {"role": "assistant", "content": "", "tool_calls": [call]}
        if self.type == "function_call_output":
            return {"role": "tool", "tool_call_id": self.call_id, "content": self.output}
        return None


class ResponsesBody(CompletionFields, wire={"max_tokens": ("max_output_tokens",)}):
    """Body of `/v1/responses`."""

    model: str = ""
    input: str | list[Item]
    instructions: str = ""
    tools: tuple[Any, ...] = ()
    tool_choice: dict[str, Any] | str | None = None
    parallel_tool_calls: bool = True
    text: TextOptions = TextOptions()
    previous_response_id: str | None = None
    stream: bool = False


def read(data: object, info: ServerInfo) -> "ResponsesExchange":
    """Parse a request. Raises: HTTPError, RequestError: what is wrong with it."""
    body = ResponsesBody.read(data)
    if body.previous_response_id is not None:
        raise HTTPError("`previous_response_id`: nothing is stored here", "send the whole conversation")
    if body.text.format is not None:
        body = body.model_copy(update={"response_format": body.text.format})
    items = [Item(content=body.input)] if isinstance(body.input, str) else body.input
    turns = [message for message in (item.message() for item in items) if message is not None]
    if body.instructions:
        turns = [{"role": "system", "content": body.instructions}, *turns]
    tools = Tools.read(
        body.tools, body.tool_choice, is_parallel=body.parallel_tool_calls, is_closed=info.closed_objects
    )
    return ResponsesExchange([chat.ask(body, turns, info, tools)], body.stream, info, tools)


@dataclass
class ResponsesExchange:
    """One request and the format of its answer."""

    requests: Sequence[CompletionRequest]
    is_stream: bool
    info: ServerInfo
    tools: Tools | None = None
    media_type: str = "text/event-stream"
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    _text: str = ""
    _message_id: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    _num_tokens: int = 0
    _num_events: int = 0

    def __post_init__(self) -> None:
        self._calls = CallReader(self.tools)

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        one = samples[0][0]
        text, calls = self._calls.push(0, one.text, is_last=True)
        output = ([self._message(text)] if text or not calls else []) + [*map(_format_call, calls)]
        return self._response(output, one.finish_reason, one.usage, len(one.tokens))

    def events(self, position: int, chunk: Chunk) -> Iterator[str]:
        if not self._num_events:
            for kind in ("created", "in_progress"):
                yield self._event(f"response.{kind}", response=self._response([]))
        self._num_tokens += len(chunk.tokens)
        text, calls = self._calls.push(0, chunk.text, is_last=chunk.finish_reason is not None)
        if text:
            yield from self._text_events(text)
        if chunk.finish_reason is None or chunk.usage is None:
            return
        if not self._text and not calls:
            yield from self._text_events("")
        output: list[dict[str, Any]] = []
        if self._text or not calls:
            output.append(self._message(self._text))
            yield from self._end_text()
        for call in calls:
            yield from self._call_events(call, len(output))
            output.append(_format_call(call))
        response = self._response(output, chunk.finish_reason, chunk.usage, self._num_tokens)
        yield self._event(f"response.{response['status']}", response=response)

    def end(self) -> str:
        return ""

    def failure(self, problem: StarcoderError) -> str:
        error = {"code": "server_error", "message": format_error(problem)}
        response = self._response([]) | {"status": "failed", "error": error}
        return self._event("response.failed", response=response)

    def _text_events(self, text: str) -> Iterator[str]:
        at = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        if not self._text:
            item = self._message("") | {"status": "in_progress", "content": []}
            yield self._event("response.output_item.added", output_index=0, item=item)
            yield self._event("response.content_part.added", **at, part=_part(""))
        self._text += text
        if text:
            yield self._event("response.output_text.delta", **at, delta=text, logprobs=[])

    def _end_text(self) -> Iterator[str]:
        at = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        yield self._event("response.output_text.done", **at, text=self._text, logprobs=[])
        yield self._event("response.content_part.done", **at, part=_part(self._text))
        yield self._event("response.output_item.done", output_index=0, item=self._message(self._text))

    def _call_events(self, call: Call, index: int) -> Iterator[str]:
        item = _format_call(call)
        at = {"item_id": item["id"], "output_index": index}
        begun = item | {"arguments": "", "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=index, item=begun)
        yield self._event("response.function_call_arguments.delta", **at, delta=item["arguments"])
        yield self._event("response.function_call_arguments.done", **at, arguments=item["arguments"])
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _event(self, kind: str, **fields: Any) -> str:
        document = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return sse(document, event=kind)

    def _message(self, text: str) -> dict[str, Any]:
        return {
            "type": "message",
            "id": self._message_id,
            "status": "completed",
            "role": "assistant",
            "content": [_part(text)],
        }

    def _response(
        self,
        output: Sequence[dict[str, Any]],
        finish: FinishReason | None = None,
        usage: Usage | None = None,
        num_tokens: int = 0,
    ) -> dict[str, Any]:
        is_cut = finish in ("length", "deadline")
        params = self.requests[0].sampling
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "in_progress" if finish is None else "incomplete" if is_cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": None,
            "metadata": {},
            "model": self.info.model,
            "output": list(output),
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": params.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage, num_tokens),
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _format_call(call: Call) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": f"fc_{call.id}",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments_json,
        "status": "completed",
    }


def _usage(usage: Usage, num_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": num_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + num_tokens,
    }
