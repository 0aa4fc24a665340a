"""Chat: OpenAI's `/v1/chat/completions`. Limits: text only."""

import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Annotated, Any

from pydantic import BeforeValidator

from starcoder.chat import INSTRUCT_MODELS, Message, base_model, with_tool_prompt
from starcoder.errors import StarcoderError
from starcoder.request import Chunk, Completion, CompletionRequest, FinishReason, TokenLogprob, Usage
from starcoder.server import openai
from starcoder.server.codec import (
    Body,
    CompletionFields,
    HTTPError,
    Json,
    ServerInfo,
    sse,
)
from starcoder.server.tools import Call, CallReader, Tools

_MAX_TEMPLATE_S = 5.0


def joined(content: object) -> object:
    """The text of a message that comes in parts. Raises: ValueError: a part that is no text."""
    if not isinstance(content, list):
        return content
    kinds = [part.get("type", "text") for part in content if isinstance(part, dict) and "text" not in part]
    if kinds or not all(isinstance(part, dict) for part in content):
        raise ValueError(f"this model reads text only, not {', '.join(map(str, kinds)) or 'this'}")
    return "".join(str(part["text"]) for part in content)


class TurnBody(Body):
    role: str
    content: Annotated[str, BeforeValidator(joined)] = ""
    tool_calls: tuple[Any, ...] = ()
    function_call: dict[str, Any] | None = None  # OpenAI's form before there were tools

    def message(self) -> Message:
        """The message as templates know it."""
        message = self.model_dump(exclude_defaults=True, exclude={"function_call"}) | {
            "content": self.content
        }
        if self.function_call is not None:
            message["tool_calls"] = [{"type": "function", "function": self.function_call}]
        return message


class ChatBody(CompletionFields, wire={"max_tokens": ("max_completion_tokens", "max_tokens", "n_predict")}):
    """Body of `/v1/chat/completions`."""

    model: str = ""
    messages: list[TurnBody]
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: tuple[Any, ...] = ()
    tool_choice: dict[str, Any] | str | None = None
    parallel_tool_calls: bool = True
    functions: tuple[Any, ...] = ()
    function_call: dict[str, Any] | str | None = None
    stream: bool = False
    stream_options: openai.StreamOptions = openai.StreamOptions()


def read(data: object, info: ServerInfo) -> "ChatExchange":
    """Parse a chat request. Raises: HTTPError, RequestError: what is wrong with it."""
    body = ChatBody.read(data)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    is_legacy = bool(body.functions) and not body.tools
    tools = Tools.read(
        body.functions if is_legacy else body.tools,
        body.function_call if is_legacy else body.tool_choice,
        is_parallel=body.parallel_tool_calls and not is_legacy,
        is_closed=info.closed_objects,
    )
    request = ask(body, [turn.message() for turn in body.messages], info, tools, logprobs=logprobs)
    return ChatExchange(
        [request],
        body.stream,
        info,
        body.stream_options.include_usage,
        tools,
        is_legacy=is_legacy,
        is_warm_up=body.given.get("max_tokens") == 0,
    )


def ask(
    body: CompletionFields,
    turns: Sequence[Message],
    info: ServerInfo,
    tools: Tools | None = None,
    *,
    logprobs: int | None = None,
    **changes: Any,
) -> CompletionRequest:
    """The request for the next turn of the assistant; no limit means what the context leaves.

    Raises:
        HTTPError: a base model, no messages, or both tools and a form of the answer.
    """
    chat = info.chat
    if chat is None:
        raise HTTPError(
            base_model(info.model),
            f"serve an instruct model, such as {INSTRUCT_MODELS}, or choose --chat-template",
        )
    if not turns:
        raise HTTPError("`messages` is empty", "send at least one")
    changes["stop"] = (*body.given.get("stop", ()), *chat.stops(info.tokenizer))
    params = body.params(default_max_tokens=info.context_length, logprobs=logprobs, **changes)
    if tools is not None:
        if params.grammar is not None:
            raise HTTPError("`tools` and a form of the answer exclude each other", "send one of the two")
        turns = with_tool_prompt(turns, tools.instructions())
        params = replace(params, grammar=tools.grammar(), ignore_eos=False)
    with time_limit(_MAX_TEMPLATE_S):
        tokens = chat.encode_prompt(turns, info.tokenizer)
    return body.encoded(tokens, params)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends Python code of this thread that runs for longer, such as the loops of a template.

    Raises:
        HTTPError: the time is over.
    """
    end, before = time.monotonic() + seconds, sys.gettrace()

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if time.monotonic() > end:
            raise HTTPError(
                f"the chat template ran for more than {seconds:.0f} s", "send shorter messages", status=422
            )
        return trace if frame.f_code.co_filename == "<template>" else None

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@dataclass
class ChatExchange:
    """One chat request and the format of its answer."""

    requests: Sequence[CompletionRequest]
    is_stream: bool
    info: ServerInfo
    has_usage_chunk: bool = False
    tools: Tools | None = None
    media_type: str = "text/event-stream"
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4()}")
    created: int = field(default_factory=lambda: int(time.time()))
    _usage: Usage | None = None
    _num_tokens: int = 0
    is_legacy: bool = False  # the call is a `function_call`
    is_warm_up: bool = False  # only the cache matters
    _begun: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._calls = CallReader(self.tools)

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        choices = [self._choice(one) for one in samples[0]]
        self._num_tokens = sum(len(one.tokens) for one in samples[0])
        self._usage = samples[0][0].usage
        return self._head("chat.completion") | {"choices": choices} | self._costs()

    def _choice(self, one: Completion) -> dict[str, Any]:
        text, calls = CallReader(self.tools).push(0, "" if self.is_warm_up else one.text, is_last=True)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message |= {"content": None, **self._format_calls(calls)}
        return {
            "index": one.index,
            "message": message,
            "logprobs": self._logprobs(one.logprobs),
            "finish_reason": self._finish(one.finish_reason, calls),
        }

    def _format_calls(self, calls: Sequence[Call], *, is_part: bool = False) -> dict[str, Any]:
        if self.is_legacy:
            return {"function_call": calls[0].openai()["function"]}
        numbered = [{"index": number} if is_part else {} for number in range(len(calls))]
        return {"tool_calls": [at | call.openai() for at, call in zip(numbered, calls, strict=True)]}

    def _finish(self, reason: FinishReason, calls: Sequence[Call]) -> str:
        if not calls:
            return openai.FINISH[reason]
        return "function_call" if self.is_legacy else "tool_calls"

    def events(self, position: int, chunk: Chunk) -> Iterator[str]:
        self._num_tokens += len(chunk.tokens)
        self._usage = chunk.usage or self._usage
        delta: dict[str, Any] = {}
        if chunk.index not in self._begun:
            self._begun.add(chunk.index)
            delta |= {"role": "assistant", "content": ""}
        reason = chunk.finish_reason
        text, calls = self._calls.push(
            chunk.index, "" if self.is_warm_up else chunk.text, is_last=reason is not None
        )
        if text:
            delta["content"] = text
        if calls:
            delta |= self._format_calls(calls, is_part=True)
        if delta or reason or chunk.logprobs:
            choice = {
                "index": chunk.index,
                "delta": delta,
                "logprobs": self._logprobs(chunk.logprobs),
                "finish_reason": None if reason is None else self._finish(reason, calls),
            }
            usage = {"usage": None} if self.has_usage_chunk else {}
            yield sse(self._head("chat.completion.chunk") | {"choices": [choice]} | usage)

    def end(self) -> str:
        if not self.has_usage_chunk:
            return "data: [DONE]\n\n"
        return sse(self._head("chat.completion.chunk") | {"choices": []} | self._costs()) + "data: [DONE]\n\n"

    def failure(self, problem: StarcoderError) -> str:
        return sse(openai.error(problem)) + "data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.info.model}

    def _costs(self) -> dict[str, Any]:
        usages = [] if self._usage is None else [self._usage]
        return {"usage": openai.usage(usages, self._num_tokens), "timings": openai.timings(usages)}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        def entry(id: int, value: float) -> dict[str, Any]:
            tokenizer = self.info.tokenizer
            data = tokenizer.token_bytes(id)
            return {"token": tokenizer.token_text(id), "logprob": value, "bytes": list(data)}

        if not tokens:
            return None
        content = [
            entry(one.token, one.logprob) | {"top_logprobs": [entry(id, value) for id, value in one.top]}
            for one in tokens
        ]
        return {"content": content, "refusal": None}
