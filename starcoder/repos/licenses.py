"""Finds the license of each file of a source tree, as an SPDX expression.

A file's own notice comes first, then what REUSE says of it, then the nearest folder above that has a license
file, package metadata or a README with a license section. A folder whose license file is not recognized is
"unknown": its parent's license does not count there. Limits: a license text alone says nothing of later
versions, so the GNU licenses' texts count as "-only"; files are read by their first comment.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePosixPath

from starcoder.repos.license_expressions import (
    PROPRIETARY,
    UNKNOWN,
    expression_of,
    is_wanted,
    joined,
    license_named,
    licenses_in,
    name_at,
    this_version,
)
from starcoder.repos.license_texts import Match, is_legal, matches_of
from starcoder.repos.languages import language_of
from starcoder.repos.license_words import words_of

__all__ = [
    "MAX_LICENSE_BYTES",
    "PROPRIETARY",
    "UNKNOWN",
    "is_license_file",
    "is_wanted",
    "license_of_header",
    "license_of_path",
    "license_of_text",
    "licenses_of_tree",
    "says_license",
]

MAX_LICENSE_BYTES = 200_000

_HEADER_CHARACTERS = 16_000
_TAG = re.compile(r"^[^\w\n]*SPDX-License-Identifier:[ \t]*(.+?)[ \t]*(?:\*+/|-->|\*\)|-\}|[\"'#]+)?[ \t]*$", re.MULTILINE)
_TELLING = re.compile(
    r"licen[cs]e|copyright|rights reserved|permission|redistribut|proprietary|confidential|public domain"
    r"|unauthori[sz]ed|\(c\) \d|©",
    re.IGNORECASE,
)

# -- names of files --
_PROSE = ("", "txt", "text", "md", "markdown", "mkd", "rst", "adoc", "asciidoc", "html", "htm", "org")
_PROSE_LANGUAGES = (None, "Text", "Markdown", "reStructuredText", "AsciiDoc", "HTML", "Org")
_LICENSE_NAME = re.compile(r"(?P<before>.*?)[-_. ]?(?:(?:un)?licen[cs]es?|copying|copyright)(?P<after>.*)", re.IGNORECASE)
# Licenses of what a project includes, or of parts that are not its code.
_OTHERS = re.compile(
    r"third|3rd|bundled|depend|vendor|notice|docs?\b|documentation|assets?|fonts?|images?|icons?|artwork|media"
    r"|header|template|check|example|content|data",
    re.IGNORECASE,
)
_WITHIN = re.compile(r"(?:^|/)LICENSES/[^/]+$")


def is_license_file(path: str) -> bool:
    """Whether a file of this name holds the license of its folder; never source code."""
    name = PurePosixPath(path).name
    if language_of(path) not in _PROSE_LANGUAGES:
        return False
    stem, dot, extension = name.rpartition(".")
    if not dot or extension.lower() not in _PROSE:
        stem, extension = name, ""
    match = _LICENSE_NAME.fullmatch(stem)
    if match is None or _OTHERS.search(stem):
        return False
    around = [part.strip("-_. ") for part in (match["before"], match["after"])]
    return all(part == "" or _is_license_word(part) for part in around)


def says_license(path: str) -> bool:
    """Whether the file may say the license of others, and has to be read for `licenses_of_tree`."""
    name = PurePosixPath(path).name
    return (
        is_license_file(path)
        or _metadata_reader(name) is not None
        or name in ("REUSE.toml",)
        or path.endswith((".reuse/dep5", ".license"))
        or _README.fullmatch(name) is not None
    )


def licenses_of_tree(paths: Iterable[str], read: Callable[[str], str]) -> dict[str, str]:
    """Licenses by path: of folders ("" the root) and of single files that REUSE or a `.license` file names.

    `read` gives the text of a file for which `says_license` is true, "" if it has none.
    """
    paths = list(paths)
    texts: dict[str, dict[str, str]] = {}
    metadata: dict[str, str] = {}
    readmes: dict[str, str] = {}
    found: dict[str, str] = {}
    for path in sorted(paths):
        folder, _, name = path.rpartition("/")
        reader = _metadata_reader(name)
        if name == "REUSE.toml" or path.endswith(".reuse/dep5"):
            base = folder.removesuffix(".reuse").rstrip("/") if name == "dep5" else folder
            rules = _reuse_rules(read(path)) if name == "REUSE.toml" else _dep5_rules(read(path))
            found.update(_named_by(rules, base, paths))
        elif name.endswith(".license"):
            tagged = _tagged(read(path))
            if tagged:
                found[path.removesuffix(".license")] = tagged
        elif is_license_file(path) and not _WITHIN.search(path):
            text = read(path)
            texts.setdefault(folder, {})[name] = license_of_text(text) or (
                _POINTS if _points_elsewhere(text) else UNKNOWN
            )
        elif reader is not None and folder not in metadata and (said := reader(read(path))):
            metadata[folder] = said
        elif _README.fullmatch(name) and (said := _license_of_readme(read(path))):
            readmes.setdefault(folder, said)
    kept = [path for path in paths if _WITHIN.search(path)]
    for folder in {*texts, *metadata, *readmes}:
        found[folder] = _of_folder(texts.get(folder, {}), metadata.get(folder), readmes.get(folder))
    if "" not in found and len(kept) == 1:
        found[""] = license_of_text(read(kept[0])) or UNKNOWN
    return found


def license_of_path(path: str, licenses: Mapping[str, str]) -> str:
    """The license of the file itself or of the nearest folder above it, by `licenses_of_tree`."""
    for one in (PurePosixPath(path), *PurePosixPath(path).parents):
        name = "" if str(one) == "." else str(one)
        if name in licenses:
            return licenses[name]
    return UNKNOWN


@lru_cache(maxsize=1024)
def license_of_text(text: str) -> str | None:
    """The license that a LICENSE file's text grants; None: not recognized."""
    text = text[:MAX_LICENSE_BYTES]
    matches, rest = matches_of(text)
    if matches:
        return None if is_legal(rest) else _combined(matches, rest)
    tagged = _tagged(text)
    if tagged:
        return tagged
    words = words_of(text)
    return _stated(words) or (license_named(text.strip()) if len(words) < 12 else None) or _refused(words)


def license_of_header(text: str) -> str | None:
    """The license by a source file's first comment; None if it says nothing or points to a license file."""
    head = text[:_HEADER_CHARACTERS]
    if not _TELLING.search(head):
        return None
    comment = _first_comment(head)
    return _license_of_comment(comment) if _TELLING.search(comment) else None


@lru_cache(maxsize=4096)
def _license_of_comment(comment: str) -> str | None:
    tagged = _tagged(comment)
    if tagged:
        return tagged
    matches, rest = matches_of(comment)
    if matches:
        return UNKNOWN if is_legal(rest) else _combined(matches, rest)
    words = words_of(comment)
    said = _stated(words) or _labelled(comment)
    if said:
        return said
    line = " ".join(words)
    if _POINTER.search(line):
        return None
    if said := _refused(words):
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


# -- what sentences say --
_CHOICE = re.compile(r"\b(?:dual|either|your choice|your option|choose|alternatively|any of|one of)\b")
_POINTER = re.compile(
    r"\b(?:license|copying|copyright|notice|unlicense|readme|legal|authors)(?: (?:txt|md|rst|html))? file"
    r"|file (?:called |named )?(?:license|copying|copyright)|license (?:txt|md|rst)\b|see (?:the )?(?:license|copying)"
    r"|(?:root|top level) (?:directory|folder) of this|license information|licensing information"
)
_CONDITIONS = re.compile(r"\b(?:licensed under|under the terms of|subject to the terms|under license from)\b")
_STATEMENT = re.compile(
    r"\b(?:licensed|released|distributed|available|provided|governed|redistributed|covered|published|offered|subject"
    r"|sourced|modify it|use|used|terms|protected|license is|license)"
    r" (?:(?:under|by|to|with|of) )?(?=((?:the |a |an |terms |and |conditions |of |either |both |gnu |license )*))"
)
_GNU = re.compile(
    r"\b(?:terms of (?:version (?P<first>\d)(?: (?P<first_minor>\d))? of )?(?:either )?(?:the )?(?:gnu )?)"
    r"(?P<kind>lesser |library |affero )?general public license(?P<after>(?: \S+){0,40})"
)
_GNU_VERSION = re.compile(r"\b(?:version |v)(\d)(?: (\d)\b)?|^ (\d)\b")
_LATER = re.compile(r"any later version|or later|or newer|later version")
_REFUSED = re.compile(
    r"\bproprietary\b|\bconfidential\b|trade secrets?\b|unauthorized (?:copying|use|reproduction|distribution|access)"
    r"|do not (?:copy|distribute|redistribute|share)|(?:may|must|can) not be (?:copied|used|reproduced|distributed|disclosed)"
    r"|internal use only|no part of this (?:file|software|program|code)|strictly prohibited|not open source"
    r"|no license (?:is )?granted|not licensed for"
)
_GRANTED = re.compile(r"permission is|permission to|redistribution and use|is hereby granted|are permitted|free software")
_LABEL = re.compile(r"^[^\w\n@]*(?:@licen[cs]e|\\copyright|licen[cs]e(?:d)?[ \t]*[:=])[ \t]*(\S.{1,80}?)[ \t.*/\"'-]*$", re.IGNORECASE | re.MULTILINE)


def _tagged(text: str) -> str | None:
    """The expression of SPDX tags, each a line of its own and valid."""
    found = [expression_of(value) for value in _TAG.findall(text)]
    valid = [one for one in found if one]
    return joined(valid, "AND") if valid else None


def _stated(words: Sequence[str]) -> str | None:
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
        while after < len(words) and words[after] in ("the", "a", "under", "terms", "of", "at", "your", "option", "gnu"):
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


def _refused(words: Sequence[str]) -> str | None:
    line = " ".join(words)
    return PROPRIETARY if _REFUSED.search(line) and not _GRANTED.search(line) else None


# -- folders --
_README = re.compile(r"readme(?:\.(?:md|rst|txt|markdown|adoc|org))?", re.IGNORECASE)
_README_SECTION = re.compile(
    r"^(?:#+[ \t]*|=+[ \t]*|\*+[ \t]*)?(?:\d+\.[ \t]*)?licen[cs](?:e|ing)(?: information)?:?[ \t#=*]*\n(?:[-=~^\"]{3,}[ \t]*\n)?(?P<text>(?:.*\n?){1,12})",
    re.IGNORECASE | re.MULTILINE,
)


_POINTS = ""  # the license file only names others
_MAX_POINTING_WORDS = 120


def _points_elsewhere(text: str) -> bool:
    words = words_of(text)
    return len(words) <= _MAX_POINTING_WORDS and len(re.findall(r"LICEN[CS]E[-_.]|COPYING[-_.]", text)) > 0


def _of_folder(texts: Mapping[str, str], metadata: str | None, readme: str | None) -> str:
    """The license of a folder by its license files, its package metadata and its README."""
    if not texts:
        return metadata or readme or UNKNOWN
    pointing = [name for name, said in texts.items() if said == _POINTS]
    texts = {name: said for name, said in texts.items() if said != _POINTS} or dict.fromkeys(pointing, UNKNOWN)
    different = list(dict.fromkeys(texts.values()))
    named = {this_version(one) for one in licenses_in(metadata or "")}
    known = {this_version(one) for text in different for one in licenses_in(text)}
    if metadata and named and named == known:
        return metadata  # which says how they are joined, and whether later versions count
    if "LGPL-3.0-only" in different and set(different) <= {"LGPL-3.0-only", "GPL-3.0-only"}:
        return "LGPL-3.0-only"
    if UNKNOWN in different:
        return UNKNOWN
    is_pair = all(_says_which(name) for name in texts) or sum(map(_says_which, texts)) >= len(texts) - 1
    return joined(different, "OR" if is_pair else "AND")


def _says_which(name: str) -> bool:
    """Whether the file's name says which of several licenses it is: LICENSE-MIT."""
    match = _LICENSE_NAME.fullmatch(PurePosixPath(name).stem if "." in name else name)
    parts = (match["before"], match["after"]) if match else ()
    return any(_is_license_word(part.strip("-_. ")) for part in parts if part.strip("-_. "))


def _is_license_word(part: str) -> bool:
    return (
        license_named(part) is not None
        or re.fullmatch(r"(?i)(?:apache|mit|bsd|[al]?gpl|mpl|epl|isc|zlib|lesser|cc|boost|ofl|eupl|psf|artistic)[-_.v]?\d*(?:[._]\d)?", part) is not None
        or re.fullmatch(r"(?i)the|main|project|software|code|full|agreement|v?\d+(?:[._]\d+)*", part) is not None
    )


def _license_of_readme(text: str) -> str | None:
    for match in _README_SECTION.finditer(text[:MAX_LICENSE_BYTES]):
        section = re.split(r"^#", match["text"], maxsplit=1, flags=re.MULTILINE)[0]
        words = words_of(re.sub(r"\]\([^)]*\)", " ", section))
        first = name_at(words, 1 if words[:1] == ["the"] else 0) if words else None
        said = _stated(words) or (first[0] if first else None) or _refused(words)
        if said:
            return said
    return None


# -- package metadata --
def _metadata_reader(name: str) -> Callable[[str], str | None] | None:
    if name in _READERS:
        return _READERS[name]
    return next((reader for end, reader in _READERS.items() if end[0] == "." and name.endswith(end)), None)


def _of_value(value: object) -> str | None:
    """A license as package.json and its like have it: a name, a table with one, or a list (any of them)."""
    if isinstance(value, str):
        return license_named(value)
    if isinstance(value, dict):
        return _of_value(value.get("type") or value.get("name") or value.get("text"))
    if isinstance(value, list) and value:
        parts = [_of_value(one) for one in value[:20]]
        known = [one for one in parts if one]
        return joined(known, "OR") if len(known) == len(parts) else None
    return None


def _of_json(text: str) -> str | None:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _of_value(table.get("license") or table.get("licenses")) if isinstance(table, dict) else None


def _of_toml(text: str) -> str | None:
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return None
    for keys in (("project",), ("package",), ("workspace", "package"), ("tool", "poetry")):
        part: object = table
        for key in keys:
            part = part.get(key) if isinstance(part, dict) else None
        if isinstance(part, dict):
            said = _of_value(part.get("license")) or _of_classifiers(part.get("classifiers"))
            if said:
                return said
    return None


def _of_classifiers(lines: object) -> str | None:
    """Source: pypi.org/classifiers, "License ::"."""
    if not isinstance(lines, list):
        return None
    ends = [one.rpartition("::")[2] for one in lines if isinstance(one, str) and one.startswith("License ::")]
    found = [license_named(end) for end in ends if end.strip() != "OSI Approved"]
    known = [one for one in found if one]
    return joined(known, "OR") if known and len(known) == len(found) else None


def _by_pattern(*patterns: str) -> Callable[[str], str | None]:
    compiled = [re.compile(pattern, re.IGNORECASE | re.MULTILINE) for pattern in patterns]

    def read(text: str) -> str | None:
        for pattern in compiled:
            named = [license_named(match[1]) for match in pattern.finditer(text[:MAX_LICENSE_BYTES])]
            known = [one for one in named if one]
            if known and len(known) == len(named):
                return joined(known, "OR")
        return None

    return read


_READERS: dict[str, Callable[[str], str | None]] = {
    "package.json": _of_json,
    "composer.json": _of_json,
    "bower.json": _of_json,
    "pyproject.toml": _of_toml,
    "Cargo.toml": _of_toml,
    "setup.cfg": _by_pattern(r"^license(?:_expression)?[ \t]*=[ \t]*(.+)$", r"^[ \t]+License :: .*:: (.+)$"),
    "setup.py": _by_pattern(r"\blicense\s*=\s*[\"']([^\"'\n]+)[\"']", r"[\"']License :: .*:: ([^\"'\n]+)[\"']"),
    "pom.xml": _by_pattern(r"<license>\s*<name>\s*([^<]+?)\s*</name>"),
    "DESCRIPTION": _by_pattern(r"^License:[ \t]*(.+?)(?:[ \t]*\+[ \t]*file LICEN[CS]E)?$"),
    "mix.exs": _by_pattern(r"licenses:\s*\[\s*\"([^\"]+)\""),
    "PKG-INFO": _by_pattern(r"^License(?:-Expression)?:[ \t]*(.+)$", r"^Classifier: License :: .*:: (.+)$"),
    ".gemspec": _by_pattern(r"\.licenses?\s*=\s*\[?\s*[\"']([^\"']+)[\"']"),
    ".cabal": _by_pattern(r"^license:[ \t]*(.+)$"),
    ".nuspec": _by_pattern(r"<license type=\"expression\">\s*([^<]+?)\s*</license>"),
    ".csproj": _by_pattern(r"<PackageLicenseExpression>\s*([^<]+?)\s*</PackageLicenseExpression>"),
}


# -- REUSE --
def _reuse_rules(text: str) -> list[tuple[str, str]]:
    """(glob, license) of a REUSE.toml. Source: reuse.software/spec-3.3, "REUSE.toml"."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return []
    rules = []
    annotations = table.get("annotations")
    for one in annotations if isinstance(annotations, list) else []:
        said = one.get("SPDX-License-Identifier") if isinstance(one, dict) else None
        values = [said] if isinstance(said, str) else said if isinstance(said, list) else []
        valid = [expression for value in values if (expression := expression_of(str(value)))]
        globs = one.get("path", []) if valid else []
        rules += [(str(glob), joined(valid, "AND")) for glob in ([globs] if isinstance(globs, str) else globs)]
    return rules


def _dep5_rules(text: str) -> list[tuple[str, str]]:
    """(glob, license) of a Debian copyright file, whose globs cross folders."""
    rules = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        files = re.search(r"^Files:((?:.*\n?(?:[ \t]+.*\n?)*))", paragraph, re.MULTILINE)
        license = re.search(r"^License:[ \t]*(.+)$", paragraph, re.MULTILINE)
        named = license_named(license[1]) if license else None
        if files and named:
            rules += [(glob.replace("*", "**"), named) for glob in files[1].split()]
    return rules


def _named_by(rules: Iterable[tuple[str, str]], base: str, paths: Iterable[str]) -> dict[str, str]:
    """License by path; later rules win."""
    prefix = f"{base}/" if base else ""
    below = [path for path in paths if path.startswith(prefix)]
    found = {}
    for glob, license in rules:
        if glob in ("**", "*") and not prefix and glob == "**":
            found[""] = license
            continue
        pattern = re.compile(_glob(glob))
        found.update({path: license for path in below if pattern.fullmatch(path, len(prefix))})
    return found


def _glob(glob: str) -> str:
    parts = re.split(r"(\*+)", glob)
    return "".join(
        (".*" if len(part) > 1 else "[^/]*") if part.startswith("*") else re.escape(part) for part in parts
    )


# -- comments --
_BLOCKS = (("/*", "*/"), ("<!--", "-->"), ("(*", "*)"), ("{-", "-}"), ('"""', '"""'), ("'''", "'''"))
_BLOCKS += (("--[[", "]]"), ("=begin", "=end"), ("#|", "|#"), ("<#", "#>"), ("%{", "%}"), ("=pod", "=cut"))
_LINE = re.compile(r"\s*(?://|#|--|;|%|\*|!|'|\"|\.\\\"|rem\b|dnl\b|c\b|\||<\?|@)", re.IGNORECASE)
_MAX_CODE_LINES = 12  # `package x;`, `use strict`, `module Y` and imports may come before the notice


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
