"""Scopes: a completion ends where the code it writes ends. Pure text, as it comes.

Rules, one per scope. The first line is the cursor's line, what stands before the cursor included, or the
first one after it that is not blank.

- line: ends before the first line end that comes after something other than blanks.
- indent: ends before the first line that is indented less than the first.
- block: ends with the block that the first line opens, its closing line included; if it opens none, before
  the first line that is indented less.
- function: as block, for the function that the first line opens, else the one around the cursor, else the
  first one that is written.
- min_indent: ends before the first new line that starts with fewer blanks, tabs counting one each.
- max_lines: ends before the line end that would begin one line more.

Blank lines decide nothing and are held back until the next line decides. Limits: indentation is all that
is looked at, so text of several lines within quotes ends a scope where it is indented less.
"""

import re
from collections.abc import Iterator

from starcoder.request import SamplingParams

_TAB = 4  # columns; matters only where tabs and spaces mix

_OPENERS, _CLOSERS = "{([:", "})]"
_GO_ON = frozenset({"else", "elif", "elsif", "elseif", "except", "finally", "catch", "rescue", "ensure"})
_CLOSE = frozenset({"end", "fi", "done", "esac"})
_COMMENT = re.compile(r"\s*(?:#|//).*$")
_NO_FUNCTION = re.compile(
    r"\s*(?:#|//|\*|/\*|[})\]]|(?:if|for|foreach|while|switch|catch|else|elif|do|try|with|using|match|unless)\b)"
)
_FUNCTION = re.compile(r"\b(?:def|fn|func|fun|function)\b|\w\s*\(.*\)[^();=]*\{$|=>\s*\{$")


def indentation(line: str) -> int:
    """Columns of blanks that `line` starts with."""
    columns = 0
    for char in line:
        if char == "\t":
            columns += _TAB - columns % _TAB
        elif char == " ":
            columns += 1
        else:
            break
    return columns


class Scope:
    """Passes the text of a completion on until its scope ends. Fed by character, so splits change nothing."""

    name, is_trimmed = "scope", False

    def __init__(self, params: SamplingParams, before: str):
        """`before` is the text before the cursor, with \\n line ends."""
        self._params, self._before = params, before
        self._line = before[before.rfind("\n") + 1 :]
        self._num_lines = 1
        self._has_text = False  # other than blanks
        self._held = ""
        self._is_inside = True  # the line so far
        self._first: int | None = None  # indentation of the first line
        self._body: _Body | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is inside, and whether the scope has ended; what was held back is then dropped."""
        released = ""
        for char in text:
            if char != "\n":
                self._line += char
                self._held += char
                self._has_text |= not char.isspace()
            verdict = True if self._is_inside else self._judge(is_whole=char == "\n")
            if verdict is False:
                return released, True
            if verdict:
                self._is_inside = True
                released, self._held = released + self._held, ""
            if char == "\n":
                if self._ends_with_line():
                    return released, True
                self._held += char
        return released, False

    def flush(self) -> str:
        """Text held back, when no more comes."""
        held, self._held = self._held, ""
        return "" if not self._is_inside and self._judge(is_whole=True) is False else held

    def _ends_with_line(self) -> bool:
        """Close the line that was written; whether the completion ends before its line end."""
        if self._params.stop_at == "line" and self._has_text:
            return True
        if self._num_lines == self._params.max_lines:
            return True
        if self._line.strip():
            self._close_line(self._line)
        self._num_lines += 1
        self._line, self._is_inside = "", False
        return False

    def _close_line(self, line: str) -> None:
        is_first, stop_at = self._first is None, self._params.stop_at
        if self._first is None:
            self._first = indentation(line)
        if stop_at == "block" and is_first:
            self._body = _Body(self._first, is_open=None)
        if stop_at == "function" and self._body is None:
            around = _function_around(self._before, self._first) if is_first else None
            if _is_function(line):
                self._body = _Body(indentation(line), is_open=True)
            elif around is not None:
                self._body = _Body(around, is_open=True)
                return
        if self._body is not None:
            self._body.close_line(line, is_opening=is_first)

    def _judge(self, *, is_whole: bool) -> bool | None:
        """Whether the new line is inside; None while that is not known yet."""
        body = self._line.lstrip(" \t")
        if not body:
            return None
        least = self._params.min_indent
        if least is not None and len(self._line) - len(body) < least:
            return False
        if self._params.stop_at == "indent" and self._first is not None:
            return indentation(self._line) >= self._first
        if self._body is not None:
            return self._body.judge(self._line, is_whole=is_whole)
        return True


class WholeLines:
    """Passes text on line by line, so that it can end at a whole one: `is_late` drops the line begun."""

    name, is_trimmed = "lines", False

    def __init__(self) -> None:
        self.is_late = False
        self._held = ""
        self._has_line = False  # one that is not blank

    def push(self, text: str) -> tuple[str, bool]:
        """The whole lines, the last one's line end held back."""
        text = self._held + text
        end = text.rfind("\n")
        if end < 0 or not (self._has_line or text[:end].strip()):
            self._held = text
            return "", False
        self._has_line, self._held = True, text[end:]
        return text[:end], False

    def flush(self) -> str:
        """The line begun, or nothing when it is late and there was a whole one before it."""
        held, self._held = self._held, ""
        return "" if self.is_late and self._has_line else held


class _Body:
    """Lines that hang on one line at `level`: deeper ones, and those that close or go on at its level."""

    def __init__(self, level: int, *, is_open: bool | None):
        self._level = level
        self._is_open = is_open  # None: the next line will tell
        self._is_closed = False  # only `else` and the like go on

    def judge(self, line: str, *, is_whole: bool) -> bool | None:
        """Whether `line`, not blank, belongs to it; None while its first word may still grow."""
        columns, body = indentation(line), line.lstrip(" \t")
        if self._is_open is None:
            self._is_open = columns > self._level or (columns == self._level and body[0] == "{")
        if not self._is_open:
            return columns >= self._level
        if columns > self._level:
            return not self._is_closed
        if columns < self._level:
            return False
        if body[0] in "{" + _CLOSERS:
            return not self._is_closed
        words = _GO_ON if self._is_closed else _GO_ON | _CLOSE
        word = _word(body)
        if word == body and not is_whole and any(known.startswith(word) for known in words):
            return None
        return word in words

    def close_line(self, line: str, *, is_opening: bool) -> None:
        """Take note of a whole line, not blank."""
        body = _COMMENT.sub("", line).strip()
        goes_on = body[-1:] in _OPENERS if body else False
        if is_opening:
            self._is_open = True if goes_on else self._is_open
        elif self._is_open and indentation(line) <= self._level:
            closes = line.lstrip(" \t")[0] in _CLOSERS or _word(body) in _CLOSE
            self._is_closed = closes and not goes_on


def _word(text: str) -> str:
    found = re.match(r"\w+", text)
    return found.group() if found else ""


def _is_function(line: str) -> bool:
    return not _NO_FUNCTION.match(line) and _FUNCTION.search(_COMMENT.sub("", line).rstrip()) is not None


def _function_around(before: str, level: int) -> int | None:
    """Indentation of the innermost function whose body is at `level` at the end of `before`."""
    for line in _lines_up(before):
        body = line.lstrip(" \t")
        if not body or body[0] in _CLOSERS:  # a closing line says nothing of what is around
            continue
        if indentation(line) < level:
            level = indentation(line)
            if _is_function(line):
                return level
    return None


def _lines_up(before: str) -> Iterator[str]:
    """The lines above the cursor's, the nearest first."""
    end = before.rfind("\n")
    while end >= 0:
        start = before.rfind("\n", 0, end)
        yield before[start + 1 : end]
        end = start
