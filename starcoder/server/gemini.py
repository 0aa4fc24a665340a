"""Gemini's `generateContent`, `streamGenerateContent` and `countTokens`: text and tools.

A stream is server-sent events, as with `alt=sse`.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starcoder.chat import Message
from starcoder.errors import StarcoderError
from starcoder.request import Chunk, Completion, CompletionRequest, FinishReason, Usage
from starcoder.server import chat
from starcoder.server.codec import (
    Body,
    CompletionFields,
    ErrorFormat,
    HTTPError,
    Json,
    ServerInfo,
    format_error,
    sse,
)
from starcoder.server.tools import Call, CallReader, Tools

_KINDS = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}
_MODES = {"ANY": "required", "NONE": "none"}


class Part(Body):
    """Text, a call, or its result."""

    text: str | None = None
    functionCall: dict[str, Any] | None = None
    functionResponse: dict[str, Any] | None = None


class Content(Body):
    role: str = "user"
    parts: tuple[Part, ...] = ()

    @property
    def text(self) -> str:
        return "".join(part.text or "" for part in self.parts)

    def messages(self) -> Iterator[Message]:
        """The turn as templates know it. Raises: HTTPError: a part that is no text."""
        calls = []
        for part in self.parts:
            if part.functionResponse is not None:
                yield {"role": "tool", "content": str(part.functionResponse.get("response", ""))}
            elif part.functionCall is not None:
                call = {"name": part.functionCall.get("name"), "arguments": part.functionCall.get("args", {})}
                calls.append({"type": "function", "function": call})
            elif part.text is None:
                raise HTTPError("`contents`: this model reads text only", "send parts with `text`")
        if self.text or calls:
            message: dict[str, object] = {
                "role": "assistant" if self.role == "model" else "user",
                "content": self.text,
            }
            yield message | ({"tool_calls": calls} if calls else {})


class GenerationConfig(
    CompletionFields,
    wire={
        "max_tokens": ("maxOutputTokens",),
        "top_p": ("topP",),
        "top_k": ("topK",),
        "stop": ("stopSequences",),
        "n": ("candidateCount",),
        "presence_penalty": ("presencePenalty",),
        "frequency_penalty": ("frequencyPenalty",),
    },
):
    """`generationConfig` of a request."""

    responseMimeType: str = ""
    responseSchema: dict[str, Any] | None = None
    responseJsonSchema: dict[str, Any] | None = None


class ToolBody(Body):
    functionDeclarations: tuple[dict[str, Any], ...] = ()


class CallingConfig(Body):
    mode: str = "AUTO"
    allowedFunctionNames: tuple[str, ...] = ()


class ToolConfig(Body):
    functionCallingConfig: CallingConfig = CallingConfig()


class GeminiBody(Body):
    """Body of `generateContent`."""

    contents: tuple[Content, ...]
    systemInstruction: Content | None = None
    tools: tuple[ToolBody, ...] = ()
    toolConfig: ToolConfig = ToolConfig()
    generationConfig: GenerationConfig = GenerationConfig()


def error(problem: StarcoderError) -> Json:
    status = ERRORS.status(problem)
    kind = _KINDS.get(status, "INVALID_ARGUMENT" if status < 500 else "UNAVAILABLE")
    return {"error": {"code": status, "message": format_error(problem), "status": kind}}


ERRORS = ErrorFormat(error)


def read(data: object, info: ServerInfo, *, is_stream: bool = False) -> "GeminiExchange":
    """Parse a request. Raises: HTTPError, RequestError: what is wrong with it."""
    body = GeminiBody.read(data)
    options = body.generationConfig
    schema = options.responseJsonSchema or _lower_types(options.responseSchema)
    if options.responseMimeType == "application/json":
        form = {"type": "json_object", "schema": schema} if schema else {"type": "json_object"}
        options = options.model_copy(update={"response_format": form})
    turns = [message for content in body.contents for message in content.messages()]
    if body.systemInstruction is not None and body.systemInstruction.text:
        turns = [{"role": "system", "content": body.systemInstruction.text}, *turns]
    declared = [one for tool in body.tools for one in tool.functionDeclarations]
    calling = body.toolConfig.functionCallingConfig
    choice: Any = _MODES.get(calling.mode, "auto")
    if choice == "required" and calling.allowedFunctionNames:
        listed = [{"type": "function", "name": name} for name in calling.allowedFunctionNames]
        choice = {"type": "allowed_tools", "mode": "required", "tools": listed}
    tools = Tools.read([_lower_types(one) for one in declared], choice, is_closed=info.closed_objects)
    return GeminiExchange([chat.ask(options, turns, info, tools)], is_stream, info, tools)


def count_tokens(data: object, info: ServerInfo) -> Json:
    """`countTokens`. Raises: as `read`."""
    inner = data.get("generateContentRequest", data) if isinstance(data, dict) else data
    [request] = read(inner, info).requests
    return {"totalTokens": len(request.tokens or ())}


def _lower_types(schema: Any) -> Any:
    """Gemini's schemas write types in capitals: STRING."""
    if isinstance(schema, list):
        return [_lower_types(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    lowered = {key: _lower_types(value) for key, value in schema.items()}
    if isinstance(lowered.get("type"), str):
        lowered["type"] = lowered["type"].lower()
    return lowered


@dataclass
class GeminiExchange:
    """One request and the format of its answer."""

    requests: Sequence[CompletionRequest]
    is_stream: bool
    info: ServerInfo
    tools: Tools | None = None
    media_type: str = "text/event-stream"
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _num_tokens: int = 0

    def __post_init__(self) -> None:
        self._calls = CallReader(self.tools)

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        candidates = []
        for one in samples[0]:
            text, calls = CallReader(self.tools).push(0, one.text, is_last=True)
            candidates.append(_candidate(one.index, text, calls, one.finish_reason))
        num_tokens = sum(len(one.tokens) for one in samples[0])
        return self._answer(candidates, samples[0][0].usage, num_tokens)

    def events(self, position: int, chunk: Chunk) -> Iterator[str]:
        self._num_tokens += len(chunk.tokens)
        text, calls = self._calls.push(chunk.index, chunk.text, is_last=chunk.finish_reason is not None)
        if text or calls or chunk.finish_reason is not None:
            candidate = _candidate(chunk.index, text, calls, chunk.finish_reason)
            yield sse(self._answer([candidate], chunk.usage, self._num_tokens))

    def end(self) -> str:
        return ""

    def failure(self, problem: StarcoderError) -> str:
        return sse(error(problem))

    def _answer(
        self, candidates: Sequence[dict[str, Any]], usage: Usage | None, num_tokens: int
    ) -> dict[str, Any]:
        answer = {"candidates": list(candidates), "modelVersion": self.info.model, "responseId": self.id}
        if usage is None:
            return answer
        counts = {
            "promptTokenCount": usage.prompt_tokens,
            "cachedContentTokenCount": usage.cached_tokens,
            "candidatesTokenCount": num_tokens,
            "totalTokenCount": usage.prompt_tokens + num_tokens,
        }
        return answer | {"usageMetadata": counts}


def _candidate(index: int, text: str, calls: Sequence[Call], finish: FinishReason | None) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"text": text}] if text or not calls else []
    parts += [{"functionCall": {"id": call.id, "name": call.name, "args": call.arguments}} for call in calls]
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": index}
    if finish is not None:
        candidate["finishReason"] = "MAX_TOKENS" if finish in ("length", "deadline") else "STOP"
    return candidate
