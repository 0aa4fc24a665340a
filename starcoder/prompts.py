"""The text formats the family was trained on: left to right and infilling, fitted to a token budget.

User text is encoded apart from the sentinels, so it can never produce one. Limits: chat, commits,
issues and notebooks are not built here yet; a raw prompt with sentinels goes through
`Tokenizer.encode_with_special` and `CompletionRequest.tokens`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol

from starcoder.errors import CheckpointError, ConfigError, MissingExtraError, RequestError
from starcoder.files import newline_of, unix_newlines

if TYPE_CHECKING:
    from jinja2 import Template

    from starcoder.request import CompletionRequest

Style = Literal["santacoder", "starcoder", "starcoder2"]
FimLayout = Literal["psm", "spm"]

MARKER = "<FILL_HERE>"

AUTO_LAYOUT: FimLayout = "psm"  # what layout="auto" means until both are measured on `nano`

# Below this many tokens for prefix and suffix together no completion is worth its time.
MIN_TEXT_TOKENS = 8

# A suffix is never cut below this share of the text's tokens: the prefix always has the other three quarters.
SUFFIX_SHARE = 4

# Path and repository are left out when they would take more than this share of the budget.
METADATA_SHARE = 4

# Real code has 2 to 5 characters per token. Text that is short by that measure is first tried whole, and
# of a text of more than the maximum only so much is looked at: a huge file must not be encoded to be cut.
TYPICAL_CHARACTERS_PER_TOKEN = 4
MAX_CHARACTERS_PER_TOKEN = 16

# Only tokens that open another document; a model writes them when the present one is finished.
# Source: serving facts of bigcode/starcoder and bigcode/starcoder2; the last two end a turn of StarChat
# and of ChatML fine-tunes.
END_TOKENS = (
    "<file_sep>",
    "<repo_name>",
    "<filename>",
    "<reponame>",
    "<gh_stars>",
    "<commit_before>",
    "<issue_start>",
    "<jupyter_start>",
    "<|end|>",
    "<|im_end|>",
)


class Vocabulary(Protocol):
    """What a prompt needs of a tokenizer."""

    @property
    def sentinels(self) -> Sentinels: ...

    def encode(self, text: str) -> list[int]:
        """Ids of user text; never the id of a special token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentinels:
    """Ids of the special tokens that prompts are built from; None where the vocabulary has none."""

    style: Style
    eos: int
    fim_prefix: int | None = None  # this, middle and suffix are None together: the model cannot infill
    fim_middle: int | None = None
    fim_suffix: int | None = None
    fim_pad: int | None = None
    filename: int | None = None
    repo_name: int | None = None  # spelled <reponame> in StarCoder, <repo_name> in Starcoder2
    gh_stars: int | None = None
    file_sep: int | None = None
    end_ids: frozenset[int]  # a generation ends at any of these

    @property
    def can_infill(self) -> bool:
        return self.fim_middle is not None

    @classmethod
    def resolve(cls, token_to_id: Callable[[str], int | None]) -> Sentinels:
        """Look the sentinels up by their text; `token_to_id` gives None for what is not one token.

        Raises:
            CheckpointError: no end-of-text token, or only some of the infilling sentinels.
        Source: the tokenizers of bigcode/santacoder (hyphens), bigcode/starcoder, bigcode/starcoder2-3b.
        """
        dash = "-" if token_to_id("<fim-prefix>") is not None else "_"
        style: Style = "santacoder" if dash == "-" else "starcoder"
        if style == "starcoder" and token_to_id("<file_sep>") is not None:
            style = "starcoder2"
        eos = token_to_id("<|endoftext|>")
        if eos is None:
            raise CheckpointError(
                "the tokenizer has no token '<|endoftext|>'", "is it of the StarCoder family, and complete?"
            )
        fim = {
            f"fim_{part}": token_to_id(f"<fim{dash}{part}>") for part in ("prefix", "middle", "suffix", "pad")
        }
        missing = [
            f"'<{name.replace('_', dash)}>'" for name, id in fim.items() if id is None and name != "fim_pad"
        ]
        if len(missing) in (1, 2):
            raise CheckpointError(
                f"the tokenizer has only some infilling tokens; missing: {', '.join(missing)}",
                "tokenizer.json may be of another checkpoint; download it again",
            )
        ends = (eos, *fim.values(), *map(token_to_id, END_TOKENS))
        return cls(
            style=style,
            eos=eos,
            **fim,
            filename=token_to_id("<filename>"),
            repo_name=token_to_id("<repo_name>" if style == "starcoder2" else "<reponame>"),
            gh_stars=token_to_id("<gh_stars>"),
            file_sep=token_to_id("<file_sep>"),
            end_ids=frozenset(id for id in ends if id is not None),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """Characters of the request that are not in the prompt."""

    context: int = 0  # repository, path and other files
    suffix: int = 0  # from its end
    prefix: int = 0  # from its start

    @property
    def total(self) -> int:
        return self.context + self.suffix + self.prefix


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Ids to run the model on, and how to read what it writes."""

    tokens: tuple[int, ...]
    layout: Literal["l2r", "psm", "spm"]
    end_ids: frozenset[int]
    newline: Literal["\n", "\r\n"] = "\n"  # line end of the user's file; the prompt and the model only use \n
    dropped: Dropped = Dropped()


def compile_chat_template(source: str, refuse: Callable[[str], NoReturn], *, extra: str) -> Template:
    """A jinja chat template, sandboxed, with what Hugging Face's templates expect to find.

    `refuse` is called by a template that does not take the messages. `extra` installs jinja2.

    Raises:
        ConfigError: the template is not valid, or jinja2 is not installed.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise MissingExtraError("chat templates need jinja2, which is not installed", extra) from None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string(_without_training_marks(source))
    except TemplateError as error:
        raise ConfigError(f"the chat template is not valid: {error}", "choose another one") from None


def _without_training_marks(template: str) -> str:
    """A chat template without Hugging Face's `generation` blocks, which mark what is learnt in training.

    A block that is always there stands for each, so that the white space around it stays what it was.
    """
    opened = re.sub(r"\{%(-?)\s*generation\s*(-?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%(-?)\s*endgeneration\s*(-?)%\}", r"{%\1 endif \2%}", opened)


def split_marker(text: str) -> tuple[str, str | None]:
    """Prefix and suffix around `<FILL_HERE>`; suffix None where there is no marker.

    Raises:
        RequestError: more than one marker.
    """
    prefix, *rest = text.split(MARKER)
    if len(rest) > 1:
        raise RequestError(
            f"the prompt has {len(rest)} markers {MARKER}, expected at most one", "fill one hole at a time"
        )
    return prefix, rest[0] if rest else None


def join_fim(
    layout: FimLayout, prefix: Sequence[int], suffix: Sequence[int], sentinels: Sentinels
) -> list[int]:
    """Ids of an infilling prompt or document, up to where the middle begins.

    Raises:
        RequestError: the model has no infilling tokens.
    Source: bigcode-project/Megatron-LM: megatron/data/gpt_dataset.py, `permute`; SPM is its variant 2.
    """
    if sentinels.fim_prefix is None or sentinels.fim_middle is None or sentinels.fim_suffix is None:
        raise RequestError(
            "this model cannot infill: its tokenizer has no infilling tokens",
            "leave the suffix out, or use a StarCoder base model",
        )
    if layout == "psm":
        return [sentinels.fim_prefix, *prefix, sentinels.fim_suffix, *suffix, sentinels.fim_middle]
    return [sentinels.fim_prefix, sentinels.fim_suffix, *suffix, sentinels.fim_middle, *prefix]


def build(request: CompletionRequest, vocabulary: Vocabulary, *, budget: int) -> Prompt:
    """The prompt of a request, at most `budget` tokens long, in the layout the model was trained on.

    `suffix=None` is left to right. So is a blank suffix with layout "auto": at the end of a file plain
    continuation is cheaper and safer; ask for "psm" or "spm" to infill there all the same.

    Over budget, context goes first (extras that do not fit beside the others, the first ones before the
    last), then the suffix's end, then the prefix's start. The suffix keeps what the prefix leaves and at
    least a quarter. Cuts fall on line starts and only move in coarse steps, so that while a user types the
    prompt's cached part stays valid. Sentinels are never cut.

    Path and repository go where the family had them. Extras are for Starcoder2 alone: the others saw no
    neighbouring files in training, so they are left out. Starcoder2 knew paths of all files or of none:
    without `path` neither the repository nor the extras' paths are shown.

    Raises:
        RequestError: an empty prompt, infilling on a model that cannot, tokens longer than the budget, or a
            budget too small for any text.
    """
    if request.tokens is not None:
        return _from_tokens(request.tokens, vocabulary, budget)
    suffix = request.suffix
    if suffix is not None and request.layout == "auto" and not suffix.strip():
        suffix = None
    if not request.prefix and not suffix:
        raise RequestError("the prompt is empty", "give some text before or after the cursor")
    layout: Literal["l2r", "psm", "spm"] = "l2r"
    if suffix is not None:
        layout = AUTO_LAYOUT if request.layout == "auto" else request.layout
    newline = newline_of(request.prefix + (request.suffix or ""))
    frame = _frame(request, vocabulary, budget)
    room = (
        budget - len(frame.opening) - len(frame.separator) - len(frame.tags) - (0 if layout == "l2r" else 3)
    )
    # Fitting both parts to each other asks for the same spans twice.
    cutter = _Cutter(encode=cache(vocabulary.encode), step=max(1, budget // 4))
    before, after = cutter.around_cursor(
        frame.line, unix_newlines(request.prefix), unix_newlines(suffix or ""), room
    )
    files = _files(request, frame, room - len(before.tokens) - len(after.tokens), vocabulary)
    tokens = [*frame.tags, *before.tokens]
    if layout != "l2r":
        tokens = join_fim(layout, tokens, after.tokens, vocabulary.sentinels)
    return Prompt(
        tokens=(*frame.opening, *files.tokens, *frame.separator, *tokens),
        layout=layout,
        end_ids=vocabulary.sentinels.end_ids,
        newline=newline,
        dropped=Dropped(context=frame.dropped + files.dropped, suffix=after.dropped, prefix=before.dropped),
    )


def _from_tokens(tokens: tuple[int, ...], vocabulary: Vocabulary, budget: int) -> Prompt:
    if not tokens:
        raise RequestError("the prompt is empty", "give at least one token")
    if len(tokens) > budget:
        raise RequestError(
            f"the prompt has {len(tokens)} tokens, there is room for {budget}",
            "shorten it, ask for fewer tokens, or use a model with a longer context",
        )
    return Prompt(tokens=tokens, layout="l2r", end_ids=vocabulary.sentinels.end_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """Says which file this is: opening, other files, separator, [infilling sentinel], tags, line, prefix."""

    opening: tuple[int, ...] = ()
    separator: tuple[int, ...] = ()
    tags: tuple[int, ...] = ()
    line: str = ""  # ends in a line end; encoded together with the prefix, as in training
    dropped: int = 0  # characters of repository and path that found no place


def _frame(request: CompletionRequest, vocabulary: Vocabulary, budget: int) -> _Frame:
    """Repository and path where the family had them, if they are short enough to be worth their tokens.

    Source: bigcode-project/bigcode-dataset: preprocessing/add_content_with_meta.py; arXiv 2402.19173.
    """
    sentinels, encode = vocabulary.sentinels, vocabulary.encode
    repo, path = request.repo or "", request.path or ""
    separator = (sentinels.file_sep,) if sentinels.file_sep is not None and request.extras else ()
    bare = _Frame(separator=separator, dropped=len(repo) + len(path))
    if sentinels.file_sep is not None:
        if not path:
            return bare
        named = (sentinels.repo_name, *encode(repo)) if sentinels.repo_name is not None and repo else ()
        frame = _Frame(
            opening=named,
            separator=(sentinels.file_sep,),
            line=f"{path}\n",
            dropped=0 if named else len(repo),
        )
    else:
        given = ((sentinels.repo_name, repo), (sentinels.filename, path))
        shown = [(tag, text) for tag, text in given if tag is not None and text]
        if not shown:
            return bare
        *first, (last, line) = shown
        frame = _Frame(
            tags=(*(id for tag, text in first for id in (tag, *encode(text))), last),
            line=f"{line}\n",
            dropped=len(repo) + len(path) - sum(len(text) for _, text in shown),
        )
    num_tokens = len(frame.opening) + len(frame.separator) + len(frame.tags) + len(encode(frame.line))
    return frame if METADATA_SHARE * num_tokens <= budget else bare


@dataclass(frozen=True, slots=True)
class _Part:
    tokens: list[int]
    dropped: int  # characters


def _files(request: CompletionRequest, frame: _Frame, room: int, vocabulary: Vocabulary) -> _Part:
    """The extras that fit, in the request's order; the last ones choose first."""
    separator = vocabulary.sentinels.file_sep
    files: list[list[int]] = []
    dropped = 0
    for extra in reversed(request.extras):
        text = f"{extra.path}\n{unix_newlines(extra.text)}" if frame.line else unix_newlines(extra.text)
        if separator is not None and len(text) <= room * MAX_CHARACTERS_PER_TOKEN:
            tokens = [separator, *vocabulary.encode(text)]
            if len(tokens) <= room:
                room -= len(tokens)
                files.append(tokens)
                continue
        dropped += len(extra.text)
    return _Part([id for tokens in reversed(files) for id in tokens], dropped)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cutter:
    """Encodes as much of a text as fits. Cuts are near multiples of `step` characters from the text's own

    start, so they stay in place while text is typed at its end.
    """

    encode: Callable[[str], list[int]]
    step: int

    def around_cursor(self, line: str, prefix: str, suffix: str, room: int) -> tuple[_Part, _Part]:
        """Prefix, with `line` before it, and suffix: at most `room` tokens together.

        Raises:
            RequestError: next to nothing of the text would be left.
        """
        before, after = self.fit(prefix, room, lead=line), self.fit(suffix, room, from_start=True)
        if len(before.tokens) + len(after.tokens) > room:
            after = self.fit(suffix, max(room - len(before.tokens), room // SUFFIX_SHARE), from_start=True)
            before = self.fit(prefix, room - len(after.tokens), lead=line)
        if room < (MIN_TEXT_TOKENS if before.dropped or after.dropped else 1):
            raise RequestError(
                f"room for {max(room, 0)} tokens is too little for the text around the cursor",
                "ask for fewer tokens, or use a model with a longer context",
            )
        return before, after

    def fit(self, text: str, room: int, *, lead: str = "", from_start: bool = False) -> _Part:
        """`lead` and the end of `text`, or its start, in at most `room` tokens if `lead` takes no more."""
        if len(text) <= room * TYPICAL_CHARACTERS_PER_TOKEN:
            tokens = self.encode(lead + text)
            if len(tokens) <= room:
                return _Part(tokens, 0)
        limit = room - len(self.encode(lead))
        while True:
            kept = self._keep(text, limit, from_start)
            tokens = self.encode(lead + kept)
            if len(tokens) <= room or not kept:
                return _Part(tokens, len(text) - len(kept))
            limit -= len(tokens) - room  # rare: the pieces take fewer tokens apart than together

    def _keep(self, text: str, limit: int, from_start: bool) -> str:
        """Whole lines if they use at least half of `limit` tokens, else cut anywhere."""
        window = max(0, limit) * MAX_CHARACTERS_PER_TOKEN
        low, high = (0, window) if from_start else (len(text) - window, len(text))
        num_characters = 0
        for cuts in (
            _line_cuts(text, self.step, low, high),
            _any_cuts(text, max(1, self.step // 8), low, high),
        ):
            spans = list(pairwise(cuts))
            used, num_characters = 0, 0
            for start, stop in spans if from_start else reversed(spans):
                size = len(self.encode(text[start:stop]))
                if used + size > limit:
                    break
                used, num_characters = used + size, num_characters + stop - start
            if 2 * used >= limit:
                break
        return text[:num_characters] if from_start else text[len(text) - num_characters :]


def _any_cuts(text: str, step: int, low: int, high: int) -> list[int]:
    """Multiples of `step` between `low` and `high`, and the text's own end if it is among them."""
    first = -(-max(0, low) // step) * step
    return [*range(first, min(high, len(text)), step), *([len(text)] if high >= len(text) else [])]


def _line_cuts(text: str, step: int, low: int, high: int) -> list[int]:
    """As `_any_cuts`, each moved on to the next line start if there is one within `step` characters."""
    cuts = _any_cuts(text, step, low, high)
    ends = (text.find("\n", cut - 1, cut - 1 + step) for cut in cuts if 0 < cut < len(text))
    kept = {cut for cut in cuts if cut in (0, len(text))}
    return sorted(kept | {end + 1 for end in ends if end >= 0})
