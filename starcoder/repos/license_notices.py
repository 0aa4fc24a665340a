"""Finds what a license file's text grants, and what the first comment of a source file says.

Whole texts count first, then sentences such as "licensed under the Apache License, Version 2.0". Limits: a
license text alone says nothing of later versions, so the GNU licenses' texts count as "-only".
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from starcoder.repos.license_expressions import (
    PROPRIETARY,
    UNKNOWN,
    expression_of,
    joined,
    license_named,
    licenses_in,
    name_at,
    this_version,
)
from starcoder.repos.license_texts import Match, is_legal, matches_of
from starcoder.repos.license_words import words_of

MAX_LICENSE_BYTES = 200_000

_HEADER_CHARACTERS = 16_000
_MAX_SENTENCES = 130  # words of a license file that names a license without its text
_TAG = re.compile(
    r"^[^\w\n]*SPDX-License-Identifier:[ \t]*(.+?)[ \t]*(?:\*+/|-->|\*\)|-\}|[\"'#]+)?[ \t]*$", re.MULTILINE
)
_TELLING = re.compile(
    r"licen[cs]e|copyright|rights reserved|permission|redistribut|proprietary|confidential|public domain"
    r"|unauthori[sz]ed|\(c\) \d|©",
    re.IGNORECASE,
)

_CHOICE = re.compile(r"\b(?:dual|either|your choice|your option|choose|alternatively|any of|one of)\b")
_POINTER = re.compile(
    r"\b(?:license|copying|copyright|notice|unlicense|readme|legal|authors)(?: (?:txt|md|rst|html))? file"
    r"|file (?:called |named )?(?:license|copying|copyright)|license (?:txt|md|rst)\b"
    r"|see (?:the )?(?:license|copying)"
    r"|(?:root|top level) (?:directory|folder) of this|license information|licensing information"
)
_CONDITIONS = re.compile(r"\b(?:licensed under|under the terms of|subject to the terms|under license from)\b")
_STATEMENT = re.compile(
    r"\b(?:licensed|released|distributed|available|provided|governed|redistributed|covered|published|offered"
    r"|subject|sourced|modify it|use|used|terms|protected|license is|license)"
    r" (?:(?:under|by|to|with|of) )?"
    r"(?=((?:the |a |an |terms |and |conditions |of |either |both |gnu |license )*))"
)
_GNU = re.compile(
    r"\b(?:terms of (?:version (?P<first>\d)(?: (?P<first_minor>\d))? of )?(?:either )?(?:the )?(?:gnu )?)"
    r"(?P<kind>lesser |library |affero )?general public license(?P<after>(?: \S+){0,40})"
)
_GNU_VERSION = re.compile(r"\b(?:version |v)(\d)(?: (\d)\b)?|^ (\d)\b")
_LATER = re.compile(r"any later version|or later|or newer|later version")
_REFUSED = re.compile(
    r"\bproprietary\b|\bconfidential\b|trade secrets?\b"
    r"|unauthorized (?:copying|use|reproduction|distribution|access)"
    r"|do not (?:copy|distribute|redistribute|share)"
    r"|(?:may|must|can) not be (?:copied|used|reproduced|distributed|disclosed)"
    r"|internal use only|no part of this (?:file|software|program|code)|strictly prohibited|not open source"
    r"|no license (?:is )?granted|not licensed for"
)
_GRANTED = re.compile(
    r"permission is|permission to|redistribution and use|is hereby granted|are permitted|free software"
)
_LABEL = re.compile(
    r"^[^\w\n@]*(?:@licen[cs]e|\\copyright|licen[cs]e(?:d)?[ \t]*[:=])[ \t]*(\S.{1,80}?)[ \t.*/\"'-]*$",
    re.IGNORECASE | re.MULTILINE,
)


_BLOCKS: tuple[tuple[str, str], ...] = (
    *(("/*", "*/"), ("<!--", "-->"), ("(*", "*)"), ("{-", "-}"), ('"""', '"""'), ("'''", "'''")),
    *(("--[[", "]]"), ("=begin", "=end"), ("#|", "|#"), ("<#", "#>"), ("%{", "%}"), ("=pod", "=cut")),
)
_LINE = re.compile(r"\s*(?://|#|--|;|%|\*|!|'|\"|\.\\\"|rem\b|dnl\b|c\b|\||<\?|@)", re.IGNORECASE)
_MAX_CODE_LINES = 12  # `package x;`, `use strict`, `module Y` and imports may come before the notice


@lru_cache(maxsize=1024)
def license_of_text(text: str) -> str | None:
    """The license that a LICENSE file's text grants; None: not recognized."""
    text = text[:MAX_LICENSE_BYTES]
    matches, rest = matches_of(text)
    if matches:
        return None if is_legal(rest) else _combined(matches, rest)
    found = tagged(text)
    if found:
        return found
    words = words_of(text)
    if len(words) > _MAX_SENTENCES:
        return refused(words)  # a whole license, but none of the list
    return stated(words) or (license_named(text.strip()) if len(words) < 12 else None) or refused(words)


def license_of_header(text: str) -> str | None:
    """The license by a source file's first comment; None if it says nothing or points to a license file."""
    head = text[:_HEADER_CHARACTERS]
    if not _TELLING.search(head):
        return None
    comment = _first_comment(head)
    return _license_of_comment(comment) if _TELLING.search(comment) else None


@lru_cache(maxsize=4096)
def _license_of_comment(comment: str) -> str | None:
    found = tagged(comment)
    if found:
        return found
    matches, rest = matches_of(comment)
    if matches:
        return UNKNOWN if is_legal(rest) else _combined(matches, rest)
    words = words_of(comment)
    said = stated(words) or _labelled(comment)
    if said:
        return said
    line = " ".join(words)
    if _POINTER.search(line):
        return None
    if said := refused(words):
        return said
    return UNKNOWN if "all rights reserved" in line or _CONDITIONS.search(line) else None


def _combined(matches: Sequence[Match], rest: Sequence[str]) -> str:
    """One expression of the licenses in one text."""
    names: list[str] = []
    for match in matches:
        if not match.is_exception:
            names.append(this_version(match.identifier))
        elif names and " WITH " not in names[-1]:
            names[-1] = expression_of(f"{names[-1]} WITH {match.identifier}") or names[-1]
    if not names:
        return UNKNOWN
    if "LGPL-3.0-only" in names:
        names = [name for name in names if name != "GPL-3.0-only"]  # whose text it includes
    is_choice = _CHOICE.search(" ".join(rest)) is not None
    return joined(names, "OR" if is_choice else "AND")


def tagged(text: str) -> str | None:
    """The expression of SPDX tags, each a line of its own and valid."""
    found = [expression_of(value) for value in _TAG.findall(text)]
    valid = [one for one in found if one]
    return joined(valid, "AND") if valid else None


def stated(words: Sequence[str]) -> str | None:
    """The license that a sentence names: "licensed under the Apache License, Version 2.0"."""
    line = " ".join(words)
    match = _GNU.search(line)
    if match:
        return _gnu(match)
    for match in _STATEMENT.finditer(line):
        named = _names_from(words, line.count(" ", 0, match.end()) + match[1].count(" "))
        if named:
            return named
    return None


def _names_from(words: Sequence[str], start: int) -> str | None:
    """The licenses named from a word on: one, or several joined by "or" or "and"."""
    found = name_at(words, start)
    if found is None:
        return None
    license, at = found
    while at < len(words) and words[at] in ("license", "licenses"):
        at += 1
    if at + 1 < len(words) and words[at] in ("or", "and"):
        after = at + 1
        while after < len(words) and words[after] in (
            "the",
            "a",
            "under",
            "terms",
            "of",
            "at",
            "your",
            "option",
            "gnu",
        ):
            after += 1
        more = _names_from(words, after) or (_names_from(words, after - 1) if after > at + 1 else None)
        if more and more not in licenses_in(license):
            return joined([license, more], "OR" if words[at] == "or" else "AND")
    return license


def _gnu(match: re.Match[str]) -> str | None:
    family = {"lesser ": "LGPL", "library ": "LGPL", "affero ": "AGPL", None: "GPL"}[match["kind"]]
    version = _GNU_VERSION.search(match["after"])
    major = match["first"] or (version and (version[1] or version[3]))
    minor = match["first_minor"] or (version and version[2]) or "0"
    if not major:
        return None
    identifier = f"{family}-{major}.{minor}"
    end = "or-later" if _LATER.search(match["after"]) else "only"
    return expression_of(f"{identifier}-{end}") or expression_of(identifier)


def _labelled(text: str) -> str | None:
    found = [license_named(value) for value in _LABEL.findall(text)]
    return next((one for one in found if one), None)


def refused(words: Sequence[str]) -> str | None:
    line = " ".join(words)
    return PROPRIETARY if _REFUSED.search(line) and not _GRANTED.search(line) else None


def _first_comment(text: str) -> str:
    """The comments at the top of a source file; prose files are all comment."""
    kept: list[str] = []
    end = ""
    num_code = 0
    for line in text.split("\n"):
        stripped = line.strip()
        if end:
            kept.append(line)
            end = "" if end in stripped else end
            continue
        block = next((block for block in _BLOCKS if stripped.lstrip("rRuUbB").startswith(block[0])), None)
        if block:
            kept.append(line)
            inside = stripped.lstrip("rRuUbB")[len(block[0]) :]
            end = "" if block[1] in inside else block[1]
        elif not stripped or _LINE.match(line):
            kept.append(line)
        else:
            num_code += 1
            kept.append("")
            if num_code > _MAX_CODE_LINES:
                break
    return "\n".join(kept)
