"""Ollama's `/api/generate`, `/api/chat`, `/api/tags`, `/api/show`: newline-delimited JSON, nanoseconds.

Streams unless told otherwise. Accepted and without effect: `system`, `template`, `context`,
`keep_alive`, `images`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import AliasChoices, Field

from starcoder.errors import CapacityError, StarcoderError
from starcoder.request import Chunk, Completion, CompletionRequest, FinishReason, Usage
from starcoder.server import chat, structure, tools
from starcoder.server.exchange import Errors, Facts, Json, Refusal, told
from starcoder.server.fields import Body, Common

_DONE: dict[FinishReason, str] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "deadline": "length",
    "abort": "abort",
}


class Options(Common):
    """`options` of a request."""

    num_predict: int | None = None
    repetition_penalty: float | None = Field(
        default=None, validation_alias=AliasChoices("repeat_penalty", "repetition_penalty")
    )


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
    messages: tuple[chat.Message, ...] = ()
    options: Options = Options()
    format: dict[str, Any] | str | None = None
    stream: bool = True


class ShowBody(Body):
    """Body of `/api/show`."""

    model: str = ""


def error(problem: StarcoderError) -> Json:
    if isinstance(problem, CapacityError):
        return {"error": "server busy, please try again.  maximum pending requests exceeded"}
    return {"error": told(problem)}


ERRORS = Errors(error)


def read_generate(data: object, facts: Facts) -> "GenerateExchange":
    """Parse `/api/generate`. Raises: Refusal, RequestError: what is wrong with it."""
    body = OllamaGenerateBody.read(data)
    options = _formed(body.options, body.format)
    if not body.prompt and not body.suffix:
        return GenerateExchange([], body.stream, facts)
    params = options.params(max_tokens=_max_tokens(options, facts))
    if body.suffix:
        if not facts.can_infill:
            raise Refusal(f"{facts.model} does not support insert")
        request = options.infill(body.prompt, body.suffix, params)
    else:
        request = options.prompt_request(body.prompt, params, facts)
    return GenerateExchange([request], body.stream, facts)


def read_chat(data: object, facts: Facts) -> "GenerateExchange":
    """Parse `/api/chat`. Raises: as above."""
    body = OllamaChatBody.read(data)
    if not body.messages:
        return GenerateExchange([], body.stream, facts, is_chat=True)
    turns = [tools.spoken(message.model_dump()) for message in body.messages]
    options = _formed(body.options, body.format)
    request = chat.ask(options, turns, facts, _max_tokens(options, facts))
    return GenerateExchange([request], body.stream, facts, is_chat=True)


def _formed(options: Options, format: dict[str, Any] | str | None) -> Options:
    said = structure.of_ollama(format)
    return options if said is None else options.model_copy(update={"response_format": said})


def _max_tokens(options: Options, facts: Facts) -> int:
    wanted = options.num_predict
    if wanted is None:
        return facts.default_max_tokens
    return wanted if wanted > 0 else facts.context_length  # -1 and -2: as far as the context goes


@dataclass
class GenerateExchange:
    """One request and the words of its answer. Without requests it only says that the model is loaded."""

    requests: Sequence[CompletionRequest]
    is_stream: bool
    facts: Facts
    is_chat: bool = False
    media_type: str = "application/x-ndjson"
    _num_tokens: int = 0

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        if not samples:
            return self._said("") | {"done": True, "done_reason": "load"}
        one = samples[0][0]
        return self._said(one.text) | self._last(one.finish_reason, one.usage, len(one.tokens))

    def events(self, position: int, chunk: Chunk) -> Iterator[str]:
        self._num_tokens += len(chunk.tokens)
        last = chunk.finish_reason is not None and chunk.usage is not None
        if chunk.text:
            yield _line(self._said(chunk.text) | {"done": False})
        if last and chunk.finish_reason is not None and chunk.usage is not None:
            yield _line(self._said("") | self._last(chunk.finish_reason, chunk.usage, self._num_tokens))

    def end(self) -> str:
        return "" if self.requests else _line(self._said("") | {"done": True, "done_reason": "load"})

    def failure(self, problem: StarcoderError) -> str:
        return _line(error(problem))

    def _said(self, text: str) -> dict[str, object]:
        said: dict[str, object] = {"response": text}
        if self.is_chat:
            said = {"message": {"role": "assistant", "content": text}}
        created = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return {"model": self.facts.model, "created_at": created, **said}

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


def tags(facts: Facts) -> Json:
    """`/api/tags` and `/api/ps`: the one model, under all its names."""
    return {"models": [_described(facts, name) for name in (facts.model, *facts.aliases)]}


def show(facts: Facts) -> Json:
    """`/api/show`."""
    style = facts.tokenizer.sentinels.style
    abilities = ["completion", *(["insert"] if facts.can_infill else [])]
    return {
        "modelfile": "",
        "parameters": "",
        "template": "{{ .Prompt }}{{ .Suffix }}" if facts.can_infill else "{{ .Prompt }}",
        "details": _details(facts),
        "model_info": {"general.architecture": style, f"{style}.context_length": facts.context_length},
        "capabilities": abilities,
    }


def _described(facts: Facts, name: str) -> dict[str, object]:
    epoch = "1970-01-01T00:00:00Z"
    return {
        "name": name,
        "model": name,
        "modified_at": epoch,
        "expires_at": epoch,
        "size": 0,
        "size_vram": 0,
        "digest": "0" * 64,
        "details": _details(facts),
    }


def _details(facts: Facts) -> dict[str, object]:
    style = facts.tokenizer.sentinels.style
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
