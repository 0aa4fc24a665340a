"""The shapes of public data sets: which columns a row has, and the record that is read from it.

`SHAPES` is the one table: a row of data is read by the first shape whose columns it has. Values are taken by
type and never by `str()`: what is missing or of another type is a `RowError` that names the column.

Limits: text only; images, audio and other parts of messages are refused by name.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias

from starcoder.chat import Message, Tool
from starcoder.errors import ConfigError
from starcoder.layouts import parse_commit, parse_issue, parse_notebook, write_commit

Row = Mapping[str, object]


_SURROGATE = re.compile("[\ud800-\udfff]")


class RowError(Exception):
    """Why one row cannot be trained on. Whoever reads rows knows which one it is."""


# Records: what is left of a row


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """Text, as a rule code, with what is known of its file."""

    text: str
    path: str = ""
    repository: str = ""
    stars: str = ""
    is_tagged: bool = False  # a commit, notebook or issue whose tags are meant as special tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A prompt and what is learned to follow it. `columns` are the row's texts, for templates."""

    prompt: str
    completion: str
    columns: tuple[tuple[str, str], ...] = ()
    completion_column: str = "completion"


@dataclass(frozen=True, kw_only=True, slots=True)
class Infill:
    """Code around a hole, and what is learned to fill it."""

    prefix: str
    suffix: str
    middle: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Messages; the assistant's are learned, but for those with numbers in `masked`."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    masked: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """Two completions of one prompt: text, code around a hole, or messages, all three alike."""

    chosen: Pair | Infill | Conversation
    rejected: Pair | Infill | Conversation


@dataclass(frozen=True, kw_only=True, slots=True)
class Rated:
    """A completion that is wanted or not."""

    completion: Pair | Infill | Conversation
    is_wanted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """All files of one repository as one document: grouped from the records of its files."""

    name: str
    files: tuple[Document, ...]


Record: TypeAlias = Document | Repository | Pair | Infill | Conversation | Preference | Rated
Kind = Literal["text", "pair", "infill", "messages", "preference", "rated"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Names of columns that the user chose; None leaves it to the shapes."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Rows of one form. `columns` are those that a record is read from, of those that the rows have."""

    name: str
    kind: Kind
    columns: tuple[str, ...]
    read: Callable[[Row], Record]


# Values by their type


def type_name(value: object) -> str:
    """A type in the words of a data set's owner."""
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case bytes():
            return "bytes"
        case Mapping():
            return "an object"
        case list() | tuple():
            return "a list"
    return type(value).__name__


def text_of(row: Row, name: str, *, is_optional: bool = False) -> str:
    """The text of a column; bytes are read as UTF-8.

    Raises:
        RowError: no text, or null where `is_optional` is not set.
    """
    value = row.get(name)
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise RowError(f"column {name!r} holds bytes that are not UTF-8") from None
    if value is None and is_optional:
        return ""
    if not isinstance(value, str):
        raise RowError(f"column {name!r} holds {type_name(value)}, expected text")
    if _SURROGATE.search(value):
        raise RowError(f"column {name!r} holds half of a surrogate pair, which is not a character")
    return value


def _json_of(value: object, what: str) -> object:
    """The value, or what its text holds as JSON: columns of CSV and Parquet files often do."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RowError(f"{what} holds text that is not JSON") from None


def _is_messages(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, Mapping) for one in value)


# Messages

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}


def read_messages(value: object, what: str = "messages") -> tuple[tuple[Message, ...], frozenset[int]]:
    """Messages in OpenAI's form, and the numbers of answers that their `weight` says are not learned.

    Read are OpenAI's own, ShareGPT's `from` and `value`, parts of text, calls of tools in both of OpenAI's
    forms and LLaMA-Factory's, and JSON text of any of these.

    Raises:
        RowError: anything else; the message's number is named.
    """
    value = _json_of(value, what)
    if not isinstance(value, list | tuple) or not value:
        found = "empty" if value == [] else type_name(value)
        raise RowError(f"{what} is {found}, expected a list of messages")
    messages = tuple(_message(one, f"{what}, message {n}") for n, one in enumerate(value, 1))
    masked = frozenset(
        n for n, one in enumerate(value) if isinstance(one, Mapping) and one.get("weight", 1) == 0
    )
    return messages, masked


def _message(value: object, what: str) -> Message:
    if not isinstance(value, Mapping):
        raise RowError(f"{what} is {type_name(value)}, expected an object with role and content")
    given = value.get("role") if value.get("role") is not None else value.get("from")
    role = _ROLES.get(given.lower()) if isinstance(given, str) else None
    if role is None:
        known = ", ".join(_ROLES)
        raise RowError(
            f"{what} has no role"
            if given is None
            else f"{what} has the role {given!r:.40}; known are {known}"
        )
    content = value.get("content") if value.get("content") is not None else value.get("value")
    message: dict[str, object] = {"role": role}
    calls = _calls(value, what)
    if isinstance(given, str) and given.lower() == "function_call":
        calls = (*calls, _call(_json_of(content, f"{what}, its call"), what))
        content = None
    if content is None and not calls:
        raise RowError(f"{what} has no content")
    message["content"] = _content(content, what)
    if calls:
        message["tool_calls"] = list(calls)
    for name in ("name", "tool_call_id"):
        if isinstance(value.get(name), str):
            message[name] = value[name]
    return message


def _content(value: object, what: str) -> str:
    """Text, or the texts of parts one after the other."""
    if value is None:
        return ""
    if isinstance(value, str):
        return text_of({"content": value}, "content")
    if not isinstance(value, list | tuple):
        raise RowError(f"{what} has {type_name(value)} as content, expected text or parts of text")
    texts = []
    for part in value:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type_name(part)
            raise RowError(f"{what} has a part of type {kind!r}, expected text")
        texts.append(text)
    return "".join(texts)


def _calls(value: Mapping[object, object], what: str) -> tuple[Mapping[str, object], ...]:
    found = _json_of(value.get("tool_calls") or [], f"{what}, tool_calls")
    if not isinstance(found, list | tuple):
        raise RowError(f"{what} has {type_name(found)} as tool_calls, expected a list")
    old = value.get("function_call")
    return tuple(_call(call, what) for call in [*found, *([old] if old else [])])


def _call(value: object, what: str) -> Mapping[str, object]:
    """A call with its arguments as an object, in OpenAI's form."""
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"{what} has a call without a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError):  # what the model once wrote: it is shown as it is
            arguments = json.loads(arguments)
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(row: Row, names: Sequence[str]) -> tuple[Tool, ...]:
    for name in names:
        found = _json_of(row[name], f"column {name!r}") if row.get(name) not in (None, "") else []
        if not isinstance(found, list | tuple):
            raise RowError(f"column {name!r} holds {type_name(found)}, expected a list of tools")
        tools = []
        for tool in found:
            function = tool.get("function", tool) if isinstance(tool, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise RowError(f"column {name!r} holds a tool without a name")
            tools.append({"type": "function", "function": dict(function)})
        return tuple(tools)
    return ()


# Readers: columns -> a function that reads a row


def _documents(name: str) -> Callable[[Row], Record]:
    def read(row: Row) -> Record:
        text = text_of(row, name)
        kind = row.get("kind")
        is_tagged = kind in ("commit", "notebook", "issue") and any(
            parse(text) is not None for parse in (parse_commit, parse_notebook, parse_issue)
        )
        return Document(
            text=text,
            path=text_of(row, "path", is_optional=True),
            repository=text_of(row, "repository", is_optional=True),
            stars=str(row["stars"]) if isinstance(row.get("stars"), int | str) else "",
            is_tagged=is_tagged or kind in ("commit", "notebook", "issue"),
        )

    return read


def _commits(row: Row) -> Record:
    before, after = text_of(row, "old_contents"), text_of(row, "new_contents")
    message = text_of(row, "message" if row.get("message") else "subject")
    return Document(text=write_commit(before, message, after), is_tagged=True)


def _infills(middle: str) -> Callable[[Row], Record]:
    def read(row: Row) -> Record:
        return Infill(
            prefix=text_of(row, "prefix"), suffix=text_of(row, "suffix"), middle=text_of(row, middle)
        )

    return read


def _conversations(name: str, tools: Sequence[str], system: str | None) -> Callable[[Row], Record]:
    def read(row: Row) -> Record:
        messages, masked = read_messages(row.get(name), f"column {name!r}")
        first = text_of(row, system, is_optional=True) if system is not None else ""
        if first and messages[0]["role"] != "system":
            messages = ({"role": "system", "content": first}, *messages)
            masked = frozenset(number + 1 for number in masked)
        return Conversation(messages=messages, tools=_tools(row, tools), masked=masked)

    return read


def _pairs(prompt: str, completion: str, more: str | None, tools: Sequence[str]) -> Callable[[Row], Record]:
    """Prompts and completions, as text or as messages; `more` is what Alpaca calls the input."""

    def read(row: Row) -> Record:
        if _is_messages(row.get(prompt)) or _is_messages(row.get(completion)):
            return _talk(row, prompt, completion, tools)
        question = text_of(row, prompt)
        given = text_of(row, more, is_optional=True) if more is not None else ""
        if given.strip():
            question = f"{question}\n\n{given}"
        texts = tuple((name, value) for name, value in row.items() if isinstance(value, str))
        answer = text_of(row, completion)
        return Pair(prompt=question, completion=answer, columns=texts, completion_column=completion)

    return read


def _talk(row: Row, prompt: str, completion: str, tools: Sequence[str] = ()) -> Conversation:
    """Prompt and completion of which one or both are messages; the completion's are learned."""
    before = _as_messages(row, prompt, "user")
    after = _as_messages(row, completion, "assistant")
    if after[: len(before)] == before:  # the completion repeats the prompt
        after = after[len(before) :]
    if not any(message["role"] == "assistant" for message in after):
        raise RowError(f"column {completion!r} holds no message of the assistant")
    masked = frozenset(n for n, message in enumerate(before) if message["role"] == "assistant")
    return Conversation(messages=(*before, *after), tools=_tools(row, tools), masked=masked)


def _as_messages(row: Row, name: str, role: str) -> tuple[Message, ...]:
    if _is_messages(row.get(name)):
        return read_messages(row[name], f"column {name!r}")[0]
    return ({"role": role, "content": text_of(row, name)},)


def _completion(row: Row, prompt: str | None, name: str) -> Pair | Infill | Conversation:
    """A completion of the row's prompt, which may be messages or code around a hole."""
    if prompt is None:  # both are whole conversations
        messages, _ = read_messages(row.get(name), f"column {name!r}")
        if messages[-1]["role"] != "assistant":
            raise RowError(f"column {name!r} does not end with a message of the assistant")
        number = len(messages) - 1
        masked = frozenset(n for n in range(number) if messages[n]["role"] == "assistant")
        return Conversation(messages=messages, masked=masked)
    if _is_messages(row.get(prompt)) or _is_messages(row.get(name)):
        return _talk(row, prompt, name)
    if row.get("suffix"):
        return Infill(prefix=text_of(row, prompt), suffix=text_of(row, "suffix"), middle=text_of(row, name))
    return Pair(prompt=text_of(row, prompt), completion=text_of(row, name))


def _preferences(prompt: str | None, chosen: str, rejected: str) -> Callable[[Row], Record]:
    def read(row: Row) -> Record:
        both = _completion(row, prompt, chosen), _completion(row, prompt, rejected)
        if type(both[0]) is not type(both[1]):
            raise RowError(
                f"columns {chosen!r} and {rejected!r} hold text and messages, expected one of them"
            )
        if both[0] == both[1]:
            raise RowError(f"columns {chosen!r} and {rejected!r} are the same")
        return Preference(chosen=both[0], rejected=both[1])

    return read


def _ratings(prompt: str, completion: str, label: str) -> Callable[[Row], Record]:
    def read(row: Row) -> Record:
        value = row.get(label)
        value = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
        if value not in (True, False):
            raise RowError(f"column {label!r} holds {type_name(value)}, expected true or false")
        return Rated(completion=_completion(row, prompt, completion), is_wanted=bool(value))

    return read


# The table

_CHAT_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog")
_TOOL_COLUMNS = ("tools", "functions")
PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "problem", "input")
ANSWER_COLUMNS = ("completion", "response", "answer", "output", "solution", "target")
_PAIRS = (
    *(("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("question", "response")),
    *(("instruction", "output"), ("instruction", "response"), ("problem", "solution"), ("query", "answer")),
    *((prompt, answer) for prompt in PROMPT_COLUMNS for answer in ANSWER_COLUMNS),
)
_TEXTS = ("content", "text", "code")

# For the documentation and the tests: a row of each shape that is recognized.
EXAMPLES: Mapping[str, Row] = {
    "preferences": {"prompt": "Write f.", "chosen": "def f(): ...", "rejected": "f = 0"},
    "preferences, conversational": {
        "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
        "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "What?"}],
    },
    "ratings": {"prompt": "Write f.", "completion": "def f(): ...", "label": True},
    "OpenAI messages": {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}],
        "system": "Be brief.",
    },
    "Alpaca": {"instruction": "Sort.", "input": "[2, 1]", "output": "[1, 2]"},
    "prompts and completions": {"prompt": "2 + 2 =", "completion": "4"},
    "prompts and completions, conversational": {
        "prompt": [{"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Hello."}],
    },
    "CommitPack": {"old_contents": "a\n", "new_contents": "b\n", "subject": "Rename a"},
    "infills": {"prefix": "a = ", "suffix": "\nb = 2", "middle": "1"},
    "files": {"content": "a = 1\n", "path": "a.py", "repository": "me/mine"},
    "text": {"text": "a = 1\n"},
}


def recognize(row: Row, chosen: Columns = Columns(), columns: Iterable[str] | None = None) -> Shape | None:
    """The shape of a row, the first in this order that has its columns; None if it is of none.

    `columns` are those of the whole file, where the row may lack some.

    Raises:
        ConfigError: a column that was chosen is not there.
    """
    names = tuple(row if columns is None else columns)
    if bool(chosen.prompt) != bool(chosen.completion):
        raise ConfigError("prompts and completions go together", f"name both columns, among {quoted(names)}")
    for name in (chosen.messages, chosen.prompt, chosen.completion, chosen.text):
        if name is not None and name not in names:
            raise ConfigError(f"there is no column {name!r}", f"the columns are {quoted(names)}")
    tools = _found(names, _TOOL_COLUMNS)[:1]
    system = next(iter(_found(names, ("system", "system_prompt"))), None)

    def shape(name: str, kind: Kind, used: Sequence[str | None], read: Callable[[Row], Record]) -> Shape:
        return Shape(name=name, kind=kind, columns=tuple(one for one in used if one is not None), read=read)

    def conversations(name: str) -> Shape:
        kind = "ShareGPT" if name.startswith("conversation") else "OpenAI messages"
        return shape(kind, "messages", (name, *tools, system), _conversations(name, tools, system))

    def pairs(prompt: str, answer: str) -> Shape:
        more = "input" if "input" in names and "input" not in (prompt, answer) else None
        kind = "Alpaca" if prompt == "instruction" else "prompts and completions"
        return shape(kind, "pair", (prompt, answer, more, *tools), _pairs(prompt, answer, more, tools))

    if chosen.messages:
        return conversations(chosen.messages)
    if chosen.prompt and chosen.completion:
        return pairs(chosen.prompt, chosen.completion)
    if chosen.text:
        return shape("text", "text", (chosen.text,), _documents(chosen.text))
    prompt = next(iter(_found(names, (*PROMPT_COLUMNS, "prefix"))), None)
    for good in _found(names, ("accepted", "chosen")):
        if "rejected" in names:
            suffix = "suffix" if "suffix" in names else None
            read = _preferences(prompt, good, "rejected")
            return shape("preferences", "preference", (prompt, suffix, good, "rejected"), read)
    pair = next((pair for pair in _PAIRS if {*pair} <= {*names}), None)
    if pair is not None and "label" in names and isinstance(row.get("label"), bool | str):
        return shape("ratings", "rated", (*pair, "label"), _ratings(*pair, "label"))
    for name in _found(names, _CHAT_COLUMNS):
        return conversations(name)
    if {"old_contents", "new_contents"} <= {*names} and _found(names, ("subject", "message")):
        used = ("old_contents", "new_contents", *_found(names, ("message", "subject")))
        return shape("CommitPack", "text", used, _commits)
    if {"prefix", "suffix"} <= {*names}:
        for middle in _found(names, ("middle", "canonical_solution", *ANSWER_COLUMNS)):
            return shape("infills", "infill", ("prefix", "suffix", middle), _infills(middle))
    if pair is not None:
        return pairs(*pair)
    for name in _found(names, _TEXTS):
        return shape("files" if "path" in names else "text", "text", (name,), _documents(name))
    return None


def _found(names: Sequence[str], wanted: Iterable[str]) -> list[str]:
    return [name for name in wanted if name in names]


def quoted(names: Iterable[str]) -> str:
    """Names in quotation marks, with commas."""
    return ", ".join(map(repr, names)) or "none"
