"""Chat: OpenAI's `/v1/chat/completions`, and the templates that turn messages into a prompt.

A checkpoint's own template comes first: `chat_template` (jinja, sandboxed) or StarChat's
`dialogue_template.json`. Text of a message can never become a special token. Limits: text only, and no
tools yet.
"""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field

from starcoder.errors import ConfigError, StarcoderError
from starcoder.request import Chunk, Completion, CompletionRequest, TokenLogprob, Usage
from starcoder.server import openai
from starcoder.server.exchange import Facts, Json, Refusal
from starcoder.server.fields import Body, Common, at_most
from starcoder.server.sse import sse

if TYPE_CHECKING:
    from starcoder.tokenizer import Tokenizer

Turns = Sequence[dict[str, str]]  # role, content


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    """StarChat's template: tokens around each turn. Source: the keys of a `dialogue_template.json`."""

    system: str = ""
    system_token: str = "<|system|>"
    user_token: str = "<|user|>"
    assistant_token: str = "<|assistant|>"
    end_token: str = "<|end|>"

    def render(self, turns: Turns) -> str:
        """The prompt up to where the assistant begins; training had a line end after its token."""
        first = turns[0]["content"] if turns and turns[0]["role"] == "system" else self.system
        rest = [turn for turn in turns if turn["role"] != "system"]
        tokens = {"user": self.user_token, "assistant": self.assistant_token}
        said = [(self.system_token, first)]
        said += [(tokens.get(turn["role"], self.user_token), turn["content"]) for turn in rest]
        return "".join(f"{token}\n{text}{self.end_token}\n" for token, text in said) + (
            f"{self.assistant_token}\n"
        )


# Source: bigcode-project/starcoder: chat/dialogues.py; the texts are part of what was trained.
DIALOGUES = {
    "no_system": Dialogue(),
    "default": Dialogue(
        system="Below is a dialogue between a human user and an AI assistant. The assistant is happy to help "
        "with almost anything, and will do its best to understand exactly what is needed."
    ),
    "alpaca": Dialogue(
        system="Below is an instruction that describes a task. Write a response that appropriately completes "
        "the request.",
        user_token="### Instruction:",
        assistant_token="### Response:",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatFormat:
    """How messages become a prompt, and what ends an answer."""

    render: Callable[[Turns], str]  # raises Refusal: the template refuses the messages
    source: str  # the template as `/props` shows it
    stop: tuple[str, ...] = ()

    @classmethod
    def find(cls, name: str | None, folder: Path, tokenizer: "Tokenizer") -> "ChatFormat | None":
        """By name or path of a jinja file; None takes what the checkpoint has, if anything.

        Raises:
            ConfigError: no such template, or not a valid one.
        """
        own = folder / "dialogue_template.json"
        if name in DIALOGUES:
            return cls.of_dialogue(DIALOGUES[name], tokenizer)
        if name is not None:
            try:
                return cls.of_jinja(Path(name).read_text("utf-8"), tokenizer)
            except (OSError, UnicodeDecodeError):
                raise ConfigError(
                    f"there is no chat template {name!r}",
                    f"give a jinja file, or one of {', '.join(DIALOGUES)}",
                ) from None
        if own.is_file():
            return cls.of_dialogue(_read_dialogue(own), tokenizer)
        return cls.of_jinja(tokenizer.chat_template, tokenizer) if tokenizer.chat_template else None

    @classmethod
    def of_dialogue(cls, dialogue: Dialogue, tokenizer: "Tokenizer") -> "ChatFormat":
        texts = (dialogue.end_token, dialogue.user_token)
        is_token = [len(tokenizer.encode_with_special(text)) == 1 for text in texts]
        stop = tuple(text for text, one in zip(texts, is_token, strict=True) if not one)
        return cls(render=dialogue.render, source=dialogue.render(()), stop=stop)

    @classmethod
    def of_jinja(cls, source: str, tokenizer: "Tokenizer") -> "ChatFormat":
        """Raises: ConfigError: the template is not valid."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise Refusal(f"the chat template refuses: {message}")

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        try:
            template = environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"the chat template is not valid: {error}", "choose another one") from None
        end = tokenizer.token_text(tokenizer.sentinels.eos)

        def render(turns: Turns) -> str:
            try:
                return template.render(
                    messages=[dict(turn) for turn in turns],
                    add_generation_prompt=True,
                    bos_token=end,
                    eos_token=end,
                )
            except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
                raise Refusal(f"the chat template cannot show these messages: {error}") from None

        return cls(render=render, source=source)


def _read_dialogue(path: Path) -> Dialogue:
    """Raises: ConfigError: not a dialogue template."""
    names = ("system", "system_token", "user_token", "assistant_token", "end_token")
    try:
        found = json.loads(path.read_text("utf-8"))
        return Dialogue(**{name: str(found[name]) for name in names if found.get(name) is not None})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{str(path)!r} is no dialogue template: {error}", "choose --chat-template"
        ) from None


def _joined(content: object) -> object:
    """The text of a message that comes in parts."""
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        return "".join(str(part["text"]) for part in content)
    return content


class Message(Body):
    role: str
    content: Annotated[str, BeforeValidator(_joined)] = ""


class ChatBody(Common):
    """Body of `/v1/chat/completions`."""

    model: str = ""
    messages: list[Message]
    max_tokens: int | None = Field(
        default=None, validation_alias=AliasChoices("max_completion_tokens", "max_tokens")
    )
    n: int = 1
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: tuple[Any, ...] = ()
    stream: bool = False
    stream_options: openai.StreamOptions = openai.StreamOptions()


def read(data: object, facts: Facts) -> "ChatExchange":
    """Parse a chat request. Raises: Refusal, RequestError: what is wrong with it."""
    body = ChatBody.read(data)
    at_most(max(1, body.n), "choices")
    wanted = facts.default_max_tokens if body.max_tokens is None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    request = ask(body, [turn.model_dump() for turn in body.messages], facts, wanted, body.n, logprobs)
    return ChatExchange([request], body.stream, facts, body.stream_options.include_usage)


def ask(
    body: Common, turns: Turns, facts: Facts, max_tokens: int, n: int = 1, logprobs: int | None = None
) -> CompletionRequest:
    """The request for the next turn of the assistant. Raises: Refusal: a base model, or no messages."""
    chat = facts.chat
    if chat is None:
        raise Refusal(
            f"{facts.model} is a base model: it completes code and has no chat template",
            "serve an instruct model, such as HuggingFaceH4/starchat-beta or "
            "bigcode/starcoder2-15b-instruct-v0.1, or choose --chat-template",
        )
    if not turns:
        raise Refusal("`messages` is empty", "send at least one")
    params = body.model_copy(update={"stop": [*body.stop, *chat.stop]}).params(
        max_tokens=max_tokens, n=n, logprobs=logprobs
    )
    return body.encoded(encode(turns, chat, facts.tokenizer), params)


# Private-use characters that stand for special tokens spelled in a message while the template runs.
_MARK = "\ue000\ue001\ue000"


def encode(turns: Turns, chat: ChatFormat, tokenizer: "Tokenizer") -> list[int]:
    """Ids of the messages in their template. What spells a special token in a message stays plain text."""
    special = re.compile("|".join(map(re.escape, sorted(tokenizer.special_texts, key=len, reverse=True))))
    spelled: list[str] = []

    def hide(match: re.Match[str]) -> str:
        spelled.append(match.group())
        return f"{_MARK}{len(spelled) - 1}{_MARK}"

    hidden = [
        {name: special.sub(hide, text.replace(_MARK, "")) for name, text in turn.items()} for turn in turns
    ]
    ids: list[int] = []
    for at, piece in enumerate(chat.render(hidden).split(_MARK)):
        ids += tokenizer.encode(spelled[int(piece)]) if at % 2 else tokenizer.encode_with_special(piece)
    return ids


@dataclass
class ChatExchange:
    """One chat request and the words of its answer."""

    requests: Sequence[CompletionRequest]
    is_stream: bool
    facts: Facts
    has_usage_chunk: bool = False
    media_type: str = "text/event-stream"
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4()}")
    created: int = field(default_factory=lambda: int(time.time()))
    _usage: Usage | None = None
    _num_tokens: int = 0
    _begun: set[int] = field(default_factory=set)

    def whole(self, samples: Sequence[Sequence[Completion]]) -> Json:
        choices = [
            {
                "index": one.index,
                "message": {"role": "assistant", "content": one.text},
                "logprobs": self._logprobs(one.logprobs),
                "finish_reason": openai.FINISH[one.finish_reason],
            }
            for one in samples[0]
        ]
        self._num_tokens = sum(len(one.tokens) for one in samples[0])
        self._usage = samples[0][0].usage
        return self._head("chat.completion") | {"choices": choices} | self._costs()

    def events(self, position: int, chunk: Chunk) -> Iterator[str]:
        self._num_tokens += len(chunk.tokens)
        self._usage = chunk.usage or self._usage
        delta: dict[str, str] = {}
        if chunk.index not in self._begun:
            self._begun.add(chunk.index)
            delta["role"] = "assistant"
            delta["content"] = ""
        if chunk.text:
            delta["content"] = chunk.text
        finish = None if chunk.finish_reason is None else openai.FINISH[chunk.finish_reason]
        if delta or finish or chunk.logprobs:
            choice = {
                "index": chunk.index,
                "delta": delta,
                "logprobs": self._logprobs(chunk.logprobs),
                "finish_reason": finish,
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
        return {"id": self.id, "object": kind, "created": self.created, "model": self.facts.model}

    def _costs(self) -> dict[str, Any]:
        usages = [] if self._usage is None else [self._usage]
        return {"usage": openai.usage(usages, self._num_tokens), "timings": openai.timings(usages)}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        def said(id: int, value: float) -> dict[str, Any]:
            tokenizer = self.facts.tokenizer
            data = tokenizer.token_bytes(id)
            return {"token": tokenizer.token_text(id), "logprob": value, "bytes": list(data)}

        if not tokens:
            return None
        content = [
            said(one.token, one.logprob) | {"top_logprobs": [said(id, value) for id, value in one.top]}
            for one in tokens
        ]
        return {"content": content, "refusal": None}
