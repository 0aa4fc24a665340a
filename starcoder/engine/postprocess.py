"""Postprocessing: rules with names cut off what models write too much. Pure text, as it comes.

Rules, in the order in which they work:

- loop: a piece that comes again and again ends the completion after its first time.
- prefix: a completion that begins by writing the lines above the cursor again becomes empty.
- suffix: an end that writes the text after the cursor again, its first line at least, is cut off.
- brackets: closing brackets at the end are cut off if the text after the cursor closes those brackets.
- blank: blanks at the end are cut off, unless text of the same line follows the cursor.

A rule holds back only what it may still cut. "auto" stands for all of them where text follows the cursor,
for loop alone where none does. Limits: brackets are counted without knowing the language; only text in
quotes that end on their line is left out of the count.
"""

import re
from collections import deque
from collections.abc import Sequence
from typing import Protocol, get_args

from starcoder.engine.stopstrings import borders
from starcoder.request import PostprocessRule

# A loop is at least three times the same in at least so many characters: table rows and rulers of 80
# columns repeat legitimately. Pieces longer than the period are found where lines begin.
_LOOP_CHARACTERS, _LOOP_TIMES = 96, 3
_LOOP_PERIOD, _LOOP_LINES = 32, 8

# How much a completion must copy of the lines above before it counts: two lines, or one of this length.
_COPIED_LINES, _COPIED_CHARACTERS, _LINES_ABOVE = 2, 24, 20

# Of the text after the cursor so much is looked at. A first line of fewer letters, as "})", is no evidence;
# a match of so many characters is, and ends the completion at once.
_SUFFIX_CHARACTERS, _SUFFIX_LETTERS, _SUFFIX_CERTAIN = 400, 4, 80

_BRACKETS_CHARACTERS = 4000  # on either side of the cursor

_CLOSER_OF = {"(": ")", "[": "]", "{": "}"}
_CLOSERS = frozenset(_CLOSER_OF.values())
_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'')


class Filter(Protocol):
    """One stage between the model's text and the reader."""

    @property
    def name(self) -> str: ...

    @property
    def is_trimmed(self) -> bool:
        """Whether it took anything away."""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that goes on, and whether the completion ends with it; what was held back is dropped then."""

    def flush(self) -> str:
        """What goes on of the text held back, when no more comes."""


def filters(
    rules: Sequence[PostprocessRule], before: str, after: str | None, *, inserted: str = ""
) -> list[Filter]:
    """The stages of these rules, in order, between `before` and `after` the cursor, both with \\n line ends.

    `inserted` is the beginning of `after` that the model did not see, see `AutoClosed`.
    """
    wanted = set(rules)
    if "auto" in wanted:
        wanted |= {"loop"} if after is None or not after.strip() else set(get_args(PostprocessRule))
    follows = after or ""
    stages: list[Filter] = [AutoClosed(inserted)] if inserted.strip() else []
    if "loop" in wanted:
        stages.append(Loop())
    if "prefix" in wanted:
        stages.append(CopiedPrefix(before))
    if "suffix" in wanted:
        stages.append(CopiedSuffix(before, follows))
    if "brackets" in wanted:
        stages.append(Brackets(before, follows))
    if "blank" in wanted and not _is_in_line(follows):
        stages.append(TrailingBlank())
    return stages


class AutoClosed:
    """Ends a completion where it closes what the editor has closed already, unseen by the model."""

    name = "autoclosed"

    def __init__(self, inserted: str):
        self.is_trimmed = False
        self._closer = inserted.strip()[0]
        self._opener = next((opener for opener, closer in _PAIRS.items() if closer == self._closer), "")
        self._is_on_new_line = inserted[0].isspace()
        self._depth, self._quote, self._escapes = 0, "", False
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        for at, char in enumerate(text):
            if self._closes(char):
                self.is_trimmed = True
                kept = self._held + text[:at]
                return kept.rstrip() if self._is_on_new_line else kept, True
        text = self._held + text
        kept = text.rstrip() if self._is_on_new_line else text
        self._held = text[len(kept) :]
        return kept, False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _closes(self, char: str) -> bool:
        escaped, self._escapes = self._escapes, char == "\\" and not self._escapes
        if escaped:
            return False
        if not self._opener:  # a quote
            return char == self._closer
        if self._quote:
            self._quote = "" if char in (self._quote, "\n") else self._quote
        elif char in "\"'":
            self._quote = char
        elif char == self._opener:
            self._depth += 1
        elif char == self._closer:
            self._depth -= 1
        return self._depth < 0


_PAIRS = _CLOSER_OF | {"<": ">"}


class Loop:
    """Ends a completion after the first time of a piece that repeats."""

    name = "loop"

    def __init__(self) -> None:
        self.is_trimmed = False
        self._text = ""
        self._num_released = 0
        self._runs: dict[int, int] = {}  # period -> from where on all text equals that one period before
        self._lines: deque[int] = deque([0], maxlen=_LOOP_LINES)  # where the last lines begin

    def push(self, text: str) -> tuple[str, bool]:
        start = len(self._text)
        self._text += text
        for at in range(start, len(self._text)):
            end = self._step(at)
            if end is not None:
                self.is_trimmed = True
                return self._text[self._num_released : end], True
        end = min(self._runs.values(), default=len(self._text))
        released, self._num_released = self._text[self._num_released : end], end
        return released, False

    def flush(self) -> str:
        released, self._num_released = self._text[self._num_released :], len(self._text)
        return released

    def _step(self, at: int) -> int | None:
        """Take the character at `at`; where the completion ends if it is in a loop now."""
        text, runs = self._text, self._runs
        char = text[at]
        for period in [period for period in runs if text[at - period] != char]:
            del runs[period]
        periods = [*range(1, min(_LOOP_PERIOD, at) + 1)]
        if at and text[at - 1] == "\n":
            periods += [at - line for line in self._lines]
            self._lines.append(at)
        for period in periods:
            if period not in runs and text[at - period] == char:
                runs[period] = at
        for period, start in runs.items():
            length = at + 1 - start + period
            if length >= _LOOP_TIMES * period and length >= _LOOP_CHARACTERS:
                return start
        return None


class CopiedPrefix:
    """Empties a completion that begins with the lines above the cursor."""

    name = "prefix"

    def __init__(self, before: str):
        self.is_trimmed = False
        start = before.rfind("\n") + 1
        line, starts = before[start:], []
        for _ in range(_LINES_ABOVE):
            if not start:
                break
            start = before.rfind("\n", 0, start - 1) + 1
            starts.append(start)
        above = before[: len(before) - len(line)]
        pieces = [above[at + len(line) :] for at in starts if above.startswith(line, at)]
        self._pieces = [piece for piece in pieces if _is_much(line + piece)]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        if not self._pieces:
            return text, False
        self._held += text
        if any(self._held.startswith(piece) for piece in self._pieces):
            self.is_trimmed = True
            return "", True
        self._pieces = [piece for piece in self._pieces if piece.startswith(self._held)]
        return ("", False) if self._pieces else (self.flush(), False)

    def flush(self) -> str:
        held, self._held = self._held, ""
        self.is_trimmed = any(held + "\n" == piece for piece in self._pieces)
        self._pieces = []
        return "" if self.is_trimmed else held


def _is_much(text: str) -> bool:
    lines = [line for line in text.split("\n") if line.strip()]
    return len(lines) >= _COPIED_LINES or any(len(line.strip()) >= _COPIED_CHARACTERS for line in lines)


class CopiedSuffix:
    """Cuts off an end that equals the beginning of the text after the cursor.

    Source: Knuth, Morris and Pratt 1977, "Fast pattern matching in strings", for the longest such end.
    """

    name = "suffix"

    def __init__(self, before: str, after: str):
        self.is_trimmed = False
        self._is_on_new_line = not _is_in_line(after)
        seed = ""
        if self._is_on_new_line:
            line = before[before.rfind("\n") + 1 :]
            seed = "" if line.strip() else "\n" + line  # the completion may begin with the copy
            at = len(after) - len(after.lstrip())
            after = "\n" + after[after.rfind("\n", 0, at) + 1 :]
        # A copy of all of a short text may go on with a line end.
        is_short = len(after) < _SUFFIX_CHARACTERS
        self._pattern = after.rstrip() + "\n" if is_short else after[:_SUFFIX_CHARACTERS]
        self._least = _evidence(self._pattern)
        self._borders = borders(self._pattern)
        self._state = 0  # characters of the pattern that the text ends with
        self._held = ""
        for char in seed:
            self._step(char)

    def push(self, text: str) -> tuple[str, bool]:
        if self._least is None:
            return text, False
        start = len(self._held)
        self._held += text
        for at in range(start, len(self._held)):
            self._step(self._held[at])
            if self._state == len(self._pattern) >= _SUFFIX_CERTAIN:
                self.is_trimmed = True
                return self._held[: self._cut(at + 1)], True
        cut = self._cut(len(self._held))
        released, self._held = self._held[:cut], self._held[cut:]
        return released, False

    def flush(self) -> str:
        held, self._held = self._held, ""
        self.is_trimmed = self._least is not None and self._state >= self._least and bool(held)
        return held[: self._cut(len(held))] if self.is_trimmed else held

    def _cut(self, end: int) -> int:
        """Where the text that ends at `end` is cut: before what it ends with, and blank lines before that."""
        cut = max(0, end - self._state)
        return len(self._held[:cut].rstrip()) if self._is_on_new_line else cut

    def _step(self, char: str) -> None:
        pattern, state = self._pattern, self._state
        while state and (state == len(pattern) or pattern[state] != char):
            state = self._borders[state - 1]
        self._state = state + (state < len(pattern) and pattern[state] == char)


def _evidence(pattern: str) -> int | None:
    """Length of the whole first lines of `pattern` that are enough to tell a copy; None: it never is."""
    end = 0
    while end < len(pattern):
        found = pattern.find("\n", end + 1)
        end = len(pattern) if found < 0 else found
        if sum(char.isalnum() for char in pattern[:end]) >= _SUFFIX_LETTERS:
            return end
    return None


class Brackets:
    """Cuts off closing brackets that the text after the cursor closes."""

    name = "brackets"

    def __init__(self, before: str, after: str):
        self.is_trimmed = False
        self._is_on_new_line = not _is_in_line(after)
        self._before, self._after = before[-_BRACKETS_CHARACTERS:], after[:_BRACKETS_CHARACTERS]
        self._can_cut = not _CLOSERS.isdisjoint(self._after)
        self._text = ""
        self._num_held = 0

    def push(self, text: str) -> tuple[str, bool]:
        if not self._can_cut:
            return text, False
        self._text += text
        held = self._text[len(self._text) - len(text) - self._num_held :]
        kept = held.rstrip(" \t\n;,)]}")
        self._num_held = len(held) - len(kept)
        return kept, False

    def flush(self) -> str:
        text, start = self._text, len(self._text) - self._num_held
        end = self._end(start)
        self.is_trimmed = end < len(text)
        if self.is_trimmed and self._is_on_new_line:
            end = max(start, len(text[:end].rstrip()))
        self._num_held = 0
        return text[start:end]

    def _end(self, start: int) -> int:
        """Where to cut so that most brackets after the cursor close one before it; never before `start`."""
        text = self._text
        _, closed = _open_and_closed(text)
        ends = [at for at, _ in reversed(closed) if at >= start]
        if not ends:
            return len(text)
        stack, _ = _open_and_closed(self._before)
        _, after = _open_and_closed(self._after)

        def num_matching(end: int) -> int:
            open_, _ = _open_and_closed(text[:end], stack)
            pairs = zip(reversed(open_), after, strict=False)
            return next((num for num, (a, (_, b)) in enumerate(pairs) if a != b), min(len(open_), len(after)))

        return max([len(text), *ends], key=lambda end: (num_matching(end), end))


def _open_and_closed(text: str, stack: Sequence[str] = ()) -> tuple[list[str], list[tuple[int, str]]]:
    """What closes the brackets left open, innermost last, and where brackets close that were not opened."""
    open_, closed = list(stack), []
    bare = _QUOTED.sub(lambda quoted: " " * len(quoted.group()), text)
    for at, char in enumerate(bare):
        if char in _CLOSER_OF:
            open_.append(_CLOSER_OF[char])
        elif char in _CLOSERS:
            if open_ and open_[-1] == char:
                open_.pop()
            else:
                closed.append((at, char))
    return open_, closed


class TrailingBlank:
    """Cuts off blanks at the end."""

    name = "blank"

    def __init__(self) -> None:
        self.is_trimmed = False
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        text = self._held + text
        kept = text.rstrip()
        self._held = text[len(kept) :]
        return kept, False

    def flush(self) -> str:
        self.is_trimmed, self._held = bool(self._held), ""
        return ""


def _is_in_line(after: str) -> bool:
    """Whether text of the cursor's line follows it."""
    return bool(after.partition("\n")[0].strip())
