"""Rows -> examples: tokens that attend to one another, with a mask of those the model learns to write.

Three formats: code (with fill-in-the-middle and the family's layout of files), pairs of a question and its
answer, and dialogues. End-of-text is learnt once, where a document ends.
"""

import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from starcoder.chat import ChatTemplate, Message
from starcoder.errors import ConfigError, RequestError
from starcoder.tokenizer import Tokenizer
from starcoder.train.documents import PLAIN, Frame, cut_piece, syntax_spans
from starcoder.train.packing import MIN_PIECE_TOKENS
from starcoder.train.settings import QUESTION, FimSettings, FormatSettings
from starcoder.train.sources import Row, Shape

_TAGGED = ("notebook", "commit", "issue")  # kinds of `starcoder prepare` that hold tags on purpose
_HEADER_COLUMNS = {"repo": "repository", "path": "path", "stars": "stars"}


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: its tokens, and which of them are learnt."""

    tokens: list[int]
    learnt: list[bool]
    is_cut: bool = False  # it was longer than its room

    @property
    def num_learnt(self) -> int:
        """Tokens the loss sees; the first has nothing before it to be told from."""
        return sum(self.learnt[1:])


class Format(Protocol):
    """Makes examples of one row, none longer than `room` tokens; none that teaches nothing."""

    def __call__(self, row: Row, room: int, rng: random.Random) -> list[Example]: ...


@dataclass(frozen=True, slots=True)
class Code:
    """Source files, or whole repositories, cut to length and then infilled.

    Source: StarCoder (arXiv:2305.06161) and bigcode-dataset `add_content_with_meta.py` for tags in front of
    a file, each shown or not; Starcoder2 (arXiv:2402.19173, section 5) for repositories.
    """

    tokenizer: Tokenizer
    fim: FimSettings
    layout: Literal["plain", "file", "repository"]
    column: str
    metadata_rate: float = 0.5

    def __call__(self, row: Row, room: int, rng: random.Random) -> list[Example]:
        if row.get("kind") in _TAGGED:
            return self._tagged(_text(row, self.column), room)
        if self.layout == "repository":
            return list(self._repository(row, room, rng))
        text, frame = _text(row, self.column), PLAIN
        if self.layout == "file":
            text, frame = self._named(row, text, rng)
        return [_all_learnt(piece, cut) for piece, cut in self._pieces(text, frame, room, rng)]

    def _tagged(self, text: str, room: int) -> list[Example]:
        """What `starcoder prepare` wrote with the family's tags: they become tokens, and none is infilled."""
        tokens = [*self.tokenizer.encode_with_special(text), self.tokenizer.sentinels.eos]
        pieces = [tokens[at : at + room] for at in range(0, len(tokens), room)]
        return [_all_learnt(p, p is not pieces[-1]) for p in pieces if len(p) > 1] if text else []

    def _pieces(
        self, text: str, frame: Frame, room: int, rng: random.Random
    ) -> Iterator[tuple[list[int], bool]]:
        spans = self._spans(text[frame.lead :], frame.lead)
        frame = replace(frame, spans=spans)
        start = 0
        while start < len(text):
            piece = cut_piece(text, start, room, self.tokenizer, self.fim, rng, frame)
            start = piece.end
            if len(piece.tokens) > 1:
                yield piece.tokens, start < len(text)

    def _spans(self, text: str, lead: int) -> tuple[tuple[int, int], ...]:
        spans = syntax_spans(text) if self.fim.rate and self.fim.syntax_rate else ()
        return tuple((a + lead, b + lead) for a, b in spans)

    def _named(self, row: Row, text: str, rng: random.Random) -> tuple[str, Frame]:
        """One file with its repository and path in front, each as often as `metadata_rate` says."""
        sentinels, encode = self.tokenizer.sentinels, self.tokenizer.encode
        given = {name: _text(row, column) for name, column in _HEADER_COLUMNS.items()}
        if sentinels.layout.header == "tags":
            given = {name: x if x and rng.random() < self.metadata_rate else "" for name, x in given.items()}
        elif not given["path"] or rng.random() >= self.metadata_rate:
            return text, PLAIN
        header = sentinels.header(encode, repo=given["repo"], path=given["path"], stars=given["stars"])
        if not header.shown:
            return text, PLAIN
        before = (*header.repository, *header.file)
        return header.line + text, Frame(before=before, tags=header.tags, lead=len(header.line))

    def _repository(self, row: Row, room: int, rng: random.Random) -> Iterator[Example]:
        """All files of one repository in random order; end-of-text once, after the last."""
        s, encode = self.tokenizer.sentinels, self.tokenizer.encode
        assert s.file_sep is not None, "the layout was chosen for a vocabulary that has it"
        files = list(_files(row, self.column))
        rng.shuffle(files)
        is_named = rng.random() < self.metadata_rate
        named = [*s.repository(encode, _text(row, "repository"))] if is_named else []
        named = named if 4 * len(named) <= room else []
        fim = self.fim if rng.random() < 0.5 else FimSettings(rate=0)
        out = list(named)
        for number, (path, content) in enumerate(files):
            text, lead = (f"{path}\n{content}", len(path) + 1) if is_named else (content, 0)
            frame = Frame(lead=lead, ends=False, spans=self._spans(content, lead))
            start = 0
            while start < len(text):
                if room - len(out) - 2 < MIN_PIECE_TOKENS:
                    yield _all_learnt(out, True)
                    out = list(named)
                if start == 0 or out == named:
                    out.append(s.file_sep)
                piece = cut_piece(text, start, room - len(out) - 1, self.tokenizer, fim, rng, frame)
                out += piece.tokens
                start = piece.end
            if number + 1 == len(files):
                yield _all_learnt([*out, s.eos])


@dataclass(frozen=True, slots=True)
class Pairs:
    """A question and its answer in a template; the answer and end-of-text are learnt.

    Blanks at the prompt's end go to the answer: its first token then is one that follows a prompt in use.
    """

    tokenizer: Tokenizer
    template: str
    columns: tuple[str, str]
    learn_prompts: bool = False

    def __call__(self, row: Row, room: int, rng: random.Random) -> list[Example]:
        before, _, after = self._filled(row).partition(_SPLIT)
        prompt = before.rstrip(" ")
        question = self.tokenizer.encode(prompt)
        answer = self.tokenizer.encode(before[len(prompt) :] + after)
        tokens = [*question, *answer, self.tokenizer.sentinels.eos]
        learnt = [self.learn_prompts] * len(question) + [True] * (len(answer) + 1)
        return _cut_to(tokens, learnt, room) if after.strip() else []

    def _filled(self, row: Row) -> str:
        prompt, completion = (_text(row, name) for name in self.columns)
        values = {name: _text(row, name) for name in row} | {"prompt": prompt}
        for name in ("completion", self.columns[1]):
            values[name] = _SPLIT + completion
        return self.template.format_map(values)


_SPLIT = "\ue002"  # a private-use character: where in the filled template the completion begins


@dataclass(frozen=True, slots=True)
class Dialogues:
    """Messages in the tokenizer's chat template; what the assistant says and how its turn ends is learnt."""

    tokenizer: Tokenizer
    template: ChatTemplate
    column: str

    def __call__(self, row: Row, room: int, rng: random.Random) -> list[Example]:
        messages = read_messages(row.get(self.column))
        try:
            tokens, learnt = self.template.encode_dialogue(messages, self.tokenizer)
        except RequestError as error:
            raise ConfigError(error.message, error.hint) from None
        return _cut_to(tokens, learnt, room)


_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def read_messages(value: object) -> list[Message]:
    """Messages with `role` and `content`; `from` and `value` are read as well."""
    if not isinstance(value, list) or not value:
        raise ConfigError(f"messages are {value!r:.80}; expected a list of them", "each has role and content")
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, dict):
            raise ConfigError(f"a message is {message!r:.80}; expected an object", "with role and content")
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise ConfigError(
                f"a message has the keys {', '.join(map(repr, message))}; expected role and content",
                "both are texts",
            )
        messages.append({"role": _ROLES.get(role, role), "content": content})
    return messages


def choose(
    shape: Shape,
    columns: Sequence[str],
    tokenizer: Tokenizer,
    fim: FimSettings,
    settings: FormatSettings,
    chat: ChatTemplate | None,
) -> Format:
    """The format for rows of this shape.

    Raises:
        ConfigError: a template or layout that does not fit the columns or the vocabulary.
    """
    if shape.kind == "pair":
        names = shape.columns[0], shape.columns[1]
        _check_template(settings.template, names, columns)
        return Pairs(tokenizer, settings.template, names, settings.learn_prompts)
    if shape.kind == "messages":
        assert chat is not None, "dialogues come with a template"
        return Dialogues(tokenizer, chat, shape.columns[0])
    if fim.rate and not tokenizer.sentinels.can_infill:
        raise ConfigError("this model cannot infill: its tokenizer has no infilling tokens", "--fim-rate 0")
    layout = settings.layout
    if layout == "auto":
        is_whole = tokenizer.sentinels.file_sep is not None and "repository" in columns
        layout = "plain" if "path" not in columns else "repository" if is_whole else "file"
    if layout == "repository" and tokenizer.sentinels.file_sep is None:
        raise ConfigError(
            "this vocabulary has no <file_sep>, so repositories cannot be laid out", "--layout file"
        )
    if layout == "repository" and not {"repository", "path"} <= {*columns}:
        raise ConfigError(
            "repositories need the columns 'repository' and 'path'",
            f"the columns are {', '.join(map(repr, columns))}; or choose --layout plain",
        )
    return Code(tokenizer, fim, layout, shape.columns[0], settings.metadata_rate)


def by_repository(rows: Sequence[Row]) -> list[Row]:
    """One row for each repository, with its `files`, in order of first appearance; then what is no file."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("kind") not in _TAGGED:
            grouped.setdefault(_text(row, "repository"), []).append(row)
    others = [row for row in rows if row.get("kind") in _TAGGED]
    return [*({"repository": name, "files": files} for name, files in grouped.items()), *others]


def _files(row: Row, column: str) -> Iterator[tuple[str, str]]:
    files = row["files"]
    assert isinstance(files, list), "rows were grouped by repository"
    for file in files:
        if _text(file, column):
            yield _text(file, "path"), _text(file, column)


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value)


def _all_learnt(tokens: list[int], is_cut: bool = False) -> Example:
    return Example(tokens, [True] * len(tokens), is_cut)


def _cut_to(tokens: list[int], learnt: list[bool], room: int) -> list[Example]:
    example = Example(tokens[:room], learnt[:room], len(tokens) > room)
    return [example] if example.num_learnt else []


def _check_template(template: str, pair: tuple[str, str], columns: Sequence[str]) -> None:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"the template {template!r} is not valid: {error}", "write {{ for {") from None
    known = {"prompt", "completion", *columns}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"the template has {{{name}}}, which is no column",
                f"the columns are {', '.join(map(repr, columns))}, and {{prompt}} and {{completion}}",
            )
    prompts, completions = {"prompt", pair[0]}, {"completion", pair[1]}
    order = ["p" if n in prompts else "c" for n in names if n in prompts | completions]
    if order != ["p", "c"]:
        raise ConfigError(
            f"the template {template!r} does not show the prompt and then the completion once each",
            f"for example {QUESTION!r}",
        )
