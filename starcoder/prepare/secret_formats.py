"""Rules for secrets of a known format, in gitleaks' TOML form: our data file's and a user's own.

Source of the data: scripts/make_secret_formats.py, which names it for each rule. Of a user's file `id`,
`regex`, `keywords`, `entropy`, `secretGroup` and the allow lists' `regexes` and `stopwords` count.
"""

import importlib.resources
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from starcoder.errors import ConfigError
from starcoder.prepare.secret_rules import Finding, entropy, is_placeholder, looks_random


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One rule. `words`: one of them, in lower case, is in every text with a match; none: always look."""

    name: str
    kind: str
    regex: str
    words: tuple[str, ...] = ()
    entropy: float = 0.0
    group: int = 0
    check: str = "real"  # not a placeholder; "random": no words either; "always": anything
    replacement: str = "<KEY>"
    allowed: tuple[str, ...] = ()  # patterns of values that are none
    stopwords: tuple[str, ...] = ()

    def find(self, text: str) -> Iterator[Finding]:
        """Every match of a text that holds one of the words."""
        pattern = _compiled(self.regex)
        for match in pattern.finditer(text):
            group = self.group or next((n for n in range(1, pattern.groups + 1) if match[n] is not None), 0)
            if self._accepts(match[group]):
                yield Finding(self.kind, *match.span(group), self.replacement, rule=self.name)

    def _accepts(self, value: str) -> bool:
        if not value or any(word in value.lower() for word in self.stopwords):
            return False
        if any(_compiled(one).search(value) for one in self.allowed):
            return False
        if self.check == "always":
            return True
        if is_placeholder(value) or (self.entropy and entropy(value) < self.entropy):
            return False
        return self.check != "random" or looks_random(value)


@cache
def formats() -> tuple[Format, ...]:
    """The rules of our data file."""
    data = importlib.resources.files("starcoder.prepare").joinpath("secret_formats.toml").read_text("utf-8")
    return tuple(_format(one, {}) for one in tomllib.loads(data)["rules"])


def read_formats(path: Path) -> tuple[Format, ...]:
    """The rules of a user's file.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or a rule has no regex that Python understands.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{str(path)!r} cannot be read: {error}", "name a TOML file with [[rules]]"
        ) from None
    rules = table.get("rules")
    if not isinstance(rules, list) or not all(isinstance(one, dict) for one in rules):
        raise ConfigError(
            f"{str(path)!r} has no [[rules]]", "write them as gitleaks does: id, regex, keywords"
        )
    made = []
    for one in rules:
        if "regex" not in one and "path" in one:
            continue  # of files by their names alone
        if not isinstance(one.get("id"), str) or not isinstance(one.get("regex"), str):
            raise ConfigError(f"a rule of {str(path)!r} has no id or no regex", "both are strings")
        try:
            made.append(_format({**one, "regex": python_pattern(one["regex"])}, table))
            _compiled(made[-1].regex)
        except (re.error, TypeError, ValueError) as error:
            raise ConfigError(
                f"rule {one['id']!r} of {str(path)!r}: {error}", "it is a Python regex"
            ) from None
    return tuple(made)


def python_pattern(pattern: str) -> str:
    """A Go pattern in Python's notation: POSIX's sets, and options that count to the end of a group."""
    pattern = pattern.replace("\\z", "\\Z")
    for name, signs in (
        ("alnum", "A-Za-z0-9"),
        ("alpha", "A-Za-z"),
        ("digit", "0-9"),
        ("xdigit", "0-9A-Fa-f"),
    ):
        pattern = pattern.replace(f"[:{name}:]", signs)
    at = pattern.find("(?i)", 1)
    while at > 0:
        depth, end = 0, at + 4
        while end < len(pattern) and not (pattern[end] == ")" and depth == 0):
            step = 2 if pattern[end] == "\\" else 1
            if pattern[end] == "[":
                end = max(pattern.find("]", end + 2), end)
            elif step == 1:
                depth += {"(": 1, ")": -1}.get(pattern[end], 0)
            end += step
        pattern = f"{pattern[:at]}(?i:{pattern[at + 4 : end]}){pattern[end:]}"
        at = pattern.find("(?i)", 1)
    return pattern


def find_formats(text: str, lower: str, rules: Sequence[Format]) -> Iterator[Finding]:
    """What the rules find; `lower` is the text in lower case."""
    seen: dict[str, bool] = {}
    for rule in rules:
        for word in rule.words:
            is_there = seen.get(word)
            if is_there is None:
                is_there = seen[word] = word in lower
            if is_there:
                break
        else:
            if rule.words:
                continue
        yield from rule.find(text)


def _format(rule: dict[str, Any], table: dict[str, Any]) -> Format:
    lists = [*rule.get("allowlists", []), *table.get("allowlists", [])]
    lists += [one for one in (rule.get("allowlist"), table.get("allowlist")) if isinstance(one, dict)]
    return Format(
        name=rule["id"],
        kind=rule.get("kind") or rule["id"].partition("-")[0].replace("-", "_"),
        regex=rule["regex"],
        words=tuple(str(word).lower() for word in rule.get("keywords", [])),
        entropy=float(rule.get("entropy", 0)),
        group=int(rule.get("secretGroup", 0)),
        check=rule.get("check", "real"),
        replacement=rule.get("replacement", "<KEY>"),
        allowed=tuple(python_pattern(one) for part in lists for one in part.get("regexes", [])),
        stopwords=tuple(str(one).lower() for part in lists for one in part.get("stopwords", [])),
    )


@lru_cache(maxsize=2048)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
