"""Healing: a completion begins where the cursor is, not where the tokenizer happened to end a token.

A prompt that ends within a word or an indentation ends in tokens that the model never saw there: it learned
`"\n    "`, not `"\n"` and then four blanks. So the prompt's tail, up to a boundary that more text cannot
move, is taken back and generated again, under the constraint that the new tokens first spell the same bytes.
Tokens that spell nothing else are the prompt's and are never sent. Where one token alone is possible it is
not taken back; otherwise the old tokens are the draft of the first step: keeping them costs no step.

    prompt "    return self.it"    kept "    return self"    text to spell b".it"
    drawn  "." -> b"it" remains    drawn "items" -> the completion begins with "ems"

Source: guidance-ai/guidance: notebooks on token healing, for the idea; the rest is our own.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from starcoder.tokenizer import TokenIndex

# One of each kind of character that pre-tokenizers tell apart, and those of English contractions: "'l" is two
# pieces, "'ll" is one.
_PROBES = ("a", "A", "l", "e", "1", " ", "\n", "\r\n", ".", "'", "é", "☕")
_MAX_BYTES = 48  # that are taken back, unless the last token alone is longer
_WINDOW = 64  # last tokens that are looked at


class Vocabulary(Protocol):
    """What healing needs of a tokenizer."""

    @property
    def index(self) -> TokenIndex: ...

    def token_bytes(self, token: int) -> bytes: ...

    def pieces(self, text: str) -> list[int]:
        """Bytes of each piece of text that is encoded apart from the others, in order."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """A prompt cut back to a stable boundary."""

    tokens: tuple[int, ...]  # what is kept
    text: bytes  # what has to be spelled first
    draft: tuple[int, ...]  # the prompt's own tokens for `text`


def find_boundary(tokens: Sequence[int], num_text: int, vocabulary: Vocabulary) -> Boundary | None:
    """Where to cut a prompt whose last `num_text` tokens are text; None where its own end is stable.

    One token at least is kept, so that there is something to predict from.
    """
    tail = list(tokens[max(1, len(tokens) - min(num_text, _WINDOW)) :]) if num_text else []
    num_back = _num_movable(tail, vocabulary)
    kept, draft = list(tokens[: len(tokens) - num_back]), list(tokens[len(tokens) - num_back :])
    text = b"".join(map(vocabulary.token_bytes, draft))
    while text:
        possible = vocabulary.index.spelling(text)
        if len(possible) != 1 or possible[0] != draft[0]:
            return Boundary(tuple(kept), text, tuple(draft))
        kept.append(draft.pop(0))
        text = text[len(vocabulary.token_bytes(kept[-1])) :]
    return None


def _num_movable(tail: Sequence[int], vocabulary: Vocabulary) -> int:
    """How many of the last tokens more text might encode in another way."""
    spelled = [vocabulary.token_bytes(token) for token in tail]
    # A window may begin within a character; its first piece is not looked at unless it is the whole text.
    text = b"".join(spelled).decode("utf-8", "ignore")
    movable = min(_MAX_BYTES, _movable_bytes(text, vocabulary))
    num_back = num_bytes = 0
    while num_bytes < movable and num_back < len(tail):
        num_bytes += len(spelled[-1 - num_back])
        if num_bytes > _MAX_BYTES and num_back:
            break
        num_back += 1
    return num_back


def _movable_bytes(text: str, vocabulary: Vocabulary) -> int:
    """Bytes at the end of `text` that could be cut into other pieces if more text followed."""
    pieces = vocabulary.pieces(text)
    stable = pieces[:-1]
    for probe in _PROBES:
        probed = vocabulary.pieces(text + probe)
        while stable != probed[: len(stable)]:
            stable.pop()
    return sum(pieces[len(stable) :])


class Healing:
    """The constraint that what one sample draws first spells a given text. Follows the sample."""

    def __init__(self, text: bytes, vocabulary: Vocabulary):
        self._rest, self._vocabulary = text, vocabulary

    @property
    def is_done(self) -> bool:
        return not self._rest

    def allowed(self) -> Tensor:
        """The tokens that may come next, ascending: those that begin the rest of the text, or with it."""
        found = sorted(self._vocabulary.index.spelling(self._rest))
        return torch.frombuffer(array("q", found), dtype=torch.int64)

    def beyond(self, token: int) -> bytes:
        """What an allowed token brings after the text; its other bytes are the prompt's."""
        return self._vocabulary.token_bytes(token)[len(self._rest) :]

    def accept(self, token: int) -> None:
        """Follow the sample to an allowed token."""
        self._rest = self._rest[len(self._vocabulary.token_bytes(token)) :]
