"""Prompts as the families were trained: left to right and infilling, fitted to a token budget.

User text is encoded apart from the sentinels, so it can never produce one; where they go is in
`starcoder.layouts`. Limits: chats are `starcoder.chat`; commits, issues and notebooks go through
`Tokenizer.encode_with_special` and `CompletionRequest.tokens`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Protocol

from starcoder.errors import RequestError
from starcoder.files import newline_of, unix_newlines
from starcoder.layouts import FimOrder, Header, Sentinels

if TYPE_CHECKING:
    from starcoder.request import CompletionRequest

MARKER = "<FILL_HERE>"

# What layout="auto" means where the family was trained on both. Single held-out lines, nano: SPM,
# healed, completes 11 % exactly; PSM none, since it does not end in the text at the cursor.
AUTO_LAYOUT: FimOrder = "spm"

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


class Vocabulary(Protocol):
    """What a prompt needs of a tokenizer."""

    @property
    def sentinels(self) -> Sentinels: ...

    def encode(self, text: str) -> list[int]:
        """Ids of user text; never the id of a special token."""


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
    num_open: int = 0  # last tokens that are the text before the cursor, which the completion continues
    newline: Literal["\n", "\r\n"] = "\n"  # line end of the user's file; the prompt and the model only use \n
    dropped: Dropped = Dropped()


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
        layout = vocabulary.sentinels.order(AUTO_LAYOUT) if request.layout == "auto" else request.layout
    newline = newline_of(request.prefix + (request.suffix or ""))
    sentinels = vocabulary.sentinels
    header = _header(request, vocabulary, budget, is_infill=layout != "l2r")
    room = budget - len(header.repository) - len(header.file) - len(header.tags)
    room -= 0 if layout == "l2r" else sentinels.layout.num_sentinels
    # Fitting both parts to each other asks for the same spans twice.
    cutter = _Cutter(encode=cache(vocabulary.encode), step=max(1, budget // 4))
    before, after = cutter.around_cursor(
        header.line, unix_newlines(request.prefix), unix_newlines(suffix or ""), room
    )
    files = _files(request, header, room - len(before.tokens) - len(after.tokens), vocabulary)
    tokens = [*header.tags, *before.tokens]
    if layout != "l2r":
        tokens = sentinels.infill(layout, tokens, after.tokens)
    num_before = len(before.tokens)
    return Prompt(
        tokens=(*header.repository, *files.tokens, *header.file, *tokens),
        layout=layout,
        end_ids=sentinels.end_ids,
        num_open=num_before if tokens[len(tokens) - num_before :] == before.tokens else 0,
        newline=newline,
        dropped=Dropped(
            context=_dropped(request, header) + files.dropped, suffix=after.dropped, prefix=before.dropped
        ),
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


def _header(request: CompletionRequest, vocabulary: Vocabulary, budget: int, *, is_infill: bool) -> Header:
    """Repository and path where the family had them, if they are short enough to be worth their tokens."""
    write, encode = vocabulary.sentinels.header, vocabulary.encode
    found = write(encode, repo=request.repo or "", path=request.path or "", is_infill=is_infill)
    num_tokens = len(found.repository) + len(found.file) + len(found.tags) + len(encode(found.line))
    if found.shown and METADATA_SHARE * num_tokens <= budget:
        return found
    return write(encode) if request.extras else Header()


def _dropped(request: CompletionRequest, header: Header) -> int:
    """Characters of repository and path that are not shown."""
    given = (("repo", request.repo), ("path", request.path))
    return sum(len(text or "") for name, text in given if name not in header.shown)


@dataclass(frozen=True, slots=True)
class _Part:
    tokens: list[int]
    dropped: int  # characters


def _files(request: CompletionRequest, header: Header, room: int, vocabulary: Vocabulary) -> _Part:
    """The extras that fit, in the request's order; the last ones choose first."""
    sentinels = vocabulary.sentinels
    files: list[list[int]] = []
    dropped = 0
    for extra in reversed(request.extras):
        path = extra.path if "path" in header.shown else ""
        if sentinels.file_sep is not None and len(path) + len(extra.text) < room * MAX_CHARACTERS_PER_TOKEN:
            tokens = sentinels.file(vocabulary.encode, path, unix_newlines(extra.text))
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
