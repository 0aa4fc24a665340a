"""Stopping: from drawn tokens to text, and when a sample ends.

The token that ends a sample by its id (an end token or one of `stop_ids`) is in neither its tokens
nor its text. A stop string is cut from the text, but its tokens stay in the tokens. Text is held
back only while it may be the beginning of a stop string or half a character.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol

from starcoder.request import FinishReason, SamplingParams


class Decoder(Protocol):
    """Turns tokens into text piece by piece; `tokenizer.StreamDecoder` is one."""

    def push(self, token: int) -> str: ...
    def flush(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one token brought."""

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
        newline: Literal["\n", "\r\n"] = "\n",
    ):
        self._params, self._decoder = params, decoder
        self._end_ids = frozenset() if params.ignore_eos else frozenset(end_ids)
        self._newlines = Newlines() if newline == "\r\n" else None
        stops = params.stop if newline == "\n" else [stop.replace("\r\n", "\n") for stop in params.stop]
        self._originals = dict(zip(stops, params.stop, strict=True))
        self._stops = StopStrings(stops)
        self._num_kept = 0

    def push(self, token: int) -> Outcome:
        if token in self._params.stop_ids:
            return Outcome(self.flush(), False, "stop", token)
        if token in self._end_ids:
            return Outcome(self.flush(), False, "eos")
        self._num_kept += 1
        text, stop = self._release(self._decoder.push(token))
        if stop is not None:
            return Outcome(text, True, "stop", stop)
        if self._num_kept == self._params.max_tokens:
            return self._end_of_length(text)
        return Outcome(text)

    def flush(self) -> str:
        """Text still held back, for a sample that ends without a stop string."""
        text, stop = self._release(self._decoder.flush())
        return text if stop is not None else text + self._finish()

    def _end_of_length(self, text: str) -> Outcome:
        # Half a character turns into a replacement character, which may itself complete a stop string.
        more, stop = self._release(self._decoder.flush())
        if stop is not None:
            return Outcome(text + more, True, "stop", stop)
        return Outcome(text + more + self._finish(), True, "length")

    def _release(self, text: str) -> tuple[str, str | None]:
        if self._newlines:
            text = self._newlines.unify(text)
        text, stop = self._stops.push(text)
        return self._restore(text), self._originals[stop] if stop is not None else None

    def _finish(self) -> str:
        held = self._newlines.flush() if self._newlines else ""
        return self._restore(self._stops.flush() + held)

    def _restore(self, text: str) -> str:
        return text.replace("\n", "\r\n") if self._newlines else text


class StopStrings:
    """Finds the stop string that is completed first, however the text is cut into pieces.

    Of two completed by the same character the longer wins. Work is proportional to the new text:
    one state per stop string. Source: Knuth, Morris and Pratt 1977, "Fast pattern matching in strings".
    """

    def __init__(self, stops: Collection[str]):
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)  # characters of each stop string that the text ends with
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Text that no stop string can cut any more, and the stop string if one is complete."""
        if not self._stops:
            return text, None
        held = self._held + text
        for at in range(len(self._held), len(held)):
            stop = self._step(held[at])
            if stop is not None:
                self._held = ""
                return held[: at + 1 - len(stop)], stop
        cut = len(held) - max(self._states)
        self._held = held[cut:]
        return held[:cut], None

    def flush(self) -> str:
        """Text held back for a stop string that did not come."""
        held, self._held = self._held, ""
        return held

    def _step(self, char: str) -> str | None:
        found = None
        for i, (stop, borders) in enumerate(zip(self._stops, self._borders, strict=True)):
            state = self._states[i]
            while state and stop[state] != char:
                state = borders[state - 1]
            state += stop[state] == char
            self._states[i] = state
            if state == len(stop) and found is None:
                found = stop
        return found


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


def _borders(pattern: str) -> list[int]:
    """For each beginning of `pattern`, the length of its longest proper beginning that also ends it."""
    borders, length = [0] * len(pattern), 0
    for i in range(1, len(pattern)):
        while length and pattern[length] != pattern[i]:
            length = borders[length - 1]
        length += pattern[length] == pattern[i]
        borders[i] = length
    return borders
