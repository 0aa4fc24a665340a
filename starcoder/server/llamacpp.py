"""llama.cpp's server: `/infill`, `/completion`, `/tokenize`, `/detokenize`, `/props`.

What llama.vim and llama.vscode send and read. Accepted and without effect: `samplers`, `id_slot`,
`cache_prompt` (the cache is always on).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import AliasChoices, Field

from starcoder.errors import StarcoderError
from starcoder.request import (
    Chunk,
    Completion,
    CompletionRequest,
    ContextFile,
    FinishReason,
    SamplingParams,
    TokenLogprob,
    Usage,
)
from starcoder.server import chat
from starcoder.server.codec import (
    Body,
    CompletionFields,
    ErrorFormat,
    HTTPError,
    Json,
    MixedPrompt,
    ServerInfo,
    TokenIds,
    format_error,
    sse,
)

_STOP_TYPES = {
    "eos": "eos",
    "stop": "word",
    "length": "limit",
    "deadline": "limit",
    "abort": "none",
    "error": "none",
}


class ExtraFile(Body):
    text: str = ""
    filename: str = ""


class InfillBody(
    CompletionFields,
    wire={
        "max_tokens": ("n_predict",),
        "n": ("n_cmpl",),
        "repetition_penalty": ("repeat_penalty",),
        "min_indent": ("n_indent",),
    },
):
    """Body of `/completion` and `/infill`."""

    prompt: MixedPrompt = ""
    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: tuple[ExtraFile, ...] = ()
    n_probs: int = 0
    return_tokens: bool = False
    response_fields: tuple[str, ...] = ()
    t_max_predict_ms: float | None = Field(default=None, description="as `deadline_ms`, at a whole line")
    t_max_prompt_ms: float = 0.0
    stream: bool = False


def error(problem: StarcoderError) -> Json:
    status = ERRORS.status(problem)
    kinds = {401: "authentication_error", 404: "not_found_error", 503: "unavailable_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"code": status, "message": format_error(problem), "type": kind}}


ERRORS = ErrorFormat(error)


def read_completion(data: object, info: ServerInfo) -> "InfillExchange":
    """Parse `/completion`. Raises: HTTPError, RequestError: a field of the wrong type or out of range."""
    body = InfillBody.read(data)
    params = _params(body, info)
    if isinstance(body.prompt, str):
        request = body.prompt_request(body.prompt, params, info)
    else:  # ids and texts in turn
        encode = info.tokenizer.encode_with_special
        pieces = [[one] if isinstance(one, int) else encode(one) for one in body.prompt]
        request = body.encoded([id for piece in pieces for id in piece], params)
    return _exchange(body, request, info)


def read_infill(data: object, info: ServerInfo) -> "InfillExchange":
    """Parse `/infill`: `prompt` is the text between `input_prefix` and the cursor. Raises: as above."""
    body = InfillBody.read(data)
    if not info.can_infill:
        raise HTTPError(
            "this model cannot infill: its tokenizer has no infilling tokens",
            "use a StarCoder base model",
            status=501,
        )
    between = body.prompt if isinstance(body.prompt, str) else info.tokenizer.decode(_ids(body.prompt))
    request = body.infill(body.input_prefix + between, body.input_suffix, _params(body, info))
    extras = tuple(ContextFile(path=extra.filename, text=extra.text) for extra in body.input_extra)
    return _exchange(body, replace(request, extras=request.extras + extras), info)


def _ids(prompt: Sequence[int | str]) -> list[int]:
    """Raises: HTTPError: text among the ids."""
    if not all(isinstance(one, int) for one in prompt):
        raise HTTPError("`prompt`: expected a text or token ids")
    return [int(one) for one in prompt]


def _params(body: InfillBody, info: ServerInfo) -> SamplingParams:
    deadline: dict[str, Any] = {}
    if (body.t_max_predict_ms or 0) > 0 and "deadline_ms" not in body.given:
        milliseconds = (body.t_max_predict_ms or 0) + max(0.0, body.t_max_prompt_ms)
        deadline = {"deadline_ms": milliseconds, "deadline_at": "line"}
    probabilities = min(body.n_probs, 100) if body.n_probs > 0 else None
    return body.params(default_max_tokens=info.default_max_tokens, logprobs=probabilities, **deadline)


def _exchange(body: InfillBody, request: CompletionRequest, info: ServerInfo) -> "InfillExchange":
    is_warm_up = body.given.get("max_tokens") == 0
    if is_warm_up and not (request.prefix or request.suffix or request.tokens):
        request = replace(request, tokens=(info.tokenizer.sentinels.eos,))  # a warm-up of nothing
    return InfillExchange(
        [request],
        body.stream,
        info,
        is_warm_up=is_warm_up,
        returns_tokens=body.return_tokens,
        wanted=body.response_fields,
    )


@dataclass
class _Sent:
    """What was sent of a sample."""

    text: str = ""
    tokens: tuple[int, ...] = ()


@dataclass
class InfillExchange:
    """One request of `/completion` or `/infill` and the format of its answer."""

    requests: Sequence[CompletionRequest]
    is_stream: bool
    info: ServerInfo
    is_warm_up: bool = False  # only the cache matters
    returns_tokens: bool = False
    wanted: tuple[str, ...] = ()  # fields to answer with, such as "timings/prompt_n"; all if empty
    media_type: str = "text/event-stream"
    _sent: dict[int, _Sent] = field(default_factory=dict)

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        answers = [self._answer(one) for one in samples[0]]
        return answers[0] if len(answers) == 1 else list(answers)

    def events(self, position: int, chunk: Chunk) -> Iterator[str]:
        sent = self._sent.setdefault(chunk.index, _Sent())
        if self.is_warm_up:
            chunk = replace(chunk, text="", tokens=(), logprobs=())
        sent.text += chunk.text
        sent.tokens += chunk.tokens
        if chunk.text or chunk.tokens:
            yield sse(self._part(chunk, len(sent.tokens)))
        if chunk.usage is not None and chunk.finish_reason is not None:
            last = self._last(
                chunk.index, sent.text, sent.tokens, chunk.finish_reason, chunk.stop, chunk.usage
            )
            yield sse(last | {"content": "", "tokens": []})

    def end(self) -> str:
        return ""

    def failure(self, problem: StarcoderError) -> str:
        return sse(error(problem))

    def _answer(self, one: Completion) -> dict[str, object]:
        text, tokens = ("", ()) if self.is_warm_up else (one.text, one.tokens)
        answer = self._last(one.index, text, tokens, one.finish_reason, one.stop, one.usage)
        if one.logprobs and not self.is_warm_up:
            answer["completion_probabilities"] = [self._probability(token) for token in one.logprobs]
        return selected(answer, self.wanted) if self.wanted else answer

    def _part(self, chunk: Chunk, num_tokens: int) -> dict[str, object]:
        part: dict[str, object] = {
            "index": chunk.index,
            "content": chunk.text,
            "tokens": list(chunk.tokens),
            "stop": False,
            "id_slot": 0,
            "tokens_predicted": num_tokens,
        }
        if chunk.logprobs:
            part["completion_probabilities"] = [self._probability(token) for token in chunk.logprobs]
        return part

    def _last(
        self,
        index: int,
        text: str,
        tokens: Sequence[int],
        finish: FinishReason,
        stop: str | int | None,
        usage: Usage,
    ) -> dict[str, object]:
        params = self.requests[0].sampling
        return {
            "index": index,
            "content": text,
            "tokens": list(tokens) if self.returns_tokens else [],
            "id_slot": 0,
            "stop": True,
            "model": self.info.model,
            "tokens_predicted": len(tokens),
            "tokens_evaluated": usage.prompt_tokens,
            "tokens_cached": usage.prompt_tokens + max(0, len(tokens) - 1),
            "generation_settings": _settings(params),
            "prompt": "",
            "has_new_line": "\n" in text,
            "truncated": False,
            "stop_type": _STOP_TYPES[finish],
            "stopping_word": stop if isinstance(stop, str) else "",
            "timings": timings(usage, len(tokens)),
        }

    def _probability(self, token: TokenLogprob) -> dict[str, object]:
        top = [
            {"id": id, "token": self.info.tokenizer.token_text(id), "logprob": value}
            for id, value in token.top
        ]
        return {"id": token.token, "token": token.text, "logprob": token.logprob, "top_logprobs": top}


def _settings(params: SamplingParams) -> dict[str, object]:
    names = ("temperature", "top_k", "top_p", "frequency_penalty", "presence_penalty", "seed", "ignore_eos")
    return {name: getattr(params, name) for name in names} | {
        "n_predict": params.max_tokens,
        "stop": list(params.stop),
        "repeat_penalty": params.repetition_penalty,
    }


def timings(usage: Usage, num_tokens: int) -> dict[str, float]:
    """`prompt_n` is what was really prefilled, `cache_n` what came from the cache."""
    num_prompt = usage.prompt_tokens - usage.cached_tokens

    def per(milliseconds: float, count: int) -> tuple[float, float]:
        return milliseconds / max(1, count), 1000 * count / milliseconds if milliseconds else 0.0

    prompt_each, prompt_rate = per(usage.prefill_ms, num_prompt)
    each, rate = per(usage.decode_ms, num_tokens)
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": num_prompt,
        "prompt_ms": usage.prefill_ms,
        "prompt_per_token_ms": prompt_each,
        "prompt_per_second": prompt_rate,
        "predicted_n": num_tokens,
        "predicted_ms": usage.decode_ms,
        "predicted_per_token_ms": each,
        "predicted_per_second": rate,
    }


def selected(answer: dict[str, object], wanted: Sequence[str]) -> dict[str, object]:
    """Only these fields; `timings/prompt_n` reaches into an object and stays the name of the field."""
    found: dict[str, object] = {}
    for name in wanted:
        value: object = answer
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return found


class TokenizeBody(Body):
    """Body of llama.cpp's `/tokenize`."""

    content: str = Field(default="", validation_alias=AliasChoices("content", "prompt"))
    messages: tuple[chat.TurnBody, ...] = ()
    parse_special: bool = True
    with_pieces: bool = False


class TemplateBody(Body):
    """Body of `/apply-template`."""

    messages: list[chat.TurnBody]


def apply_template(data: object, info: ServerInfo) -> Json:
    """`/apply-template`: the prompt of a chat as text. Raises: HTTPError, RequestError."""
    body = chat.ChatBody.read(data)
    request = chat.ask(body, [turn.message() for turn in body.messages], info)
    return {"prompt": info.tokenizer.decode(request.tokens or ())}


def slots(info: ServerInfo, num_slots: int, num_running: int) -> Json:
    """`/slots`: as many are busy as sequences run; nothing of a prompt is shown."""
    return [
        {"id": number, "n_ctx": info.context_length, "is_processing": number < num_running}
        for number in range(num_slots)
    ]


class DetokenizeBody(Body):
    """Body of `/detokenize`."""

    tokens: TokenIds = Field(default=[])


def tokenize(data: object, info: ServerInfo) -> Json:
    """`/tokenize`. Raises: HTTPError, RequestError: not a text."""
    body = TokenizeBody.read(data)
    tokenizer = info.tokenizer
    ids = (
        tokenizer.encode_with_special(body.content) if body.parse_special else tokenizer.encode(body.content)
    )
    if body.messages:  # vLLM's
        ids = list(
            chat.ask(chat.ChatBody.read(data), [one.message() for one in body.messages], info).tokens or ()
        )
    if isinstance(data, dict) and ("prompt" in data or body.messages):
        return {"tokens": list(ids), "count": len(ids), "max_model_len": info.context_length}
    if not body.with_pieces:
        return {"tokens": list(ids)}
    return {"tokens": [{"id": id, "piece": _piece(tokenizer.token_bytes(id))} for id in ids]}


def _piece(data: bytes) -> object:
    """Text where it is text, else bytes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


def detokenize(data: object, info: ServerInfo) -> Json:
    """`/detokenize`. Raises: HTTPError: not token ids."""
    return {"content": info.tokenizer.decode(DetokenizeBody.read(data).tokens)}


def props(info: ServerInfo, num_slots: int) -> Json:
    """`/props`."""
    return {
        "default_generation_settings": {"n_ctx": info.context_length, "params": {}},
        "total_slots": num_slots,
        "model_path": info.model,
        "chat_template": info.chat.source if info.chat else "",
        "modalities": {"vision": False, "audio": False},
        "build_info": "starcoder",
    }
