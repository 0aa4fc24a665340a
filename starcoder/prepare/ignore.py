"""Matches paths against the patterns of .gitignore and .gitattributes files.

Source: git's documentation, gitignore(5) "PATTERN FORMAT" and gitattributes(5).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of such a file: paths below `folder` that match, and what is said of them."""

    folder: str  # with a slash at its end; "" is the root
    pattern: re.Pattern[str]
    directories_only: bool
    says: Mapping[str, bool]  # of .gitignore: {"ignore": True}, or False for lines that begin with !

    def matches(self, path: str, *, is_directory: bool) -> bool:
        if self.directories_only and not is_directory:
            return False
        return path.startswith(self.folder) and self.pattern.fullmatch(path, len(self.folder)) is not None


def ignore_rules(text: str, folder: str) -> list[Rule]:
    """The rules of a .gitignore file in `folder`."""
    rules = []
    for line in text.splitlines():
        line = re.sub(r"(?<!\\)\s+$", "", line)
        if not line or line.startswith("#"):
            continue
        is_kept = line.startswith("!")
        rule = _rule(line[1:] if is_kept else line, folder, {"ignore": not is_kept})
        rules += [rule] if rule else []
    return rules


def attribute_rules(text: str, folder: str) -> list[Rule]:
    """The rules of a .gitattributes file in `folder` on what linguist and git call source."""
    rules = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith(("#", "[")):
            continue
        says = {}
        for word in words[1:]:
            name, _, value = word.lstrip("-!").partition("=")
            if name in ("linguist-generated", "linguist-vendored", "binary"):
                says[name] = not word.startswith(("-", "!")) and value.lower() not in ("false", "0")
        rule = _rule(words[0], folder, says) if says else None
        rules += [rule] if rule else []
    return rules


def said_of(path: str, rules: Iterable[Rule], *, is_directory: bool = False) -> dict[str, bool]:
    """What the rules say of a path; later rules win."""
    says: dict[str, bool] = {}
    for rule in rules:
        if rule.matches(path, is_directory=is_directory):
            says.update(rule.says)
    return says


def _rule(pattern: str, folder: str, says: Mapping[str, bool]) -> Rule | None:
    directories_only = pattern.endswith("/")
    pattern = pattern.rstrip("/")
    is_anchored = "/" in pattern
    try:
        regex = _compiled(pattern.removeprefix("/"), is_anchored)
    except re.error:
        return None  # a pattern git would not match either
    return Rule(folder, regex, directories_only, says)


@lru_cache(maxsize=4096)
def _compiled(pattern: str, is_anchored: bool) -> re.Pattern[str]:
    out, at = "" if is_anchored else "(?:.*/)?", 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out, at = out + "(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            out, at = out + ".*", at + 2
        elif pattern[at] == "*":
            out, at = out + "[^/]*", at + 1
        elif pattern[at] == "?":
            out, at = out + "[^/]", at + 1
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end].replace("\\", "\\\\")
            out, at = out + f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]", end + 1
        else:
            at += pattern[at] == "\\" and at + 1 < len(pattern)
            out, at = out + re.escape(pattern[at]), at + 1
    return re.compile(out, re.DOTALL)
