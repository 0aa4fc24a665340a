"""SPDX expressions and license names: reads, normalizes and compares them with patterns.

Source: SPDX specification 2.3, annex D (expressions); the identifiers and names of the SPDX license list.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, lru_cache

from starcoder.repos.license_texts import names
from starcoder.repos.license_words import words_of

UNKNOWN = "unknown"
PROPRIETARY = "LicenseRef-Proprietary"

_TOKEN = re.compile(r"[()/]|[A-Za-z0-9.+-]+(?::[A-Za-z0-9.-]+)?|\S")
_REFERENCE = re.compile(r"(?:DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+")
_GNU = re.compile(r"((?:A|L)?GPL-[\d.]+|GFDL-[\d.]+)(\+|-only|-or-later)?")
_LEFT_OUT_OF_NAMES = frozenset({"the", "license", "licenses", "version", "v", "a", "an", "terms", "of"})
_ABBREVIATED = re.compile(r"([a-z]+?)v?(\d)")
_MAX_NAME_WORDS = 14
_MAX_EXPRESSION = 500  # characters
# Names in use that neither the list's identifiers nor its names cover.
_ALIASES = {
    "Apache-2.0": "apache software; apache software 2; asl 2; al 2",
    "MIT": "expat; mit x11; mit expat",
    "BSD-3-Clause": "new bsd; modified bsd; revised bsd; bsd new; 3 clause bsd; bsd 3; bsd three clause; "
    "three clause bsd; bsd 3 clauses",
    "BSD-2-Clause": "simplified bsd; freebsd; 2 clause bsd; bsd 2; bsd two clause; two clause bsd",
    "PSF-2.0": "python software foundation; psf; psfl",
    "MPL-2.0": "mozilla public 2",
    "ISC": "iscl; internet systems consortium",
    "Zlib": "zlib libpng",
    "CC0-1.0": "cc0; creative commons zero; cc0 1 universal",
    "Unlicense": "unlicense",
    "BSL-1.0": "boost software; boost",
    "Artistic-2.0": "artistic 2",
    "EUPL-1.2": "european union public 1 2",
    PROPRIETARY: "proprietary; unlicensed; commercial; other proprietary",
}
_GNU_NAMES = {
    "GPL": "gpl; gnu gpl; gnu general public; general public",
    "LGPL": "lgpl; gnu lgpl; gnu lesser general public; lesser general public; gnu library general public; "
    "gnu library or lesser general public",
    "AGPL": "agpl; gnu agpl; gnu affero general public; affero general public",
}
_LATER = ("or later", "or newer", "or any later", "or above", "or greater", "or at your option any later")


@dataclass(frozen=True, slots=True)
class _Node:
    """A license, or several joined by a word."""

    word: str  # "AND", "OR" or "" for a license
    parts: tuple["_Node", ...] = ()
    name: str = ""

    def __str__(self) -> str:
        inner = (
            f"({part})" if part.word == "OR" and self.word == "AND" else str(part) for part in self.parts
        )
        return f" {self.word} ".join(inner) if self.word else self.name


def expression_of(text: str) -> str | None:
    """The expression with identifiers as the list writes them; None if it is not a valid one."""
    node = _parsed(text)
    return str(node) if node else None


def licenses_in(expression: str) -> frozenset[str]:
    """The licenses that an expression names, each with its exception."""
    node = _parsed(expression)
    return frozenset(_leaves(node)) if node else frozenset()


def joined(expressions: Sequence[str], word: str) -> str:
    """One expression of several ("AND", "OR"), each license once; unknown if a part is."""
    different = list(dict.fromkeys(expressions))
    if len(different) == 1:
        return different[0]
    nodes = [_parsed(one) for one in different]
    parts: list[_Node] = []
    for node in nodes:
        if node is None:
            return UNKNOWN
        parts += [part for part in (node.parts if node.word == word else (node,)) if part not in parts]
    return str(_Node(word, tuple(parts)))


def is_wanted(license: str, allow: Sequence[str], deny: Sequence[str]) -> bool:
    """Whether a choice that the license offers is denied by no pattern and allowed by one, if there are any.

    Patterns are a shell's, in any case; "GPL-3.0" stands for GPL-3.0-only and GPL-3.0-or-later. Of licenses
    joined by AND all have to be wanted, of those joined by OR one.
    """

    def is_taken(name: str) -> bool:
        if any(_fits(name, pattern) for pattern in deny):
            return False
        return not allow or any(_fits(name, pattern) for pattern in allow)

    node = _parsed(license)
    if node is None:
        return is_taken(license)
    whole = any(_fits(license, pattern) for pattern in allow) and not any(_fits(license, one) for one in deny)
    return whole or _holds(node, is_taken)


def license_named(text: str) -> str | None:
    """The license of an expression, an identifier or a name in use, such as "MIT License" or "GPLv3+"."""
    text = text.strip()
    if not text or len(text) > _MAX_EXPRESSION:
        return None
    exact = expression_of(text)
    if exact:
        return exact
    for one in (text, re.sub(r"\([^)]*\)", " ", text)):
        words = words_of(_with_later(one))
        found = name_at(words, 0)
        if found and found[1] == len(words):
            return found[0]
    return None


def name_at(words: Sequence[str], start: int) -> tuple[str, int] | None:
    """The longest license name that begins at a word, and where it ends."""
    known = _known_names()
    for end in range(min(len(words), start + _MAX_NAME_WORDS), start, -1):
        license = known.get(_key(words[start:end]))
        if license:
            return license, end
    return None


def this_version(identifier: str) -> str:
    """The same license without permission to use later versions, which a text alone does not give."""
    match = _GNU.fullmatch(identifier)
    return f"{match[1]}-only" if match else identifier


def _with_later(text: str) -> str:
    return re.sub(r"(?<=\d)\+", " or later", text)


def _fits(license: str, pattern: str) -> bool:
    license, pattern = license.lower(), pattern.lower()
    tried = {license, license.partition(" with ")[0]}
    tried |= {re.sub(r"-(?:only|or-later)$|\+$", "", one) for one in tried}
    return any(fnmatchcase(one, pattern) for one in tried)


def _holds(node: _Node, is_taken: Callable[[str], bool]) -> bool:
    if not node.word:
        return is_taken(node.name)
    return (all if node.word == "AND" else any)(_holds(part, is_taken) for part in node.parts)


def _leaves(node: _Node) -> Iterator[str]:
    if not node.word:
        yield node.name
    for part in node.parts:
        yield from _leaves(part)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> _Node | None:
    """Recursive descent; None for what is no expression."""
    tokens = _TOKEN.findall(text) if len(text) <= _MAX_EXPRESSION else []
    at = 0

    def peek() -> str:
        return tokens[at].upper() if at < len(tokens) else ""

    def series(words: tuple[str, ...], name: str, part: Callable[[], _Node | None]) -> _Node | None:
        nonlocal at
        parts = [part()]
        while peek() in words:
            at += 1
            parts.append(part())
        known = [one for one in parts if one is not None]
        if len(known) != len(parts):
            return None
        return known[0] if len(known) == 1 else _Node(name, tuple(dict.fromkeys(known)))

    def either() -> _Node | None:
        return series(("OR", "/"), "OR", both)

    def both() -> _Node | None:
        return series(("AND",), "AND", single)

    def single() -> _Node | None:
        nonlocal at
        if peek() == "(":
            at += 1
            node = either()
            at += 1
            return node if at <= len(tokens) and tokens[at - 1] == ")" else None
        name = _identifier(tokens[at]) if at < len(tokens) else None
        at += 1
        if name and peek() == "WITH":
            exception = _identifiers()[1].get(tokens[at + 1].lower()) if at + 1 < len(tokens) else None
            at += 2
            name = f"{name} WITH {exception}" if exception else None
        return _Node("", name=name) if name else None

    node = either()
    return node if at == len(tokens) else None


def _identifier(text: str) -> str | None:
    if _REFERENCE.fullmatch(text):
        return text
    licenses = _identifiers()[0]
    name = licenses.get(text.lower())
    if name is None and text.endswith("+"):
        name = licenses.get(text[:-1].lower())
        name = f"{name}+" if name else None
    match = _GNU.fullmatch(name or "")
    if name and match:
        return f"{match[1]}-or-later" if match[2] in ("+", "-or-later") else f"{match[1]}-only"
    return name


@cache
def _identifiers() -> tuple[dict[str, str], dict[str, str]]:
    """Licenses and exceptions by their identifiers in lower case."""
    listed = names()
    return {n.lower(): n for n in listed.licenses}, {n.lower(): n for n in listed.exceptions}


def _key(words: Sequence[str]) -> str:
    """A name's words without those that names differ in; "" if there are none."""
    if words[0] in ("license", "or", "and") or words[-1] in ("the", "a", "an", "of", "v"):
        return ""
    kept: list[str] = []
    for word in words:
        match = _ABBREVIATED.fullmatch(word)
        parts = [match[1], match[2]] if match and match[1] not in ("cc", "x", "base") else [word]
        kept += [one for one in parts if one not in _LEFT_OUT_OF_NAMES]
    return " ".join(one for n, one in enumerate(kept) if one != "0" or n == 0)


@cache
def _known_names() -> dict[str, str]:
    """Licenses by the key of every name they go by."""
    listed = names()
    known: dict[str, str] = {}
    for identifier in sorted(listed.licenses, key=lambda one: (one in listed.deprecated, one)):
        for name in (identifier, listed.licenses[identifier]):
            known.setdefault(_key(words_of(_with_later(name))), _identifier(identifier) or identifier)
    for family, called in _GNU_NAMES.items():
        for version in {"GPL": ("1", "2", "3"), "LGPL": ("2", "2 1", "3"), "AGPL": ("1", "3")}[family]:
            number = version.replace(" ", ".") if " " in version else f"{version}.0"
            for name in called.split("; "):
                known[f"{name} {version}"] = known[f"{name} {version} only"] = f"{family}-{number}-only"
                known.update({f"{name} {version} {later}": f"{family}-{number}-or-later" for later in _LATER})
    for identifier, called_so in _ALIASES.items():
        known.update(dict.fromkeys(called_so.split("; "), identifier))
    known.pop("", None)
    return known
