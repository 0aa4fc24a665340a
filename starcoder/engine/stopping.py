"""Stopping: from drawn tokens to text, and when a sample ends.

The token that ends a sample by its id (an end token or one of `stop_ids`) is in neither its tokens
nor its text. A stop string is cut from the text, and so is text beyond the scope or what postprocessing
trims, but the tokens stay in the tokens. Text is held back only while it may still be cut, or while it
is half a character.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from starcoder.engine import postprocess
from starcoder.engine.scopes import Scope, WholeLines
from starcoder.engine.stopstrings import StopStrings
from starcoder.files import unix_newlines
from starcoder.request import FinishReason, PostprocessRule, SamplingParams


class Decoder(Protocol):
    """Turns tokens into text piece by piece; `tokenizer.StreamDecoder` is one."""

    def push(self, token: int, skip: int = 0) -> str: ...
    def flush(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CursorContext:
    """The text around the cursor as the user has it, for the rules that look at it."""

    before: str = ""
    after: str | None = None
    inserted: str = ""  # the beginning of `after` that the model did not see
    newline: Literal["\n", "\r\n"] = "\n"
    rules: Sequence[PostprocessRule] = ()


@dataclass(frozen=True, slots=True)
class TokenOutcome:
    """What one token brings."""

    text: str = ""
    is_kept: bool = True  # whether the token belongs to the completion
    finish_reason: FinishReason | None = None
    stop: str | int | None = None


class Stopper:
    """Follows one sample; `push` each token until an outcome has a `finish_reason`."""

    def __init__(
        self,
        params: SamplingParams,
        decoder: Decoder,
        *,
        end_ids: Collection[int] = (),
        cursor: CursorContext | None = None,
    ):
        cursor = cursor or CursorContext()
        self._params, self._decoder = params, decoder
        self._end_ids = frozenset() if params.ignore_eos else frozenset(end_ids)
        self._newlines = Newlines() if cursor.newline == "\r\n" else None
        stops = params.stop if self._newlines is None else [unix_newlines(stop) for stop in params.stop]
        self._originals = dict(zip(stops, params.stop, strict=True))
        self._stops = StopStrings(stops)
        self._lines = WholeLines() if params.deadline_ms and params.deadline_at == "line" else None
        self._filters = _filters(params, cursor, self._lines)
        self._num_kept = 0

    @property
    def trimmed(self) -> tuple[str, ...]:
        """The postprocess rules that took text away, once the sample has ended."""
        return tuple(stage.name for stage in self._filters if stage.is_trimmed)

    def push(self, token: int, skip: int = 0) -> TokenOutcome:
        """Take a token, whose first `skip` bytes are the prompt's."""
        if token in self._params.stop_ids:
            return TokenOutcome(self.end("stop"), False, "stop", token)
        if token in self._end_ids:
            return TokenOutcome(self.end("eos"), False, "eos")
        self._num_kept += 1
        text = self._decoder.push(token, skip)
        is_last = self._num_kept >= self._params.max_tokens
        if is_last:  # half a character turns into U+FFFD, which may itself complete a stop string
            text += self._decoder.flush()
        text, stop = self._stops.push(self._unify(text))
        text, has_ended = self._filter(text)
        if has_ended:
            return TokenOutcome(self._restore(text), True, "stop")
        if stop is not None:
            text += stop if self._params.include_stop else ""
            return TokenOutcome(self._restore(text + self._drain("")), True, "stop", self._originals[stop])
        if is_last:
            return TokenOutcome(self._restore(text + self._drain(self._flush_stops())), True, "length")
        return TokenOutcome(self._restore(text))

    def end(self, reason: FinishReason) -> str:
        """Text still held back, for a sample that ends for another reason than its text."""
        if self._lines is not None:
            self._lines.is_late = reason == "deadline"
        text, stop = self._stops.push(self._unify(self._decoder.flush()))
        return self._restore(self._drain(text if stop is not None else text + self._flush_stops()))

    def _filter(self, text: str) -> tuple[str, bool]:
        """The text that comes out of all stages, and whether one of them has ended the sample."""
        for at, stage in enumerate(self._filters):
            text, has_ended = stage.push(text)
            if has_ended:
                return self._drain(text, at + 1), True
        return text, False

    def _drain(self, text: str, start: int = 0) -> str:
        """The last text that comes out when `text` is the last to go into the stages from `start` on."""
        for stage in self._filters[start:]:
            text, has_ended = stage.push(text)
            text = text if has_ended else text + stage.flush()
        return text

    def _flush_stops(self) -> str:
        return self._stops.flush() + (self._newlines.flush() if self._newlines else "")

    def _unify(self, text: str) -> str:
        return self._newlines.unify(text) if self._newlines else text

    def _restore(self, text: str) -> str:
        return text.replace("\n", "\r\n") if self._newlines else text


def _filters(
    params: SamplingParams, cursor: CursorContext, lines: WholeLines | None
) -> list[postprocess.Filter]:
    before, after = cursor.before, cursor.after
    if cursor.newline == "\r\n":
        before, after = unix_newlines(before), None if after is None else unix_newlines(after)
    stages: list[postprocess.Filter] = []
    if params.stop_at or params.min_indent is not None or params.max_lines is not None:
        stages.append(Scope(params, before))
    if lines is not None:
        stages.append(lines)
    return stages + postprocess.filters(cursor.rules, before, after, inserted=unix_newlines(cursor.inserted))


class Newlines:
    """Makes CRLF into LF, also when the two characters come in different pieces."""

    def __init__(self) -> None:
        self._held = ""

    def unify(self, text: str) -> str:
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        return text.removesuffix("\r").replace("\r\n", "\n")

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held
