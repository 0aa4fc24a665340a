"""Recognizes license texts by comparing them whole with every text of the SPDX list.

Candidates are the texts most of whose words are there; each is aligned with the text word by word, and the
one that leaves the least unexplained wins. A difference in a word that changes what a license says (not,
only, except, commercial, ...) is never forgiven, so that a changed license is unknown and not its original.
"""

import importlib.resources
import lzma
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, lru_cache

from starcoder.repos.license_words import words_of

_MAX_WORDS = 40_000
_MAX_ALIGNED = 8  # candidates of one text; the first is right in all of the list's own texts
_MIN_PRESENT = 0.9  # share of a template's words that must be there at all
_MAX_DIFFERENCE = 0.05  # share of a template's words that may be missing, added or others
_MAX_PARTS = 12  # licenses in one text
# Words whose absence or presence changes what is allowed.
_TELLING = frozenset(
    words_of("""
    not no nor never only except unless without must shall may commercial noncommercial nonprofit prohibited
    forbidden military nuclear evil good ethical advertising written permission source fee royalty evaluation
    noncommercially commercially nonproduction personal internal educational limited trial competing
    production sublicense sell modified unmodified modify perpetual academic research private
    """)
)
# Of these, those that no name in the place of a holder's has.
_REFUSING = frozenset(words_of("not no nor except unless must shall may only prohibited forbidden"))
# Words of legal text. Many of them outside of every recognized license: there is another one.
_LEGAL = frozenset(
    words_of("""
    license licensed licensor licensee licenses permission permitted prohibited granted grant rights
    conditions condition restriction restrictions redistribution redistributions shall commercial
    warranty liability
    sublicense terms agreement
    """)
)
_MAX_LEGAL = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """One text of the list; texts that are equal share a template."""

    identifier: str
    is_exception: bool
    is_deprecated: bool
    words: tuple[str, ...]
    required: tuple[bool, ...]
    gaps: dict[int, int]  # how many words of any kind may come before the word of that index
    choices: dict[int, frozenset[str]]  # words that may
    counts: dict[str, int]  # of required words
    num_required: int

    def words_away(self, num_words: int) -> int:
        """How many words a text of this length has too many or too few."""
        most = len(self.words) + sum(self.gaps.values())
        return max(self.num_required - num_words, num_words - most, 0)


@dataclass(frozen=True, slots=True)
class Match:
    """A recognized text: words `start` to `end`. `confidence` is 1 where nothing differs."""

    identifier: str
    is_exception: bool
    start: int
    end: int
    num_equal: int
    cost: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Names:
    """Identifiers of the list with their full names, and those that newer ones replace."""

    licenses: dict[str, str]
    exceptions: dict[str, str]
    deprecated: frozenset[str]


def matches_of(text: str) -> tuple[tuple[Match, ...], tuple[str, ...]]:
    """The licenses whose whole text is there, and the words outside of them."""
    return _matches_of(tuple(words_of(text)[:_MAX_WORDS]))


def is_legal(words: Sequence[str]) -> bool:
    """Whether the words, which no license explains, read like more terms."""
    return sum(word in _LEGAL for word in words) > _MAX_LEGAL or not _REFUSING.isdisjoint(words)


@lru_cache(maxsize=512)
def _matches_of(words: tuple[str, ...]) -> tuple[tuple[Match, ...], tuple[str, ...]]:
    found: list[Match] = []
    rest = words
    while len(rest) >= 4 and len(found) < _MAX_PARTS:
        match = _best(rest)
        if match is None:
            break
        found.append(match)
        rest = rest[: match.start] + rest[match.end :]
    return tuple(found), rest


def _best(words: tuple[str, ...]) -> Match | None:
    """The match that explains most of the words with the least difference."""
    counts = Counter(words)
    candidates = []
    for template in templates():
        missing = 0
        limit = (1 - _MIN_PRESENT) * template.num_required
        for word, count in template.counts.items():
            present = counts.get(word, 0)
            if present < count:
                missing += count - present
                if missing > limit:
                    break
        else:
            candidates.append((missing + template.words_away(len(words)), template))
    candidates.sort(key=lambda one: (one[0], -one[1].num_required))
    best: tuple[tuple[int, bool, int, int], Match] | None = None
    # Where a text holds several licenses, its length says nothing: the longest ones are tried as well.
    longest = sorted(candidates, key=lambda one: -one[1].num_required)[: _MAX_ALIGNED // 2]
    for _, template in [*candidates[:_MAX_ALIGNED], *longest]:
        match = _aligned(template, words)
        if match is None:
            continue
        order = (
            match.num_equal - 4 * match.cost,
            not template.is_deprecated,
            template.num_required,
            -len(template.identifier),
        )
        if best is None or order > best[0]:
            best = (order, match)
        if match.num_equal == len(words) and not template.is_deprecated:
            break
    return best[1] if best else None


def _aligned(template: Template, words: tuple[str, ...]) -> Match | None:
    """The template's place in the words, unless too much or something telling differs."""
    blocks = SequenceMatcher(None, template.words, words).get_opcodes()
    equal = [block for block in blocks if block[0] == "equal"]
    placed = [(i1, i2, j1) for _, i1, i2, j1, _ in equal if any(template.required[i1:i2])]
    if not placed:
        return None
    # From the first to the last required word everything has to fit; titles and appendices may differ.
    i1, i2, j1 = placed[0]
    start = j1 + template.required[i1:i2].index(True)
    i1, i2, j1 = placed[-1]
    end = j1 + i2 - i1 - template.required[i1:i2][::-1].index(True)
    cost = 0
    for tag, i1, i2, j1, j2 in blocks:
        if tag == "equal":
            continue
        missing = [template.words[i] for i in range(i1, i2) if template.required[i]]
        added = list(words[max(j1, start) : max(start, min(j2, end))])
        room = sum(template.gaps.get(i, 0) for i in range(i1, i2 + 1))
        choices = frozenset().union(*(template.choices.get(i, frozenset()) for i in range(i1, i2 + 1)))
        added = [word for word in added if word not in choices]
        if added and len(added) <= room and _REFUSING.isdisjoint(added):
            added = []
        if not missing and (_is_bullet(added) or _is_copyright(added)):
            continue
        if any(word in _TELLING for word in (*missing, *added)):
            return None
        cost += max(len(missing), len(added))
    if cost > _MAX_DIFFERENCE * template.num_required:
        return None
    num_equal = sum(block[2] - block[1] for block in equal)
    first, last = equal[0][3], equal[-1][4]
    unexplained = [(j1, j2) for tag, _, _, j1, j2 in blocks if tag != "equal"]
    before = [word for j1, j2 in unexplained for word in words[max(j1, first) : min(j2, start)]]
    after = [word for j1, j2 in unexplained for word in words[max(j1, end) : min(j2, last)]]
    start = start if is_legal(before) else min(first, start)
    end = end if is_legal(after) else max(last, end)
    confidence = 1 - cost / template.num_required
    return Match(template.identifier, template.is_exception, start, end, num_equal, cost, confidence)


def _is_bullet(words: list[str]) -> bool:
    return len(words) == 1 and (len(words[0]) == 1 or words[0].isdigit() or set(words[0]) <= set("ivx"))


def _is_copyright(words: list[str]) -> bool:
    return "copyright" in words[:3] and len(words) <= 40 and _TELLING.isdisjoint(words)


@cache
def templates() -> tuple[Template, ...]:
    """Every text of the list that has words of its own."""
    by_words: dict[str, list[tuple[str, str, str]]] = {}
    for kind, identifier, _, deprecated, words in _rows():
        by_words.setdefault(words, []).append((deprecated, identifier, kind))
    made = []
    for words, same in by_words.items():
        # A text alone does not say whether later versions are allowed: it counts as this version only.
        deprecated, identifier, kind = min(same, key=lambda one: (one[0], _rank(one[1]), one[1]))
        template = _template(
            identifier, words, is_exception=kind == "exception", is_deprecated=bool(deprecated)
        )
        if template.num_required >= 4:
            made.append(template)
    return tuple(made)


def _rank(identifier: str) -> int:
    return 0 if identifier.endswith("-only") and "invariants" not in identifier else 1


def _template(identifier: str, marked: str, *, is_exception: bool, is_deprecated: bool) -> Template:
    words: list[str] = []
    required: list[bool] = []
    gaps: dict[int, int] = {}
    choices: dict[int, frozenset[str]] = {}
    for word in marked.split():
        if word[0] == "*":
            gaps[len(words)] = gaps.get(len(words), 0) + int(word[1:])
        elif word[0] == "~":
            choices[len(words)] = choices.get(len(words), frozenset()) | {word[1:]}
        else:
            words.append(word.removeprefix("?"))
            required.append(word[0] != "?")
    counts = Counter(word for word, is_required in zip(words, required, strict=True) if is_required)
    num_required = sum(required)
    return Template(
        identifier=identifier,
        is_exception=is_exception,
        is_deprecated=is_deprecated,
        words=tuple(words),
        required=tuple(required),
        gaps=gaps,
        choices=choices,
        counts=dict(counts),
        num_required=num_required,
    )


@cache
def names() -> Names:
    """All identifiers of the list."""
    licenses: dict[str, str] = {}
    exceptions: dict[str, str] = {}
    deprecated: set[str] = set()
    for kind, identifier, name, is_deprecated, _ in _rows():
        (licenses if kind == "license" else exceptions)[identifier] = name
        if is_deprecated:
            deprecated.add(identifier)
    return Names(licenses, exceptions, frozenset(deprecated))


def _rows() -> Iterator[list[str]]:
    data = importlib.resources.files("starcoder.repos").joinpath("licenses.txt.xz").read_bytes()
    for line in lzma.decompress(data).decode().split("\n")[1:]:
        yield line.split("\t")
