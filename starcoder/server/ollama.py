"""Ollama's `/api/generate`, `/api/chat`, `/api/tags`, `/api/show`: newline-delimited JSON, nanoseconds.

Streams by default. Accepted and without effect: `system`, `template`, `context`,
`keep_alive`, `images`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from starcoder.errors import CapacityError, StarcoderError
from starcoder.request import Chunk, Completion, CompletionRequest, FinishReason, Usage
from starcoder.server import chat, schemas
from starcoder.server.codec import (
    Body,
    CompletionFields,
    ErrorFormat,
    HTTPError,
    Json,
    ServerInfo,
    format_error,
)
from starcoder.server.tools import Call, CallReader, Tools

_DONE: dict[FinishReason, str] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "deadline": "length",
    "abort": "abort",
    "error": "error",
}


class Options(
    CompletionFields, wire={"max_tokens": ("num_predict",), "repetition_penalty": ("repeat_penalty",)}
):
    """`options` of a request."""


class OllamaGenerateBody(Body):
    """Body of `/api/generate`."""

    model: str = ""
    prompt: str = ""
    suffix: str | None = None
    options: Options = Options()
    format: dict[str, Any] | str | None = None
    stream: bool = True
    raw: bool = False


class OllamaChatBody(Body):
    """Body of `/api/chat`."""

    model: str = ""
    messages: tuple[chat.TurnBody, ...] = ()
    tools: tuple[Any, ...] = ()
    options: Options = Options()
    format: dict[str, Any] | str | None = None
    stream: bool = True


class ShowBody(Body):
    """Body of `/api/show`."""

    model: str = ""


def error(problem: StarcoderError) -> Json:
    if isinstance(problem, CapacityError):
        return {"error": "server busy, please try again.  maximum pending requests exceeded"}
    return {"error": format_error(problem)}


ERRORS = ErrorFormat(error)


def read_generate(data: object, info: ServerInfo) -> "OllamaExchange":
    """Parse `/api/generate`. Raises: HTTPError, RequestError: what is wrong with it."""
    body = OllamaGenerateBody.read(data)
    options = _with_format(body.options, body.format)
    if not body.prompt and not body.suffix:
        return OllamaExchange([], body.stream, info)
    params = options.params(default_max_tokens=info.default_max_tokens, **_limit(options, info))
    if body.suffix:
        if not info.can_infill:
            raise HTTPError(f"{info.model} does not support insert")
        request = options.infill(body.prompt, body.suffix, params)
    else:
        request = options.prompt_request(body.prompt, params, info)
    return OllamaExchange([request], body.stream, info)


def read_chat(data: object, info: ServerInfo) -> "OllamaExchange":
    """Parse `/api/chat`. Raises: as above."""
    body = OllamaChatBody.read(data)
    if not body.messages:
        return OllamaExchange([], body.stream, info, is_chat=True)
    turns = [message.message() for message in body.messages]
    options = _with_format(body.options, body.format)
    tools = Tools.read(body.tools, is_closed=info.closed_objects)
    request = chat.ask(options, turns, info, tools, **_limit(options, info))
    return OllamaExchange([request], body.stream, info, is_chat=True, tools=tools)


def _with_format(options: Options, format: dict[str, Any] | str | None) -> Options:
    wanted = schemas.of_ollama(format)
    return options if wanted is None else options.model_copy(update={"response_format": wanted})


def _limit(options: Options, info: ServerInfo) -> dict[str, int]:
    """-1 and -2: as far as the context goes."""
    return {"max_tokens": info.context_length} if options.given.get("max_tokens", 1) < 1 else {}


@dataclass
class OllamaExchange:
    """One request and the format of its answer. Without requests it only says that the model is loaded."""

    requests: Sequence[CompletionRequest]
    is_stream: bool
    info: ServerInfo
    is_chat: bool = False
    tools: Tools | None = None
    media_type: str = "application/x-ndjson"
    _num_tokens: int = 0

    def __post_init__(self) -> None:
        self._calls = CallReader(self.tools)

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        if not samples:
            return self._part("") | {"done": True, "done_reason": "load"}
        one = samples[0][0]
        text, calls = self._calls.push(0, one.text, is_last=True)
        return self._part(text, calls) | self._last(one.finish_reason, one.usage, len(one.tokens))

    def events(self, position: int, chunk: Chunk) -> Iterator[str]:
        self._num_tokens += len(chunk.tokens)
        text, calls = self._calls.push(0, chunk.text, is_last=chunk.finish_reason is not None)
        if text or calls:
            yield _line(self._part(text, calls) | {"done": False})
        if chunk.finish_reason is not None and chunk.usage is not None:
            yield _line(self._part("") | self._last(chunk.finish_reason, chunk.usage, self._num_tokens))

    def end(self) -> str:
        return "" if self.requests else _line(self._part("") | {"done": True, "done_reason": "load"})

    def failure(self, problem: StarcoderError) -> str:
        return _line(error(problem))

    def _part(self, text: str, calls: Sequence[Call] = ()) -> dict[str, object]:
        part: dict[str, object] = {"response": text}
        if self.is_chat:
            message: dict[str, object] = {"role": "assistant", "content": text}
            if calls:
                message["tool_calls"] = [
                    {"function": {"name": call.name, "arguments": call.arguments}} for call in calls
                ]
            part = {"message": message}
        created = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return {"model": self.info.model, "created_at": created, **part}

    def _last(self, finish: FinishReason, usage: Usage, num_tokens: int) -> dict[str, object]:
        total_ms = usage.queue_ms + usage.prefill_ms + usage.decode_ms
        return {
            "done": True,
            "done_reason": _DONE[finish],
            "total_duration": int(1e6 * total_ms),
            "load_duration": int(1e6 * usage.queue_ms),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": int(1e6 * usage.prefill_ms),
            "eval_count": num_tokens,
            "eval_duration": int(1e6 * usage.decode_ms),
        }


def tags(info: ServerInfo) -> Json:
    """`/api/tags` and `/api/ps`: the one model, under all its names."""
    return {"models": [_described(info, name) for name in (info.model, *info.aliases)]}


def show(info: ServerInfo) -> Json:
    """`/api/show`."""
    style = info.tokenizer.sentinels.style
    abilities = ["completion", *(["insert"] if info.can_infill else [])]
    return {
        "modelfile": "",
        "parameters": "",
        "template": "{{ .Prompt }}{{ .Suffix }}" if info.can_infill else "{{ .Prompt }}",
        "details": _details(info),
        "model_info": {"general.architecture": style, f"{style}.context_length": info.context_length},
        "capabilities": abilities,
    }


def _described(info: ServerInfo, name: str) -> dict[str, object]:
    epoch = "1970-01-01T00:00:00Z"
    return {
        "name": name,
        "model": name,
        "modified_at": epoch,
        "expires_at": epoch,
        "size": 0,
        "size_vram": 0,
        "digest": "0" * 64,
        "details": _details(info),
    }


def _details(info: ServerInfo) -> dict[str, object]:
    style = info.tokenizer.sentinels.style
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": style,
        "families": [style],
        "parameter_size": "",
        "quantization_level": "",
    }


def _line(document: Json) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"
