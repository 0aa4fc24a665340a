"""Records -> examples: tokens that attend to one another, with a mask of those the model learns to write.

Code (with fill-in-the-middle and the family's layout of files), pairs of a prompt and its completion, infills
and conversations. End-of-text is learned once, where a document ends.
"""

import random
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from starcoder.chat import ChatTemplate
from starcoder.errors import ConfigError, RequestError
from starcoder.layouts import FimOrder
from starcoder.tokenizer import Tokenizer
from starcoder.train.documents import PLAIN, Frame, cut_piece, syntax_spans
from starcoder.train.packing import MIN_PIECE_TOKENS
from starcoder.train.settings import QUESTION, FimSettings, FormatSettings
from starcoder.train.shapes import (
    ANSWER_COLUMNS,
    PROMPT_COLUMNS,
    Conversation,
    Document,
    Infill,
    Kind,
    Pair,
    Preference,
    Rated,
    Record,
    Repository,
    RowError,
)


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: its tokens, and which of them are learned."""

    tokens: list[int]
    learned: list[bool]
    is_cut: bool = False  # it was longer than its room

    @property
    def num_learned(self) -> int:
        """Tokens the loss sees; the first has nothing before it to be predicted from."""
        return sum(self.learned[1:])


class Format(Protocol):
    """Makes examples of one record, none longer than `room` tokens; none that teaches nothing.

    Raises:
        RowError: the record cannot be shown, by the chat template for example.
    """

    def __call__(self, record: Record, room: int, rng: random.Random) -> list[Example]: ...


@dataclass(frozen=True, slots=True)
class Code:
    """Source files, or whole repositories, cut to length and then infilled.

    Source: StarCoder (arXiv:2305.06161) and bigcode-dataset `add_content_with_meta.py` for tags in front of
    a file, each shown or not; Starcoder2 (arXiv:2402.19173, section 5) for repositories.
    """

    tokenizer: Tokenizer
    fim: FimSettings
    layout: Literal["plain", "file", "repository"]
    metadata_rate: float = 0.5

    def __call__(self, record: Document | Repository, room: int, rng: random.Random) -> list[Example]:
        if isinstance(record, Repository):
            return list(self._repository(record, room, rng))
        if record.is_tagged:
            return self._tagged(record.text, room)
        text, frame = record.text, PLAIN
        if self.layout == "file":
            text, frame = self._named(record, rng)
        return [_all_learned(piece, cut) for piece, cut in self._pieces(text, frame, room, rng)]

    def _tagged(self, text: str, room: int) -> list[Example]:
        """What `starcoder prepare` wrote with the family's tags: they become tokens, and none is infilled."""
        tokens = [*self.tokenizer.encode_with_special(text), self.tokenizer.sentinels.eos]
        pieces = [tokens[at : at + room] for at in range(0, len(tokens), room)]
        return [_all_learned(p, p is not pieces[-1]) for p in pieces if len(p) > 1] if text else []

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

    def _named(self, record: Document, rng: random.Random) -> tuple[str, Frame]:
        """One file with its repository and path in front, each as often as `metadata_rate` says."""
        sentinels, encode, text = self.tokenizer.sentinels, self.tokenizer.encode, record.text
        given = {"repo": record.repository, "path": record.path, "stars": record.stars}
        if sentinels.layout.header == "tags":
            given = {name: x if x and rng.random() < self.metadata_rate else "" for name, x in given.items()}
        elif not given["path"] or rng.random() >= self.metadata_rate:
            return text, PLAIN
        header = sentinels.header(encode, repo=given["repo"], path=given["path"], stars=given["stars"])
        if not header.shown:
            return text, PLAIN
        before = (*header.repository, *header.file)
        return header.line + text, Frame(before=before, tags=header.tags, lead=len(header.line))

    def _repository(self, record: Repository, room: int, rng: random.Random) -> Iterator[Example]:
        """All files of one repository in random order; end-of-text once, after the last."""
        s, encode = self.tokenizer.sentinels, self.tokenizer.encode
        assert s.file_sep is not None, "the layout was chosen for a vocabulary that has it"
        files = [file for file in record.files if file.text]
        rng.shuffle(files)
        is_named = rng.random() < self.metadata_rate
        named = [*s.repository(encode, record.name)] if is_named else []
        named = named if 4 * len(named) <= room else []
        fim = self.fim if rng.random() < 0.5 else FimSettings(rate=0)
        out = list(named)
        for number, file in enumerate(files):
            text, lead = (f"{file.path}\n{file.text}", len(file.path) + 1) if is_named else (file.text, 0)
            frame = Frame(lead=lead, ends=False, spans=self._spans(file.text, lead))
            start = 0
            while start < len(text):
                if room - len(out) - 2 < MIN_PIECE_TOKENS:
                    yield _all_learned(out, True)
                    out = list(named)
                if start == 0 or out == named:
                    out.append(s.file_sep)
                piece = cut_piece(text, start, room - len(out) - 1, self.tokenizer, fim, rng, frame)
                out += piece.tokens
                start = piece.end
            if number + 1 == len(files):
                yield _all_learned([*out, s.eos])


@dataclass(frozen=True, slots=True)
class Pairs:
    """A question and its answer in a template; the answer and end-of-text are learned.

    Blanks at the prompt's end go to the answer: its first token then is one that follows a prompt in use.
    """

    tokenizer: Tokenizer
    template: str
    learn_prompts: bool = False

    def __call__(self, record: Pair, room: int, rng: random.Random) -> list[Example]:
        before, _, after = self._filled(record).partition(_SPLIT)
        prompt = before.rstrip(" ")
        question = self.tokenizer.encode(prompt)
        answer = self.tokenizer.encode(before[len(prompt) :] + after)
        tokens = [*question, *answer, self.tokenizer.sentinels.eos]
        learned = [self.learn_prompts] * len(question) + [True] * (len(answer) + 1)
        return _cut_to(tokens, learned, room) if after.strip() else []

    def _filled(self, record: Pair) -> str:
        values = _Columns(record.columns) | {"prompt": record.prompt}
        for name in ("completion", record.completion_column):
            values[name] = _SPLIT + record.completion
        return self.template.format_map(_Columns(values))


class _Columns(dict[str, str]):
    """The texts of a row by column; what a row lacks is empty."""

    def __missing__(self, key: str) -> str:
        return ""


_SPLIT = "\ue002"  # a private-use character: where in the filled template the completion begins


@dataclass(frozen=True, slots=True)
class Infills:
    """Code around a hole, as a prompt has it; what fills it is learned. Far ends of long texts are cut."""

    tokenizer: Tokenizer
    spm_rate: float = 0.5

    def __call__(self, record: Infill, room: int, rng: random.Random) -> list[Example]:
        encode, s = self.tokenizer.encode, self.tokenizer.sentinels
        if not record.middle:
            return []
        middle = [*encode(record.middle), s.eos]
        order = s.order("spm" if rng.random() < self.spm_rate else "psm")
        prompt, is_cut = infill_prompt(self.tokenizer, record, order, room - len(middle))
        tokens = [*prompt, *middle]
        learned = [False] * len(prompt) + [True] * len(middle)
        return [Example(tokens, learned, is_cut)] if len(tokens) <= room else []


def infill_prompt(tokenizer: Tokenizer, record: Infill, order: FimOrder, room: int) -> tuple[list[int], bool]:
    """The prompt of an infill in at most `room` tokens, if its sentinels fit; and whether text was cut.

    The prefix loses its start, the suffix its end, never a sentinel; the suffix keeps a quarter at least.
    """
    s, prefix = tokenizer.sentinels, tokenizer.encode(record.prefix)
    suffix = tokenizer.encode(record.suffix)
    free = max(0, room - s.layout.num_sentinels)
    is_cut = len(prefix) + len(suffix) > free
    if is_cut:
        suffix = suffix[: max(free // 4, free - len(prefix))]
        prefix = prefix[max(0, len(prefix) - (free - len(suffix))) :]
    return s.infill(order, prefix, suffix), is_cut


@dataclass(frozen=True, slots=True)
class Dialogues:
    """Messages in a chat template; what the assistant says and how its turn ends is learned."""

    tokenizer: Tokenizer
    template: ChatTemplate

    def __call__(self, record: Conversation, room: int, rng: random.Random) -> list[Example]:
        tokens, learned = self.encode(record)
        return _cut_to(tokens, learned, room)

    def encode(self, record: Conversation) -> tuple[list[int], list[bool]]:
        try:
            return self.template.encode_dialogue(
                record.messages, self.tokenizer, tools=record.tools or None, masked=record.masked
            )
        except RequestError as error:
            raise RowError(error.message) from None


@dataclass(frozen=True, slots=True)
class Formats:
    """A format for each kind of record that the data holds."""

    code: Code
    pairs: Pairs
    infills: Infills
    dialogues: Dialogues | None

    def __call__(self, record: Record, room: int, rng: random.Random) -> list[Example]:
        match record:
            case Document() | Repository():
                return self.code(record, room, rng)
            case Pair():
                return self.pairs(record, room, rng)
            case Infill():
                return self.infills(record, room, rng)
            case Conversation():
                assert self.dialogues is not None, "conversations come with a template"
                return self.dialogues(record, room, rng)
            case Preference() | Rated():
                raise AssertionError("preferences have a stream of their own")


def choose(
    kinds: frozenset[Kind],
    columns: Sequence[str],
    tokenizer: Tokenizer,
    fim: FimSettings,
    settings: FormatSettings,
    chat: ChatTemplate | None,
    *,
    pair_columns: tuple[str | None, str | None] = (None, None),
) -> Formats:
    """The formats for records of these kinds, read from these columns.

    `pair_columns` are the prompts' and the completions' where they were chosen.

    Raises:
        ConfigError: a template or layout that does not fit the columns or the vocabulary.
    """
    if "pair" in kinds:
        _check_template(settings.template, columns, pair_columns)
    wants_infills = fim.rate > 0 if "text" in kinds else False
    if (wants_infills or "infill" in kinds) and not tokenizer.sentinels.can_infill:
        raise ConfigError("this model cannot infill: its tokenizer has no infilling tokens", "--fim-rate 0")
    return Formats(
        code=Code(tokenizer, fim, _layout(columns, tokenizer, settings), settings.metadata_rate),
        pairs=Pairs(tokenizer, settings.template, settings.learn_prompts),
        infills=Infills(tokenizer, fim.spm_rate),
        dialogues=None if chat is None else Dialogues(tokenizer, chat),
    )


def _layout(
    columns: Sequence[str], tokenizer: Tokenizer, settings: FormatSettings
) -> Literal["plain", "file", "repository"]:
    layout = settings.layout
    if layout == "auto":
        is_whole = tokenizer.sentinels.file_sep is not None and "repository" in columns
        return "plain" if "path" not in columns else "repository" if is_whole else "file"
    if layout == "repository" and tokenizer.sentinels.file_sep is None:
        raise ConfigError(
            "this vocabulary has no <file_sep>, so repositories cannot be laid out", "--layout file"
        )
    if layout == "repository" and not {"repository", "path"} <= {*columns}:
        raise ConfigError(
            "repositories need the columns 'repository' and 'path'",
            f"the columns are {', '.join(map(repr, columns))}; or choose --layout plain",
        )
    return layout


def by_repository(records: Sequence[Record]) -> list[Record]:
    """One record for each repository, in order of first appearance; then what is no file."""
    grouped: dict[str, list[Document]] = {}
    others: list[Record] = []
    for record in records:
        if isinstance(record, Document) and not record.is_tagged:
            grouped.setdefault(record.repository, []).append(record)
        else:
            others.append(record)
    return [*(Repository(name=name, files=tuple(files)) for name, files in grouped.items()), *others]


def _all_learned(tokens: list[int], is_cut: bool = False) -> Example:
    return Example(tokens, [True] * len(tokens), is_cut)


def _cut_to(tokens: list[int], learned: list[bool], room: int) -> list[Example]:
    example = Example(tokens[:room], learned[:room], len(tokens) > room)
    return [example] if example.num_learned else []


def _check_template(template: str, columns: Sequence[str], chosen: tuple[str | None, str | None]) -> None:
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
    prompts, completions = {*PROMPT_COLUMNS, chosen[0]}, {*ANSWER_COLUMNS, chosen[1]}
    order = ["p" if n in prompts else "c" for n in names if n in prompts | completions]
    if order[-1:] != ["c"] or "p" not in order or order.count("c") != 1:
        raise ConfigError(
            f"the template {template!r} does not show the prompt and then the completion once each",
            f"for example {QUESTION!r}",
        )
