"""OpenAI's `/v1/completions` and `/v1/fim/completions`: JSON <-> `CompletionRequest` and `Chunk`.

A lenient superset: `suffix`, raw prompts with sentinels, lists of texts or token ids, fields nested in
`parameters`, and our own fields (`path`, `extras`, `session`, ...). Limits: no log-probabilities of the
prompt (`echo` with `logprobs`), no `best_of`.
"""

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from starcoder.errors import StarcoderError
from starcoder.request import Chunk, Completion, CompletionRequest, TokenLogprob, Usage
from starcoder.server.codec import (
    Body,
    CompletionFields,
    ErrorFormat,
    HTTPError,
    Json,
    Prompts,
    ServerInfo,
    at_most,
    format_error,
    sse,
)

# OpenAI's own. Source: the reference of its completions endpoint.
DEFAULT_MAX_TOKENS = 16

FINISH = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "deadline": "length",
    "abort": "abort",
    "error": "error",
}
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class StreamOptions(Body):
    include_usage: bool = False


class CompletionBody(CompletionFields):
    """Body of `/v1/completions` and `/v1/fim/completions`."""

    model: str = ""
    prompt: Prompts = Field(default=[""], validate_default=False)
    suffix: str | None = None
    best_of: int | None = None
    echo: bool = False
    logprobs: bool | int | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def num_logprobs(self) -> int | None:
        return None if self.logprobs is None or self.logprobs is False else int(self.logprobs)


def error(problem: StarcoderError) -> Json:
    """OpenAI's error; `detail` is the form in which llm-ls looks for it."""
    status, message = ERRORS.status(problem), format_error(problem)
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {
        "error": {"message": message, "type": kind, "param": None, "code": None},
        "detail": [{"loc": ["body"], "msg": message, "type": kind}],
    }


ERRORS = ErrorFormat(error)


def read_completion(data: object, info: ServerInfo) -> "CompletionExchange":
    """Parse a completion request.

    Raises:
        HTTPError: a field is missing or of the wrong type.
        RequestError: a value is out of its range.
    """
    body = CompletionBody.read(_flat(data))
    n, max_tokens = body.given.get("n", 1), body.given.get("max_tokens", DEFAULT_MAX_TOKENS)
    if body.best_of is not None and not (body.best_of == n or n == 1):
        raise HTTPError("`best_of` must equal `n` or come with `n` 1", "choose among `n` samples yourself")
    if body.echo and body.num_logprobs is not None and max_tokens != 0:
        raise HTTPError(
            "`echo` with `logprobs` is not supported", "log-probabilities of a prompt are not computed"
        )
    prompts = body.prompt
    at_most(len(prompts) * max(1, n), "samples")
    is_echo_alone = max_tokens == 0
    limit = {"max_tokens": 1} if is_echo_alone else {}
    params = body.params(default_max_tokens=DEFAULT_MAX_TOKENS, logprobs=body.num_logprobs, **limit)
    requests: list[CompletionRequest] = []
    for prompt in prompts:
        if not isinstance(prompt, str):
            requests.append(body.encoded(prompt, params))
        elif body.suffix is not None:
            requests.append(body.infill(prompt, body.suffix, params))
        else:
            requests.append(body.prompt_request(prompt, params, info))
    echoes = [p if isinstance(p, str) else info.tokenizer.decode(p) for p in prompts] if body.echo else []
    return CompletionExchange(
        requests, body.stream, info, body.stream_options.include_usage, echoes, is_echo_alone
    )


def read_fim(data: object, info: ServerInfo) -> "CompletionExchange":
    """Parse a request of Mistral's infilling contract: the same, answered like a chat. Raises: as above."""
    exchange = read_completion(data, info)
    exchange.is_chat_like = True
    return exchange


@dataclass
class CompletionExchange:
    """One completion request and the format of its answer."""

    requests: Sequence[CompletionRequest]
    is_stream: bool
    info: ServerInfo
    has_usage_chunk: bool = False
    echoes: Sequence[str] = ()  # texts to put before those of each request, if any
    is_echo_alone: bool = False  # the echo is the whole answer
    is_chat_like: bool = False  # `message` and `delta` in the place of `text`
    media_type: str = "text/event-stream"
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4()}")
    created: int = field(default_factory=lambda: int(time.time()))
    _usages: dict[int, Usage] = field(default_factory=dict)
    _num_tokens: int = 0
    _offsets: dict[int, int] = field(default_factory=dict)  # characters sent of each choice

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        choices = []
        for position, group in enumerate(samples):
            for one in group:
                echo = self.echoes[position] if self.echoes else ""
                text = echo if self.is_echo_alone else echo + one.text
                finish = "length" if self.is_echo_alone else FINISH[one.finish_reason]
                index = self._choice(position, one.index)
                tokens = () if self.is_echo_alone else one.logprobs
                choices.append(
                    self._format_choice(index, text, finish, logprobs(tokens, len(echo), self.info))
                )
                self._num_tokens += 0 if self.is_echo_alone else len(one.tokens)
            self._usages[position] = group[0].usage
        return self._head() | {"choices": choices, **self._costs()}

    def events(self, position: int, chunk: Chunk) -> Iterator[str]:
        index = self._choice(position, chunk.index)
        text = "" if self.is_echo_alone else chunk.text
        is_first = index not in self._offsets
        if is_first and self.echoes:
            text = self.echoes[position] + text
        offset = self._offsets.get(index, len(self.echoes[position]) if self.echoes else 0)
        self._offsets[index] = offset + len(chunk.text)
        finish = None if chunk.finish_reason is None else FINISH[chunk.finish_reason]
        self._num_tokens += 0 if self.is_echo_alone else len(chunk.tokens)
        if chunk.usage:
            self._usages[position] = chunk.usage
        if text or finish or is_first or chunk.logprobs:
            choice = self._format_choice(
                index, text, finish, logprobs(chunk.logprobs, offset, self.info), is_part=True
            )
            usage = {"usage": None} if self.has_usage_chunk else {}
            yield sse(self._head() | {"choices": [choice]} | usage)

    def end(self) -> str:
        usage = sse(self._head() | {"choices": [], **self._costs()}) if self.has_usage_chunk else ""
        return usage + "data: [DONE]\n\n"

    def failure(self, problem: StarcoderError) -> str:
        return sse(error(problem)) + "data: [DONE]\n\n"

    def _choice(self, position: int, index: int) -> int:
        return position * self.requests[0].sampling.n + index

    def _head(self) -> dict[str, Any]:
        kind = "text_completion"
        if self.is_chat_like:
            kind = "chat.completion.chunk" if self.is_stream else "chat.completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.info.model}

    def _format_choice(
        self, index: int, text: str, finish: str | None, tokens: Json | None, *, is_part: bool = False
    ) -> dict[str, Any]:
        said: dict[str, Any] = {"text": text}
        if self.is_chat_like:
            said = {"delta" if is_part else "message": {"role": "assistant", "content": text}}
        return {"index": index, **said, "logprobs": tokens, "finish_reason": finish}

    def _costs(self) -> dict[str, Any]:
        return {
            "usage": usage(self._usages.values(), self._num_tokens),
            "timings": timings(self._usages.values()),
        }


def usage(usages: Iterable[Usage], num_completion: int) -> dict[str, Any]:
    """OpenAI's count of tokens; what the prefix cache saved is in `cached_tokens`."""
    costs = list(usages)
    num_prompt = sum(cost.prompt_tokens for cost in costs)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": sum(cost.cached_tokens for cost in costs)},
    }


def timings(usages: Iterable[Usage]) -> dict[str, Any]:
    """What llama.cpp's server adds to its answers: tokens really prefilled, and milliseconds."""
    costs = list(usages)
    return {
        "prompt_n": sum(cost.prompt_tokens - cost.cached_tokens for cost in costs),
        "cache_n": sum(cost.cached_tokens for cost in costs),
        "dropped_characters": sum(cost.dropped_characters for cost in costs),
        "queue_ms": max((cost.queue_ms for cost in costs), default=0.0),
        "prompt_ms": max((cost.prefill_ms for cost in costs), default=0.0),
        "predicted_ms": max((cost.decode_ms for cost in costs), default=0.0),
    }


def logprobs(tokens: Sequence[TokenLogprob], offset: int, info: ServerInfo) -> dict[str, object] | None:
    """The legacy form, one list per property; `offset` is where in the text the first token starts."""
    if not tokens:
        return None
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {info.tokenizer.token_text(id): value for id, value in token.top} for token in tokens
        ],
        "text_offset": offsets,
    }


def models(info: ServerInfo) -> Json:
    """`/v1/models`: the model under its own name and under those by which clients know its prompt format."""
    return {"object": "list", "data": [model(info, name) for name in (info.model, *info.aliases)]}


def model(info: ServerInfo, name: str) -> dict[str, object]:
    """`/v1/models/{name}`; the context length under every name that clients look for."""
    context = info.context_length
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "starcoder",
        "context_length": context,
        "context_window": context,
        "max_model_len": context,
        "capabilities": {"completion": True, "fim": info.can_infill, "chat": info.chat is not None},
    }


def _flat(data: object) -> object:
    """Fields that editors nest in TGI's `parameters`; those at the top go before them."""
    nested = data.get("parameters") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(nested, dict):
        return data
    renamed = {"max_new_tokens": "max_tokens", "stop_sequences": "stop"}
    lifted = {renamed.get(key, key): value for key, value in nested.items()}
    return lifted | {key: value for key, value in data.items() if value is not None}
