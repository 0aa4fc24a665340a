"""Chat: OpenAI's `/v1/chat/completions`. Limits: text only."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BeforeValidator

from starcoder.chat import INSTRUCT_MODELS, Message, base_model, with_tool_prompt
from starcoder.errors import StarcoderError
from starcoder.request import Chunk, Completion, CompletionRequest, TokenLogprob, Usage
from starcoder.server import openai
from starcoder.server.codec import (
    Body,
    CompletionFields,
    HTTPError,
    Json,
    ServerInfo,
    sse,
)
from starcoder.server.tools import Tools


def _joined(content: object) -> object:
    """The text of a message that comes in parts."""
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        return "".join(str(part["text"]) for part in content)
    return content


class TurnBody(Body):
    role: str
    content: Annotated[str, BeforeValidator(_joined)] = ""
    tool_calls: tuple[Any, ...] = ()


class ChatBody(CompletionFields, wire={"max_tokens": ("max_completion_tokens",)}):
    """Body of `/v1/chat/completions`."""

    model: str = ""
    messages: list[TurnBody]
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: tuple[Any, ...] = ()
    tool_choice: dict[str, Any] | str | None = None
    stream: bool = False
    stream_options: openai.StreamOptions = openai.StreamOptions()


def read(data: object, info: ServerInfo) -> "ChatExchange":
    """Parse a chat request. Raises: HTTPError, RequestError: what is wrong with it."""
    body = ChatBody.read(data)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    turns: list[Message] = [turn.model_dump() for turn in body.messages]
    tools = Tools.read(body.tools, body.tool_choice)
    if tools is not None:
        turns = with_tool_prompt(turns, tools.instructions()) if turns else turns
    request = ask(body, turns, info, logprobs=logprobs)
    if tools is not None and request.sampling.grammar is not None:
        raise HTTPError("`tools` and a form of the answer exclude each other", "send one of the two")
    if tools is not None:
        sampling = replace(request.sampling, grammar=tools.grammar(), ignore_eos=False)
        request = replace(request, sampling=sampling)
    return ChatExchange([request], body.stream, info, body.stream_options.include_usage, tools)


def ask(
    body: CompletionFields,
    turns: Sequence[Message],
    info: ServerInfo,
    *,
    logprobs: int | None = None,
    **changes: Any,
) -> CompletionRequest:
    """The request for the next turn of the assistant. Raises: HTTPError: a base model, or no messages."""
    chat = info.chat
    if chat is None:
        raise HTTPError(
            base_model(info.model),
            f"serve an instruct model, such as {INSTRUCT_MODELS}, or choose --chat-template",
        )
    if not turns:
        raise HTTPError("`messages` is empty", "send at least one")
    changes["stop"] = (*body.given.get("stop", ()), *chat.stops(info.tokenizer))
    params = body.params(default_max_tokens=info.default_max_tokens, logprobs=logprobs, **changes)
    return body.encoded(chat.encode_prompt(turns, info.tokenizer), params)


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
    _begun: set[int] = field(default_factory=set)
    _held: dict[int, str] = field(default_factory=dict)  # what may become a call, of each choice
    _free: set[int] = field(default_factory=set)  # choices that are plain text

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        choices = [self._choice(one) for one in samples[0]]
        self._num_tokens = sum(len(one.tokens) for one in samples[0])
        self._usage = samples[0][0].usage
        return self._head("chat.completion") | {"choices": choices} | self._costs()

    def _choice(self, one: Completion) -> dict[str, Any]:
        call = self.tools.call(one.text) if self.tools is not None else None
        message: dict[str, Any] = {"role": "assistant", "content": one.text}
        if call is not None:
            message |= {"content": None, "tool_calls": [call]}
        return {
            "index": one.index,
            "message": message,
            "logprobs": self._logprobs(one.logprobs),
            "finish_reason": openai.FINISH[one.finish_reason] if call is None else "tool_calls",
        }

    def events(self, position: int, chunk: Chunk) -> Iterator[str]:
        self._num_tokens += len(chunk.tokens)
        self._usage = chunk.usage or self._usage
        delta: dict[str, Any] = {}
        if chunk.index not in self._begun:
            self._begun.add(chunk.index)
            delta["role"] = "assistant"
            delta["content"] = ""
        text, call = self._split(chunk)
        if text:
            delta["content"] = text
        finish = None if chunk.finish_reason is None else openai.FINISH[chunk.finish_reason]
        if call is not None:
            delta["tool_calls"] = [{"index": 0, **call}]
            finish = "tool_calls"
        if delta or finish or chunk.logprobs:
            choice = {
                "index": chunk.index,
                "delta": delta,
                "logprobs": self._logprobs(chunk.logprobs),
                "finish_reason": finish,
            }
            usage = {"usage": None} if self.has_usage_chunk else {}
            yield sse(self._head("chat.completion.chunk") | {"choices": [choice]} | usage)

    def _split(self, chunk: Chunk) -> tuple[str, dict[str, Any] | None]:
        """What of a chunk is text for the client, and the call that it completes: a call comes whole."""
        if self.tools is None:
            return chunk.text, None
        held = self._held.pop(chunk.index, "") + chunk.text
        if held and not held.startswith("{"):
            self._free.add(chunk.index)
        if chunk.index in self._free:
            return held, None
        if chunk.finish_reason is None:
            self._held[chunk.index] = held
            return "", None
        call = self.tools.call(held)
        return ("", call) if call is not None else (held, None)

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
