"""Text Generation Inference: `/generate`, `/generate_stream`, `/`, `/tokenize`, `/info`, `/invocations`.

Lenient by default: temperature 0 is greedy, top_p 1 is off, any number of stop strings, and these are cut
from the text. With `tgi-strict` its own limits, messages and texts. Limits: no log-probabilities of the
prompt, no watermarks or `typical_p` (accepted, without effect).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from secrets import randbits
from typing import Any

from starcoder import __version__
from starcoder.errors import CapacityError, StarcoderError
from starcoder.request import Chunk, Completion, CompletionRequest, FinishReason, SamplingParams, TokenLogprob
from starcoder.server.codec import (
    Body,
    CompletionFields,
    ErrorFormat,
    HTTPError,
    Json,
    ServerInfo,
    at_most,
    format_error,
    sse,
)

MAX_BEST_OF, MAX_STOPS, MAX_TOP_TOKENS, MAX_BATCH = 2, 4, 5, 4  # TGI's own defaults

_WARPERS = ("temperature", "top_k", "top_p")

_FINISH: dict[FinishReason, str] = {
    "eos": "eos_token",
    "stop": "stop_sequence",
    "length": "length",
    "deadline": "length",
    "abort": "length",
    "error": "length",
}


class Parameters(CompletionFields, wire={"max_tokens": ("max_new_tokens",)}):
    """`parameters` of a request."""

    best_of: int | None = None
    do_sample: bool = False
    typical_p: float | None = None
    return_full_text: bool | None = None
    truncate: int | None = None
    details: bool = False
    decoder_input_details: bool = False
    top_n_tokens: int | None = None


class GenerateBody(Body):
    """Body of `/generate` and `/generate_stream`; `stream` counts at `/`."""

    inputs: str
    parameters: Parameters = Parameters()
    stream: bool = False


def error(problem: StarcoderError) -> Json:
    status = ERRORS.status(problem)
    if isinstance(problem, CapacityError):
        return {"error": "Model is overloaded", "error_type": "overloaded"}
    kind = problem.kind if isinstance(problem, HTTPError) else "validation"
    prefix = "Input validation error: " if kind == "validation" and status in (400, 422) else ""
    return {"error": f"{prefix}{format_error(problem)}", "error_type": kind}


ERRORS = ErrorFormat(error, invalid=422)


def read_generate(
    data: object, info: ServerInfo, *, is_stream: bool | None = None, is_compat: bool = False
) -> "GenerateExchange":
    """Parse a generate request. `is_stream` None reads it from the body; `is_compat` answers with a list.

    Raises:
        HTTPError: a field is missing, of the wrong type, or against TGI's rules where these are on.
        RequestError: a value is out of its range.
    """
    if isinstance(data, dict) and not isinstance(data.get("parameters"), dict):
        data = data | {"parameters": {}, "_has_no_parameters": True}
    body = GenerateBody.read(data, status=422)
    options = body.parameters
    stream = body.stream if is_stream is None else is_stream
    if info.compat == "tgi-strict":
        assert isinstance(data, dict), "a body was read"
        _check(body, stream, info)
        if "_has_no_parameters" in data:
            options = options.model_copy(update={"do_sample": True})
        options = options.model_copy(update={"heal": False})  # TGI does not
    params = _params(options, stream, info)
    text = _truncated(body.inputs, options.truncate, info)
    request = options.prompt_request(text, params, info)
    returns_all = options.return_full_text
    if returns_all is None:
        returns_all = is_compat and info.compat == "tgi-strict"
    return GenerateExchange(
        [request],
        stream,
        info,
        inputs=body.inputs if returns_all else "",
        has_details=options.details or options.decoder_input_details,
        has_prefill=options.decoder_input_details,
        is_compat=is_compat,
    )


def _params(options: Parameters, is_stream: bool, info: ServerInfo) -> SamplingParams:
    best_of = options.best_of or 1
    at_most(best_of, "samples (`best_of`)")
    given = options.given
    has_warpers = given.get("top_k", 0) > 0 or given.get("top_p", 1) < 1
    changes: dict[str, Any] = {"n": 1 if is_stream else best_of}
    if options.do_sample or has_warpers or best_of > 1:
        changes["temperature"] = given.get("temperature", 1.0)
    if changes.get("temperature", given.get("temperature", 0)) > 0 and "seed" not in given:
        changes["seed"] = randbits(63)  # TGI reports the seed that it drew
    logprobs = options.top_n_tokens or (0 if is_stream or options.details or best_of > 1 else None)
    most = info.context_length if info.compat == "tgi-strict" else info.default_max_tokens
    return options.params(default_max_tokens=most, logprobs=logprobs, **changes)


def _truncated(text: str, limit: int | None, info: ServerInfo) -> str:
    """The last `limit` tokens, as TGI has it; the planner mends what that cuts off an infilling prompt."""
    if not limit or limit < 0:
        return text
    ids = info.tokenizer.encode_with_special(text)
    return text if len(ids) <= limit else info.tokenizer.decode(ids[-limit:])


def _check(body: GenerateBody, is_stream: bool, info: ServerInfo) -> None:
    """TGI's rules, in its order.

    Raises:
        HTTPError: with TGI's message.
    Source: huggingface/text-generation-inference: router/src/validation.rs (serving facts 1.2).
    """
    o, given = body.parameters, body.parameters.given
    best_of, stops = o.best_of if o.best_of is not None else 1, len(given.get("stop", ()))
    is_sampled = o.do_sample or o.typical_p is not None or not given.keys().isdisjoint(_WARPERS)
    top_n, most = o.top_n_tokens or 0, info.context_length
    size, new = len(info.tokenizer.encode_with_special(body.inputs)), given.get("max_tokens")
    rules: list[tuple[bool, str]] = [
        (not 0 < best_of <= MAX_BEST_OF, f"`best_of` must be > 0 and <= {MAX_BEST_OF}. Given: {best_of}"),
        (best_of > 1 and not is_sampled, "you must use sampling when `best_of` is > 1"),
        (best_of > 1 and "seed" in given, "`seed` must not be set when `best_of` > 1"),
        (is_stream and best_of != 1, "`best_of` != 1 is not supported when streaming tokens"),
        (
            is_stream and o.decoder_input_details,
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
        (given.get("temperature", 1) <= 0, "`temperature` must be strictly positive"),
        (
            given.get("repetition_penalty", 1) <= 0,
            "`repetition_penalty` must be strictly positive",
        ),
        (abs(given.get("frequency_penalty", 0)) > 2, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
        ("top_p" in given and not 0 < given["top_p"] < 1, "`top_p` must be > 0.0 and < 1.0"),
        (o.typical_p is not None and not 0 < o.typical_p < 1, "`typical_p` must be > 0.0 and < 1.0"),
        (given.get("top_k", 1) <= 0, "`top_k` must be strictly positive"),
        (new is not None and new <= 0, "`max_new_tokens` must be strictly positive"),
        (stops > MAX_STOPS, f"`stop` supports up to {MAX_STOPS} stop sequences. Given: {stops}"),
        (
            not 0 <= top_n <= MAX_TOP_TOKENS,
            f"`top_n_tokens` must be >= 0 and <= {MAX_TOP_TOKENS}. Given: {top_n}",
        ),
        (not body.inputs, "`inputs` cannot be empty"),
        (
            o.truncate is not None and not 0 < o.truncate < most,
            f"`truncate` must be strictly positive and less than {most}. Given: {o.truncate}",
        ),
        (
            new is not None and min(size, o.truncate or size) + new > most,
            f"`inputs` tokens + `max_new_tokens` must be <= {most}. Given: {size} `inputs` tokens and {new}"
            " `max_new_tokens`",
        ),
        (
            _lacks_properties(o.grammar),
            "grammar is not valid: Grammar must have a 'properties' field",
        ),
        (
            min(size, o.truncate or size) >= most,
            f"`inputs` must have less than {most} tokens. Given: {size}",
        ),
    ]
    for is_broken, message in rules:
        if is_broken:
            raise HTTPError(message, status=422)


def _lacks_properties(grammar: dict[str, Any] | str | None) -> bool:
    if not isinstance(grammar, dict) or grammar.get("type") != "json":
        return False
    value = grammar.get("value")
    return not (isinstance(value, dict) and "properties" in value)


@dataclass
class GenerateExchange:
    """One generate request and the format of its answer."""

    requests: Sequence[CompletionRequest]
    is_stream: bool
    info: ServerInfo
    inputs: str = ""  # to put before the whole text
    has_details: bool = False
    has_prefill: bool = False
    is_compat: bool = False  # answered with a list
    media_type: str = "text/event-stream"
    _text: str = ""
    _num_events: int = 0
    _num_tokens: int = 0
    _last_token: int = 0

    @property
    def _seed(self) -> int | None:
        params = self.requests[0].sampling
        return params.seed if params.temperature > 0 else None

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        best, *others = sorted(samples[0], key=lambda one: -sum(token.logprob for token in one.logprobs))
        answer: dict[str, object] = {"generated_text": self.inputs + _text(best, self.info)}
        if self.has_details:
            details = self._details(best)
            if others:
                details["best_of_sequences"] = [
                    {"generated_text": self.inputs + _text(one, self.info)} | self._details(one)
                    for one in others
                ]
            answer["details"] = details
        return [answer] if self.is_compat else answer

    def events(self, position: int, chunk: Chunk) -> Iterator[str]:
        text = chunk.text
        if self.info.compat == "tgi-strict" and isinstance(chunk.stop, str):
            text += chunk.stop
        self._text += text
        self._num_tokens += len(chunk.tokens)
        tokens = [self._token(token) for token in chunk.logprobs]
        if tokens:
            tokens[-1]["text"] = text  # what this token adds; on its own it may be half a character
            self._last_token = chunk.tokens[-1]
        elif text or (chunk.finish_reason is not None and chunk.finish_reason != "eos"):
            tokens = [{"id": self._last_token, "text": text, "logprob": None, "special": False}]
        if chunk.finish_reason == "eos":
            eos = self.info.tokenizer.sentinels.eos
            end = self.info.tokenizer.token_text(eos)
            tokens.append({"id": eos, "text": end, "logprob": None, "special": True})
        for at, token in enumerate(tokens):
            top = [self._top(one) for one in chunk.logprobs] if chunk.logprobs and at == 0 else []
            yield self._event(token, top, chunk if at == len(tokens) - 1 else None)

    def _event(
        self, token: dict[str, object], top: list[list[dict[str, object]]], chunk: Chunk | None
    ) -> str:
        self._num_events += 1
        event: dict[str, object] = {"index": self._num_events, "token": token}
        if top and top[0]:
            event["top_tokens"] = top[0]
        event |= {"generated_text": None, "details": None}
        if chunk and chunk.finish_reason is not None and chunk.usage is not None:
            event["generated_text"] = self.inputs + self._text
            if self.has_details:
                event["details"] = {
                    "finish_reason": _FINISH[chunk.finish_reason],
                    "generated_tokens": self._num_tokens + (chunk.finish_reason == "eos"),
                    "seed": self._seed,
                    "input_length": chunk.usage.prompt_tokens,
                }
        return sse(event, space="")

    def end(self) -> str:
        return ""

    def failure(self, problem: StarcoderError) -> str:
        return sse(error(problem), space="")

    def _details(self, one: Completion) -> dict[str, object]:
        tokenizer = self.info.tokenizer
        details: dict[str, object] = {
            "finish_reason": _FINISH[one.finish_reason],
            "generated_tokens": len(one.tokens) + (one.finish_reason == "eos"),
            "seed": self._seed,
            "prefill": [],
            "tokens": [self._token(token) for token in one.logprobs],
        }
        if self.has_prefill:
            request = self.requests[0]
            ids = request.tokens or tokenizer.encode(request.prefix)
            details["prefill"] = [{"id": id, "text": tokenizer.token_text(id), "logprob": None} for id in ids]
        if any(token.top for token in one.logprobs):
            details["top_tokens"] = [self._top(token) for token in one.logprobs]
        return details

    def _token(self, token: TokenLogprob) -> dict[str, object]:
        return {"id": token.token, "text": token.text, "logprob": token.logprob, "special": False}

    def _top(self, token: TokenLogprob) -> list[dict[str, object]]:
        text = self.info.tokenizer.token_text
        return [{"id": id, "text": text(id), "logprob": value, "special": False} for id, value in token.top]


def _text(completion: Completion, info: ServerInfo) -> str:
    """The text of a sample; with TGI's own rules the stop string stays in it."""
    keeps_stop = info.compat == "tgi-strict" and isinstance(completion.stop, str)
    return completion.text + str(completion.stop) if keeps_stop else completion.text


def tokenize(data: object, info: ServerInfo) -> Json:
    """`/tokenize`: ids with their text and where in the input they stand, in bytes. Raises: HTTPError."""
    body = GenerateBody.read(data, status=422)
    tokenizer, start, found = info.tokenizer, 0, []
    for id in tokenizer.encode_with_special(body.inputs):
        stop = start + len(tokenizer.token_bytes(id))
        found.append({"id": id, "text": tokenizer.token_text(id), "start": start, "stop": stop})
        start = stop
    return list(found)


def info(info: ServerInfo, max_requests: int) -> Json:
    """`/info`."""
    return {
        "model_id": info.model,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": max_requests,
        "max_best_of": MAX_BEST_OF,
        "max_stop_sequences": MAX_STOPS,
        "max_input_tokens": info.context_length - 1,
        "max_total_tokens": info.context_length,
        "validation_workers": 1,
        "max_client_batch_size": MAX_BATCH,
        "router": "starcoder",
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }
