"""The open documents as the editor has them: texts, versions, and positions in any of the three encodings.

Lines end at "\\n", "\\r\\n" and "\\r" only, as the protocol says; form feeds and U+2028 are characters.
Source: Language Server Protocol 3.18, "Text Documents" and "Position".
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

Encoding = Literal["utf-8", "utf-16", "utf-32"]
_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Position:
    """Line and character, both from 0; what a character is depends on the encoding agreed."""

    line: int
    character: int


@dataclass(frozen=True, slots=True)
class Change:
    """Replace the text from `start` to `end` by `text`; without them, the whole document."""

    text: str
    start: Position | None = None
    end: Position | None = None


@dataclass(slots=True)
class Document:
    """One open document."""

    uri: str
    text: str
    version: int
    language: str = ""
    edited_s: float = 0.0  # time.monotonic() of the last edit; 0: never
    edited_at: int = 0  # offset of the last edit
    _starts: list[int] | None = field(default=None, repr=False)

    @property
    def path(self) -> str | None:
        """File system path; None for documents that are not files."""
        parts = urlsplit(self.uri)
        return unquote(parts.path) if parts.scheme == "file" else None

    def offset(self, position: Position, encoding: Encoding) -> int:
        """Characters before `position`; places that do not exist are moved to the nearest that does."""
        if position.line < 0:
            return 0
        starts = self._line_starts()
        if position.line >= len(starts):
            return len(self.text)
        start = starts[position.line]
        line = self._line(position.line)
        return start + _characters(line, max(0, position.character), encoding)

    def position(self, offset: int, encoding: Encoding) -> Position:
        """Where the character at `offset` is."""
        starts = self._line_starts()
        low, high = 0, len(starts) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if starts[middle] <= offset else (low, middle - 1)
        return Position(low, _units(self.text[starts[low] : offset], encoding))

    def apply(self, changes: Sequence[Change], version: int, encoding: Encoding) -> None:
        """Edit the text as the editor did."""
        for change in changes:
            if change.start is None or change.end is None:
                self.text, self.edited_at = change.text, 0
            else:
                start, end = self.offset(change.start, encoding), self.offset(change.end, encoding)
                self.text = self.text[:start] + change.text + self.text[max(start, end) :]
                self.edited_at = start + len(change.text)
            self._starts = None
        self.version, self.edited_s = version, time.monotonic()

    def _line(self, number: int) -> str:
        """The line's text without its end."""
        starts = self._line_starts()
        end = starts[number + 1] if number + 1 < len(starts) else len(self.text)
        return self.text[starts[number] : end].rstrip("\r\n")

    def _line_starts(self) -> list[int]:
        if self._starts is None:
            self._starts = [0, *(match.end() for match in _LINE_END.finditer(self.text))]
        return self._starts


class Documents:
    """All open documents, by URI."""

    def __init__(self) -> None:
        self._open: dict[str, Document] = {}

    def __iter__(self) -> Iterator[Document]:
        return iter(list(self._open.values()))

    def get(self, uri: str) -> Document | None:
        return self._open.get(uri)

    def open(self, document: Document) -> None:
        self._open[document.uri] = document

    def close(self, uri: str) -> None:
        self._open.pop(uri, None)


def _units(text: str, encoding: Encoding) -> int:
    if encoding == "utf-32" or text.isascii():
        return len(text)
    if encoding == "utf-8":
        return len(text.encode("utf-8", "surrogatepass"))
    return len(text) + sum(character > "\uffff" for character in text)


def _characters(line: str, units: int, encoding: Encoding) -> int:
    """Characters of `line` in its first `units` units; a cut inside a character leaves it out."""
    if encoding == "utf-32" or line.isascii():
        return min(units, len(line))
    seen = 0
    for number, character in enumerate(line):
        seen += _units(character, encoding)
        if seen > units:
            return number
    return len(line)
