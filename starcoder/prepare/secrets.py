"""Finds secrets and personal data in source text and puts the family's placeholders in their place.

Rules for formats (`secret_formats`), for syntax (`secret_rules`), for names (`secret_assignments`) and for
personal data (`secret_personal`). A secret is masked elsewhere too, if no word, name or version could be
written like it. What parsed as Python, JSON or TOML still parses. Limits: passwords of plain words and
secrets without a telling name or format cannot be distinguished from other text; names need tags.
"""

import ast
import json
import re
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from starcoder.errors import ConfigError
from starcoder.prepare.secret_assignments import find_assigned
from starcoder.prepare.secret_formats import Format, find_formats, formats, read_formats
from starcoder.prepare.secret_personal import KINDS as PERSONAL_KINDS
from starcoder.prepare.secret_personal import find_personal
from starcoder.prepare.secret_rules import COMMANDS, RULES, Finding, find_arguments, is_unmistakable

__all__ = ["KINDS", "Audited", "Finding", "Masked", "SecretSettings", "audit", "find", "mask"]

KINDS = tuple(
    sorted(
        {rule.kind for rule in (*RULES, *COMMANDS)}
        | {rule.kind for rule in formats()}
        | {"argument", "assignment", "kubernetes", "password", *PERSONAL_KINDS}
    )
)
_MAX_TRIED = 100  # findings without quotes that are tried one by one
_MAX_PARSED = 400_000  # characters; larger texts are not parsed to check that a mask keeps their syntax


@dataclass(frozen=True, kw_only=True, slots=True)
class SecretSettings:
    """What is masked. Validated when made: `ConfigError` names the field."""

    leave_secrets: frozenset[str] = frozenset()
    """Kind of secret not to mask, such as email or ip; may be given several times."""
    secret_rules: Path | None = None
    """Own rules, a TOML file as gitleaks has it: [[rules]] with id, regex and keywords."""
    secret_allow: tuple[str, ...] = ()
    """Regular expressions of values that are never masked."""

    def __post_init__(self) -> None:
        own = {rule.kind for rule in self.own_rules}
        for kind in sorted(self.leave_secrets - set(KINDS) - own):
            raise ConfigError(f"leave_secrets has {kind!r}; expected kinds among {', '.join(KINDS)}")
        for pattern in self.secret_allow:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"secret_allow has {pattern!r}: {error}", "write a Python regex") from None

    @property
    def own_rules(self) -> tuple[Format, ...]:
        """The rules of `secret_rules`."""
        if self.secret_rules is None:
            return ()
        is_there = self.secret_rules.is_file()
        return _own_rules(self.secret_rules, self.secret_rules.stat().st_mtime_ns if is_there else 0)


@dataclass(frozen=True, slots=True)
class Masked:
    """A text without its secrets. `found` counts what was masked, by kind; safe to print."""

    text: str
    found: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Audited:
    """One line of a report: where something was masked, by which rule, and the line after masking."""

    line: int
    kind: str
    rule: str
    preview: str


def find(text: str, settings: SecretSettings = SecretSettings()) -> tuple[Finding, ...]:
    """Every secret, in order, without overlaps."""
    lower = _lower(text)
    found = list(find_formats(text, lower, (*settings.own_rules, *formats())))
    found += [finding for rule in (*RULES, *COMMANDS) for finding in rule.find(text, lower)]
    found += [*find_assigned(text, lower), *find_arguments(text)]
    found += find_personal(text, lower)
    allowed = [re.compile(pattern) for pattern in settings.secret_allow]
    wanted = [
        finding
        for finding in found
        if finding.kind not in settings.leave_secrets
        and not any(one.search(text[finding.start : finding.end]) for one in allowed)
    ]
    return tuple(_parseable(text, list(_merged([*wanted, *_repeated(text, wanted)]))))


def mask(text: str, settings: SecretSettings = SecretSettings()) -> Masked:
    """The text with a placeholder for every secret."""
    findings = find(text, settings)
    counts = Counter(finding.kind for finding in findings)
    return Masked(_replaced(text, findings), dict(sorted(counts.items())))


def audit(text: str, settings: SecretSettings = SecretSettings()) -> tuple[Audited, ...]:
    """What `mask` masks, line by line; never the secret itself."""
    findings = find(text, settings)
    made = []
    for finding in findings:
        start = text.rfind("\n", 0, finding.start) + 1
        end = text.find("\n", finding.end)
        end = len(text) if end < 0 else end
        inside = [one for one in findings if start <= one.start and one.end <= end]
        shifted = [Finding(o.kind, o.start - start, o.end - start, o.replacement) for o in inside]
        preview = _replaced(text[start:end], shifted).strip()[:160]
        line = text.count("\n", 0, finding.start) + 1
        made.append(Audited(line, finding.kind, finding.rule or finding.kind, preview))
    return tuple(made)


@lru_cache(maxsize=16)
def _own_rules(path: Path, changed: int) -> tuple[Format, ...]:
    """The rules of a file as it was when it was changed last."""
    return read_formats(path)


def _replaced(text: str, findings: Iterable[Finding]) -> str:
    parts, end = [], 0
    for finding in findings:
        parts += [text[end : finding.start], finding.replacement]
        end = finding.end
    parts.append(text[end:])
    return "".join(parts)


def _lower(text: str) -> str:
    """Lower case with every character where it was."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    return "".join(one.lower() if len(one.lower()) == 1 else one for one in text)


def _repeated(text: str, found: Iterable[Finding]) -> Iterator[Finding]:
    """Other places of the same secrets, where no rule would know them."""
    for secret, first in {text[f.start : f.end]: f for f in found if f.is_secret}.items():
        if not is_unmistakable(secret):
            continue
        start = text.find(secret)
        while start >= 0:
            end = start + len(secret)
            is_whole = not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum())
            if is_whole:
                yield Finding(first.kind, start, end, first.replacement, first.rule, is_bare=True)
            start = text.find(secret, end)


def _merged(found: list[Finding]) -> Iterator[Finding]:
    """Overlapping findings as one that covers all, named after the first; secrets before personal data."""
    secrets = [finding for finding in found if finding.is_secret]
    ranges = sorted((finding.start, finding.end) for finding in secrets)
    kept = secrets + [
        finding for finding in found if not finding.is_secret and not _overlaps(finding, ranges)
    ]
    last: Finding | None = None
    for finding in sorted(kept, key=lambda f: (f.start, -f.end)):
        if last is None or finding.start >= last.end:
            if last is not None:
                yield last
            last = finding
        elif finding.end > last.end:
            last = Finding(last.kind, last.start, finding.end, last.replacement, last.rule, last.is_bare)
    if last is not None:
        yield last


def _overlaps(finding: Finding, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(start < finding.end and finding.start < end for start, end in ranges)


def _parseable(text: str, findings: list[Finding]) -> list[Finding]:
    """The findings, less the ones without quotes if their masks would break the text's syntax."""
    if not any(finding.is_bare for finding in findings) or len(text) > _MAX_PARSED:
        return findings
    parses = next((parses for parses in (_is_json, _is_python, _is_toml) if parses(text)), None)
    if parses is None or parses(_replaced(text, findings)):
        return findings
    # Where a name or number was, a string keeps the syntax.
    quoted = [_in_quotes(finding) if finding.is_bare else finding for finding in findings]
    if parses(_replaced(text, quoted)):
        return quoted
    kept = [finding for finding in findings if not finding.is_bare]
    for finding in findings[:_MAX_TRIED]:
        for one in (finding, _in_quotes(finding)) if finding.is_bare else ():
            tried = sorted([*kept, one], key=lambda other: other.start)
            if parses(_replaced(text, tried)):
                kept = tried
                break
    return kept


def _in_quotes(finding: Finding) -> Finding:
    return replace(finding, replacement=f'"{finding.replacement}"')


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


# Lines that shell variables and settings do not have, though they may parse as Python's assignments.
_PYTHON = re.compile(
    r"^[ \t]*(?:(?:async )?def \w+\(|class \w+|import \w|from \S+ import |@\w|(?:if|for|with|try)\b.*:$)",
    re.M,
)


def _is_python(text: str) -> bool:
    if not _PYTHON.search(text):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return False
    return True
