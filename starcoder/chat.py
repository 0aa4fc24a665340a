"""Chat templates: render messages as transformers does, encode them safely, mark what is learned.

A template is Jinja source, the checkpoint's own or one of `DIALOGUES`, StarChat's format, which is Jinja too.
What a message or a tool spells can never become a special token. A template that is broken, or Jinja that is
not installed, refuses chats and nothing else.

Limits: a template that searches messages for special tokens does not find them where that would let a user's
text become one. Masks need `{% generation %}` in templates that change a message's text or earlier turns.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from starcoder.errors import ConfigError, MissingExtraError, RequestError, StarcoderError
from starcoder.layouts import Sentinels, any_of

if TYPE_CHECKING:
    from jinja2 import Template

T = TypeVar("T")
Message = Mapping[str, object]  # role, content, and what else the template knows: tool_calls, name, ...
Tool = Mapping[str, object]  # {"type": "function", "function": {...}}


class Vocabulary(Protocol):
    """What a chat needs of a tokenizer."""

    @property
    def sentinels(self) -> Sentinels: ...

    @property
    def special_tokens(self) -> dict[str, int]: ...

    def encode(self, text: str) -> list[int]:
        """Ids of user text; never the id of a special token."""

    def encode_with_special(self, text: str) -> list[int]:
        """Ids of text whose spelled special tokens are meant."""

    def token_text(self, token: int) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    """StarChat's format: tokens around each turn. Source: the keys of a `dialogue_template.json`."""

    system: str = ""
    system_token: str = "<|system|>"
    user_token: str = "<|user|>"
    assistant_token: str = "<|assistant|>"
    end_token: str = "<|end|>"

    @property
    def tokens(self) -> tuple[str, ...]:
        return self.system_token, self.user_token, self.assistant_token, self.end_token

    @property
    def source(self) -> str:
        """The format as a Jinja template. Training had a line break after the assistant's token too."""
        system, user, assistant, end, default = map(ascii, (*self.tokens, self.system))
        return (
            f"{{{{ {system} + '\\n' + (messages[0]['content'] if messages and messages[0]['role'] == 'system'"
            f" else {default}) + {end} + '\\n' }}}}"
            "{% for message in messages if message['role'] != 'system' %}"
            f"{{{{ ({assistant} if message['role'] == 'assistant' else {user}) + '\\n' }}}}"
            f"{{{{ message['content'] + {end} + '\\n' }}}}"
            "{% endfor %}"
            f"{{% if add_generation_prompt %}}{{{{ {assistant} + '\\n' }}}}{{% endif %}}"
        )

    @classmethod
    def read(cls, path: Path) -> "Dialogue":
        """Raises: ConfigError: not a dialogue template."""
        try:
            found = json.loads(path.read_text("utf-8"))
            given = {name: found[name] for name in cls.__slots__ if found.get(name) is not None}
            if not all(isinstance(text, str) for text in given.values()):
                raise TypeError("a value is not text")
            return cls(**given)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"{str(path)!r} is no dialogue template: {error}", "choose --chat-template"
            ) from None


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

# Models that chat, for whoever asks a base model to.
INSTRUCT_MODELS = "HuggingFaceH4/starchat-beta or bigcode/starcoder2-15b-instruct-v0.1"


def base_model(name: str) -> str:
    """Why a model without a template cannot chat."""
    return f"{name} is a base model: it completes code and has no chat template"


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """How messages become text and tokens."""

    source: str  # Jinja
    tokens: Mapping[str, str] = field(default_factory=dict)  # bos_token and the like, by name
    dialogue: Dialogue | None = None  # where the source was made from one
    problem: StarcoderError | None = None  # why the checkpoint's own template cannot be used

    # Finding one

    @classmethod
    def find(cls, name: str | None, folder: Path | None, vocabulary: Vocabulary) -> "ChatTemplate | None":
        """By name or path of a Jinja file; None takes what the checkpoint in `folder` has, if anything.

        A broken template of the checkpoint is returned all the same: it refuses to be used.

        Raises:
            ConfigError: the named template is not there, or is not valid.
        """
        tokens = _special_names(folder, vocabulary)
        if name in DIALOGUES:
            return cls(source=DIALOGUES[name].source, tokens=tokens, dialogue=DIALOGUES[name])
        if name is not None:
            try:
                found = cls(source=Path(name).read_text("utf-8"), tokens=tokens)
            except (OSError, UnicodeDecodeError):
                raise ConfigError(
                    f"there is no chat template {name!r}",
                    f"give a jinja file, or one of {', '.join(DIALOGUES)}",
                ) from None
            _compile(found.source)  # a mistake of the user is reported at once
            return found
        own = None if folder is None else cls._own(folder, tokens)
        if own is None or own.problem is not None:
            return own
        try:
            _compile(own.source)
        except ConfigError as error:
            return replace(own, problem=error)
        return own

    @classmethod
    def _own(cls, folder: Path, tokens: Mapping[str, str]) -> "ChatTemplate | None":
        dialogue = folder / "dialogue_template.json"
        try:
            if dialogue.is_file():
                found = Dialogue.read(dialogue)
                return cls(source=found.source, tokens=tokens, dialogue=found)
            source = _jinja_source(folder)
        except ConfigError as error:
            return cls(source="", problem=error)
        return None if source is None else cls(source=source, tokens=tokens)

    # Rendering

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = False,
        mark: str = "",
    ) -> str:
        """The text of messages, as transformers renders it from the same template.

        `mark` comes on both sides of what is in a `{% generation %}` block.

        Raises:
            RequestError: the template is broken, or refuses or cannot show these messages.
        """
        if self.problem is not None:
            raise RequestError(f"no chat: {self.problem.message}", self.problem.hint)
        from jinja2 import TemplateError

        try:
            return _compile(self.source, mark).render(
                messages=[dict(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.tokens,
            )
        except _Refused as error:
            raise RequestError(f"the chat template refuses: {error}") from None
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise RequestError(f"the chat template cannot show these messages: {error}") from None

    @property
    def marks_generation(self) -> bool:
        """Whether the template itself says what the assistant writes."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    def stops(self, vocabulary: Vocabulary) -> tuple[str, ...]:
        """Texts that end an answer, where they are not tokens of the vocabulary."""
        if self.dialogue is None:
            return ()
        texts = (self.dialogue.end_token, self.dialogue.user_token)
        return tuple(text for text in texts if text not in vocabulary.special_tokens)

    # Encoding

    def encode_prompt(
        self, messages: Sequence[Message], vocabulary: Vocabulary, *, tools: Sequence[Tool] | None = None
    ) -> list[int]:
        """Ids of the messages, up to where the assistant begins.

        Raises:
            RequestError: as from `render`.
        """
        messages, tools = self.adapted(messages, tools)
        text, hidden = self._hidden(messages, tools, vocabulary)
        return hidden.encode(text, vocabulary)

    def encode_dialogue(
        self,
        messages: Sequence[Message],
        vocabulary: Vocabulary,
        *,
        tools: Sequence[Tool] | None = None,
        masked: Collection[int] = (),
    ) -> tuple[list[int], list[bool]]:
        """Ids of a whole dialogue and which of them are learned: what the assistant writes and its end.

        Answers with numbers in `masked` are not learned. What follows the last answer is left out; both are
        empty if there is none. End of text comes once, at the end.

        Raises:
            RequestError: as from `render`, or the answers cannot be found in what the template makes of them.
        """
        turns = list(messages)
        while turns and turns[-1].get("role") != "assistant":
            turns.pop()
        if not turns:
            return [], []
        wanted = [n not in masked for n, turn in enumerate(turns) if turn.get("role") == "assistant"]
        turns, tools = self.adapted(turns, tools)
        special = any_of(vocabulary.special_tokens)
        hidden = _Hidden.of((turns, tools, self.source))
        safe, safe_tools = hidden.hide(turns, special), hidden.hide(tools, special)
        ids: list[int] = []
        is_learned: list[bool] = []
        answer: list[int] = []  # the last one, until its end is found
        special_ids = {*vocabulary.special_tokens.values()}
        segments = list(self._segments(safe, safe_tools, hidden))
        if masked and sum(is_answer for _, is_answer in segments) != len(wanted):
            raise RequestError(
                "the chat template does not mark each answer once, so that some cannot be masked",
                "put {% generation %} around each answer, in a template given by --chat-template",
            )
        for text, is_answer in segments:
            found = hidden.encode(text, vocabulary)
            if is_answer:
                is_wanted = not masked or wanted.pop(0)
                num_learned, answer = (len(found), found) if is_wanted else (0, [])
            else:
                num_learned = 0 if not answer else _end_of_turn(answer, found, special_ids, vocabulary)
                answer = []
            ids += found
            is_learned += [True] * num_learned + [False] * (len(found) - num_learned)
        eos = vocabulary.sentinels.eos
        if ids and ids[-1] == eos:  # the template's own
            return ids, [*is_learned[:-1], True]
        return [*ids, eos], [*is_learned, True]

    def adapted(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None
    ) -> tuple[list[Message], list[Tool] | None]:
        """Messages and tools as the template knows them: as text, where it has no words for tools."""
        knows_tools = re.search(r"\btools\b", self.source) is not None
        knows_calls = re.search(r"\btool_calls\b", self.source) is not None
        turns = [(_with_arguments if knows_calls else _call_as_text)(message) for message in messages]
        if tools and not knows_tools:
            turns = with_tool_prompt(turns, tool_prompt([_function(tool) for tool in tools]))
        return turns, list(tools) if tools and knows_tools else None

    def _hidden(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None, vocabulary: Vocabulary
    ) -> tuple[str, "_Hidden"]:
        """The prompt's text with marks for the special tokens that messages spell, and what reads them.

        A template may look into an assistant's message (for `</think>`): if it then shows something else, the
        assistant's messages keep their text, provided that this gives what transformers would show.
        """
        special = any_of(vocabulary.special_tokens)
        hidden = _Hidden.of((messages, tools, self.source))
        plain = self.render(messages, tools=tools, add_generation_prompt=True)
        everywhere = [hidden.hide(message, special) for message in messages]
        if everywhere == list(messages) and hidden.hide(tools, special) == tools:
            return plain, hidden
        others = [
            message if message.get("role") == "assistant" else safe
            for message, safe in zip(messages, everywhere, strict=True)
        ]
        found = [
            self.render(turns, tools=hidden.hide(tools, special), add_generation_prompt=True)
            for turns in (everywhere, others)
        ]
        return next((text for text in found if hidden.restore(text) == plain), found[0]), hidden

    def _segments(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None, hidden: "_Hidden"
    ) -> Iterator[tuple[str, bool]]:
        """The rendered text in pieces, and which of them the assistant writes."""
        if self.marks_generation:
            text = self.render(messages, tools=tools, mark=hidden.answer)
        elif any(message.get("tool_calls") for message in messages):
            yield from self._turn_by_turn(messages, tools)
            return
        else:
            marked = [
                message | {"content": f"{hidden.answer}{message.get('content') or ''}{hidden.answer}"}
                if message.get("role") == "assistant"
                else message
                for message in map(dict, messages)
            ]
            text = self.render(marked, tools=tools)
            if text.count(hidden.answer) != 2 * sum(m.get("role") == "assistant" for m in messages):
                raise RequestError(
                    "the chat template does not show what the assistant says as it is",
                    "give one with {% generation %} around it, by --chat-template",
                )
        yield from ((piece, at % 2 == 1) for at, piece in enumerate(text.split(hidden.answer)))

    def _turn_by_turn(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None
    ) -> Iterator[tuple[str, bool]]:
        """Answers as what each turn adds to the text before it, calls of tools included."""
        whole, at = self.render(messages, tools=tools), 0
        for number, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            before = self.render(messages[:number], tools=tools, add_generation_prompt=True)
            after = self.render(messages[: number + 1], tools=tools)
            if not (whole.startswith(after) and after.startswith(before) and len(before) >= at):
                raise RequestError(
                    "the chat template changes earlier turns, so that answers with tool calls are not found",
                    "give one with {% generation %} around what the assistant says, by --chat-template",
                )
            yield whole[at : len(before)], False
            answer = after[len(before) :]
            kept = len(answer.rstrip())  # blanks after the end of a turn are the template's
            yield answer[:kept], True
            at = len(before) + kept
        yield whole[at:], False


def _end_of_turn(answer: Sequence[int], after: Sequence[int], special: set[int], v: Vocabulary) -> int:
    """How many of the tokens after an answer end its turn: up to the first special token.

    None if the answer ends in one itself, or if words come first, as in templates without special tokens.
    """
    last = next((id for id in reversed(answer) if v.token_text(id).strip()), None)
    if last in special:
        return 0
    first = next((at for at, id in enumerate(after) if id in special), None)
    if first is None or "".join(map(v.token_text, after[:first])).strip():
        return 0
    return first + 1


# Marks


@dataclass(frozen=True, slots=True)
class _Hidden:
    """Special tokens that messages spell, each in the place of a mark while the template runs."""

    mark: str
    answer: str  # around what the assistant says
    spelled: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, shown: object) -> "_Hidden":
        """With marks that occur in nothing that is shown."""
        text = json.dumps(shown, ensure_ascii=False, default=str)
        free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in text)
        return cls(next(free), next(free))

    def hide(self, value: T, special: re.Pattern[str]) -> T:
        """The value with marks in all of its texts, whatever it is made of."""

        def hidden(one: object) -> object:
            match one:
                case str():
                    return special.sub(self._add, one)
                case Mapping():
                    return {hidden(key): hidden(item) for key, item in one.items()}
                case list() | tuple():
                    return [hidden(item) for item in one]
            return one

        return hidden(value)  # type: ignore[return-value]

    def _add(self, match: re.Match[str]) -> str:
        if match.group() not in self.spelled:
            self.spelled.append(match.group())
        return f"{self.mark}{self.spelled.index(match.group())}{self.mark}"

    def restore(self, text: str) -> str:
        pieces = text.split(self.mark)
        return "".join(self.spelled[int(one)] if at % 2 else one for at, one in enumerate(pieces))

    def encode(self, text: str, vocabulary: Vocabulary) -> list[int]:
        ids: list[int] = []
        for at, piece in enumerate(text.split(self.mark)):
            if at % 2:
                ids += vocabulary.encode(self.spelled[int(piece)])
            else:
                ids += vocabulary.encode_with_special(piece)
        return ids


# Tools as text, for templates without words for them


def tool_prompt(functions: Sequence[Mapping[str, object]], *, is_required: bool = False) -> str:
    """Instructions for the model: the functions and how to call one; a part of the system message."""
    listed = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    when = "Answer" if is_required else "To call one, answer"
    form = '{"name": NAME, "arguments": {...}}'
    return f"You can call these functions:\n{listed}\n{when} with nothing but {form}."


def with_tool_prompt(messages: Sequence[Message], prompt: str) -> list[Message]:
    """The messages with `prompt` at the end of the system message."""
    if messages and messages[0].get("role") in ("system", "developer"):
        first = {**messages[0], "content": f"{messages[0].get('content') or ''}\n\n{prompt}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]


def _with_arguments(message: Message) -> Message:
    """A message whose calls have their arguments as objects, as templates expect; OpenAI's API sends text."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list | tuple):
        return message

    def read(call: object) -> object:
        function = call.get("function") if isinstance(call, Mapping) else None
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if (
            not isinstance(call, Mapping)
            or not isinstance(function, Mapping)
            or not isinstance(arguments, str)
        ):
            return call
        try:
            return {**call, "function": {**function, "arguments": json.loads(arguments)}}
        except ValueError:
            return call

    return {**message, "tool_calls": [read(call) for call in calls]}


def _call_as_text(message: Message) -> Message:
    """A message whose calls and results of tools are text."""
    role, content = message.get("role"), message.get("content") or ""
    calls = message.get("tool_calls")
    if isinstance(calls, list | tuple) and calls:
        content = "\n".join([*([str(content)] if content else []), *map(call_text, calls)])
    if role in ("tool", "function"):
        return {"role": "user", "content": f"Result of the function:\n{content}"}
    return {"role": "system" if role == "developer" else role, "content": content}


def call_text(call: object) -> str:
    """A call of OpenAI's `tool_calls` in the form that `tool_prompt` asks for.

    Raises:
        RequestError: it is no call.
    """
    function = _function(call) if isinstance(call, Mapping) else {}
    if not isinstance(function.get("name"), str):
        raise RequestError("`tool_calls` holds something that is no call", 'send {"function": {"name": ...}}')
    arguments = function.get("arguments")
    shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'{{"name": {json.dumps(function["name"])}, "arguments": {shown}}}'


def _function(tool: Mapping[str, object]) -> Mapping[str, object]:
    inner = tool.get("function", tool)
    return inner if isinstance(inner, Mapping) else {}


# Files and Jinja


def own_source(folder: Path) -> str | None:
    """The Jinja source of a checkpoint's own template; None if it has none that can be read."""
    own = ChatTemplate._own(folder, {})
    return own.source if own is not None and own.problem is None else None


def _jinja_source(folder: Path) -> str | None:
    """The template in one of the files that transformers reads, the first in its order.

    Raises:
        ConfigError: a file that is not text or JSON, or a template of another type.
    """
    path = folder / "chat_template.jinja"
    try:
        if path.is_file():
            return path.read_text("utf-8")
        for name in ("chat_template.json", "tokenizer_config.json"):
            path = folder / name
            found = json.loads(path.read_text("utf-8")).get("chat_template") if path.is_file() else None
            if isinstance(found, list):  # several by name
                found = {one["name"]: one["template"] for one in found}.get("default")
            if found is not None and not isinstance(found, str):
                raise TypeError(f"the chat template is {type(found).__name__}")
            if found is not None:
                return found
    except (OSError, ValueError, AttributeError, TypeError, LookupError) as error:
        raise ConfigError(
            f"the chat template in {str(path)!r} cannot be read: {error}", "choose --chat-template"
        ) from None
    return None


def _special_names(folder: Path | None, vocabulary: Vocabulary) -> dict[str, str]:
    """Texts of the named special tokens, as transformers passes them to a template."""
    named = {}
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8")) if folder else {}
        for name, value in config.items():
            text = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str):
                named[name] = text
    except (OSError, ValueError, AttributeError):
        pass  # a folder without that file, or a damaged one, which whoever loads the tokenizer reports
    end = vocabulary.token_text(vocabulary.sentinels.eos)
    return named or {"bos_token": end, "eos_token": end}


class _Refused(Exception):
    """What a template's `raise_exception` raises."""


@cache
def _compile(source: str, mark: str = "") -> "Template":
    """A template in transformers' environment; `mark` comes around its `{% generation %}` blocks.

    Raises:
        ConfigError: the template is not valid, or jinja2 is not installed.
    Source: transformers: utils/chat_template_utils.py.
    """
    try:
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise MissingExtraError("chat templates need jinja2, which is not installed", "serve") from None

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  # jinja's own form

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

        def _marked(self, caller: Callable[[], str]) -> str:
            return f"{mark}{caller()}{mark}"

    def refuse(message: str) -> None:
        raise _Refused(message)

    def to_json(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except (TemplateError, RecursionError) as error:
        raise ConfigError(f"the chat template is not valid: {error}", "choose another one") from None


def tokens_of(source: str) -> tuple[str, ...]:
    """Texts in a template that look like special tokens: `<|...|>`."""
    return tuple(dict.fromkeys(re.findall(r"<\|\w+\|>", source)))
