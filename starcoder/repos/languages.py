"""Finds the programming language of a file by linguist's own data: name, first line, extension, text.

The order is linguist's: editor mode lines, file names, interpreters, extensions, XML, manual pages, then
patterns for the extensions that languages share. Limits: its statistical classifier is not here; where
nothing decides, the language whose first extension it is, or the most popular one, is taken.

Source: github-linguist/linguist, by scripts/make_languages.py into languages.json, which names the version.
"""

import importlib.resources
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from starcoder.errors import ConfigError

NOTEBOOK = "Jupyter Notebook"
MAX_START_BYTES = 50 * 1024  # how much of a file the patterns look at

# Source: arXiv 2301.03988, section 4.1 (SantaCoder); arXiv 2305.06161, table 1 (StarCoder).
_SANTACODER = frozenset({"Java", "JavaScript", "Python"})
_STARCODER = """
Ada|Agda|Alloy|ANTLR|AppleScript|Assembly|Augeas|Awk|Batchfile|Bluespec|C|C#|C++|Clojure|CMake
CoffeeScript|Common Lisp|CSS|Cuda|Dart|Dockerfile|Elixir|Elm|Emacs Lisp|Erlang|F#|Fortran|GLSL|Go|Groovy
Haskell|HTML|Idris|Isabelle|Java|Java Server Pages|JavaScript|JSON|Julia|Jupyter Notebook|Kotlin|Lean
Literate Agda|Literate CoffeeScript|Literate Haskell|Lua|Makefile|Maple|Markdown|MATLAB|OCaml|Pascal
Perl|PHP|PowerShell|Prolog|Protocol Buffer|Python|R|Racket|reStructuredText|RMarkdown|Ruby|Rust|SAS
Scala|Scheme|Shell|Smalltalk|Solidity|SPARQL|SQL|Stan|Standard ML|Stata|SystemVerilog|Tcl|Tcsh|TeX
Thrift|TypeScript|Verilog|VHDL|Visual Basic .NET|Wolfram Language|XSLT|Yacc|YAML|Zig
"""

_SHEBANG = re.compile(r"#!\s*(\S+)(?:[ \t]+(.*))?")
_ENV_OPTIONS = re.compile(r"(?:(?:-[i0uCSv]*|--\S+|\w+=\S*)\s+)*(\S+)")
_EXEC = re.compile(r"exec (\w+)[\s\"']+\$0[\s\"']+\$@")
_XML = re.compile(r"<\?xml version=")
_MANPAGE = re.compile(r"\.(?:[1-9](?![0-9])[a-z_0-9]*|0p|n|man|mdoc)(?:\.in)?$", re.IGNORECASE)
_EMACS = re.compile(
    r"-\*-[ \t]*(?:[^\n]{0,200}?[;\t ])?mode[ \t]*:[ \t]*([^:;\s]+)[ \t;][^\n]{0,200}?-\*-"
    r"|-\*-[ \t]*([^:;\s]+?)[ \t]*-\*-",
    re.IGNORECASE,
)
_VIM = re.compile(
    r"(?:^|[ \t])(?:vi|[vV]im(?:[<=>]?\d+)?|ex):[^\n]{0,200}?[ \t:](?:filetype|ft|syntax)[ \t]*=(\w+)"
    r"(?=$|\s|:)",
    re.MULTILINE,
)
_MODE_LINES = 5
_MAX_RULES_CHARACTERS = 16_000
_BLANK_LINES = re.compile(r"\n(?:[ \t\r]*\n)+")
_LONG_RUN = re.compile(r"((.)\2{39})\2+", re.DOTALL)
_LONG_WORD = re.compile(r"(\w{200})\w+")


@dataclass(frozen=True, slots=True)
class _Rule:
    """Languages that count if all of these patterns are found, and none of those."""

    languages: tuple[str, ...]
    every: tuple[re.Pattern[str], ...]
    none: tuple[re.Pattern[str], ...]


@dataclass(frozen=True, slots=True)
class _Table:
    """linguist's data by what is looked up; languages of an extension in order of preference."""

    languages: Mapping[str, Mapping[str, Any]]
    by_alias: Mapping[str, str]
    by_name: Mapping[str, tuple[str, ...]]
    by_interpreter: Mapping[str, tuple[str, ...]]
    by_extension: Mapping[str, tuple[str, ...]]
    popular: frozenset[str]
    generic: frozenset[str]
    rules: Mapping[str, Sequence[Mapping[str, Any]]]
    vendored: re.Pattern[str]
    generated: re.Pattern[str]
    starts: Sequence[Mapping[str, Any]]


def languages() -> tuple[str, ...]:
    """Every language there is, sorted."""
    return tuple(sorted(_table().languages))


def language_named(text: str) -> str | None:
    """The language of this name or alias in any case, such as "c++" or "golang"."""
    by_alias, name = _table().by_alias, text.strip().lower()
    return by_alias.get(name) or by_alias.get(name.replace("-", " "))  # as .gitattributes writes blanks


def known_language(text: str) -> str:
    """The language of this name or alias.

    Raises:
        ConfigError: there is none.
    """
    language = language_named(text)
    if language is None:
        near = get_close_matches(text.lower(), _table().by_alias, n=1)
        hint = f"is it {_table().by_alias[near[0]]}?" if near else "languages have linguist's names"
        raise ConfigError(f"there is no language {text!r}", hint)
    return language


def check_language_map(entries: Sequence[str]) -> None:
    """Raises: ConfigError: an entry is not PATTERN=LANGUAGE."""
    for entry in entries:
        pattern, _, language = entry.rpartition("=")
        if not pattern:
            raise ConfigError(f"{entry!r} names no language for a pattern", "write it like '*.inc=PHP'")
        known_language(language)


def mapped_language(path: str, entries: Sequence[str]) -> str | None:
    """The language by the last entry PATTERN=LANGUAGE that fits the path, its name or its ending."""
    for entry in reversed(entries):
        pattern, _, language = entry.rpartition("=")
        pattern = f"*{pattern}" if pattern.startswith(".") else pattern
        if fnmatchcase(path, pattern) or fnmatchcase(PurePosixPath(path).name, pattern):
            return language_named(language)
    return None


def trained_languages(family: str) -> frozenset[str]:
    """The languages that a family ("santacoder", "starcoder", "starcoder2") was trained on.

    Starcoder2's are those of linguist 7.27.0, by which The Stack v2 was labelled.
    """
    if family == "santacoder":
        return _SANTACODER
    if family == "starcoder":
        return frozenset(name for line in _STARCODER.strip().split("\n") for name in line.split("|"))
    return frozenset(name for name, about in _table().languages.items() if about["starcoder2"])


def language_of(path: str, start: bytes = b"") -> str | None:
    """The language of a file by its path and first bytes; None: linguist knows none."""
    table = _table()
    text = start[:MAX_START_BYTES].decode("utf-8", "replace") if start else ""
    candidates: tuple[str, ...] = ()
    name = PurePosixPath(path).name
    suffix, by_suffix = _by_suffix(name.lower(), table)
    named = table.by_name.get(name, ())
    if name.startswith(("Dockerfile.", "Containerfile.")):  # of one target, such as Dockerfile.gpu
        named = ("Dockerfile",)
    for found in (_by_mode_line(text, table), named, _by_interpreter(text, table)):
        narrowed = tuple(one for one in found if one in candidates) if candidates else found
        if len(narrowed) == 1:
            return narrowed[0]
        candidates = narrowed or candidates
    if by_suffix and suffix not in table.generic:
        narrowed = tuple(one for one in by_suffix if one in candidates) if candidates else by_suffix
        if len(narrowed) == 1:
            return narrowed[0]
        candidates = narrowed or candidates
    if not candidates and _XML.search("\n".join(text.split("\n", 2)[:2])):
        return "XML"
    if not candidates and _MANPAGE.search(name):
        candidates = ("Roff Manpage", "Roff")
    decided = _by_rules(name.lower(), text) if text else ()
    if len(decided) == 1:
        return decided[0]
    candidates = decided or candidates
    if "XML" in candidates and _XML.match(text.lstrip("\ufeff \t\r\n")):
        return "XML"
    return candidates[0] if candidates else None


def may_be_source(path: str) -> bool:
    """Whether a file of this name can have a language, so that it has to be read."""
    table = _table()
    name = PurePosixPath(path).name
    return (
        "." not in name[1:]
        or name in table.by_name
        or _by_suffix(name.lower(), table)[1] != ()
        or (_MANPAGE.search(name) is not None)
    )


def language_of_notebook(text: str) -> str | None:
    """The language of a notebook's kernel; None if it names none that is known."""
    try:
        about = json.loads(text)["metadata"]
        kernel, info = about.get("kernelspec") or {}, about.get("language_info") or {}
        names = (info.get("name"), kernel.get("language"), about.get("language"), kernel.get("name"))
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return None
    found = (language_named(name) for name in names if isinstance(name, str))
    return next((language for language in found if language), None)


def is_vendored(path: str) -> bool:
    """Whether linguist counts the path as other people's code."""
    return _table().vendored.search(path) is not None


def is_generated(path: str, text: str) -> bool:
    """Whether linguist knows the file as generated, by its path or first lines."""
    table = _table()
    if table.generated.search(path):
        return True
    extension = PurePosixPath(path).suffix
    for one in table.starts:
        if extension in one["extensions"]:
            lines = "\n".join(text.split("\n", one["lines"])[: one["lines"]])
            strings: Iterable[str] = one.get("any") or one["all"]
            if (any if "any" in one else all)(string in lines for string in strings):
                return True
    return False


@cache
def _table() -> _Table:
    data = json.loads(
        importlib.resources.files("starcoder.repos").joinpath("languages.json").read_text("utf-8")
    )
    listed: dict[str, dict[str, Any]] = data["languages"]
    popular = set(data["popular"])
    by_alias: dict[str, str] = {}
    maps: dict[str, dict[str, list[str]]] = {"filenames": {}, "interpreters": {}, "extensions": {}}
    for name, about in listed.items():
        for alias in (name.lower(), *about["aliases"]):
            by_alias.setdefault(alias, name)
        for key, found in maps.items():
            for one in about[key]:
                found.setdefault(one, []).append(name)
    for extension, names in maps["extensions"].items():
        names.sort(key=lambda one: _preference(one, extension, listed, popular))
    for name in listed:
        by_alias[name.lower()] = name
    rules = {end: one["rules"] for one in data["heuristics"] for end in one["extensions"]}
    by_name, by_interpreter, by_extension = (
        {key: tuple(names) for key, names in found.items()} for found in maps.values()
    )
    return _Table(
        languages=listed,
        by_alias=by_alias,
        by_name=by_name,
        by_interpreter=by_interpreter,
        by_extension=by_extension,
        popular=frozenset(popular),
        generic=frozenset(data["generic"]),
        rules=rules,
        vendored=re.compile("|".join(f"(?:{one})" for one in data["vendored"])),
        generated=re.compile("|".join(f"(?:{one})" for one in data["generated_paths"])),
        starts=data["generated_starts"],
    )


def _preference(
    name: str, extension: str, listed: Mapping[str, Mapping[str, Any]], popular: set[str]
) -> tuple[bool, bool, bool, str]:
    """Languages with the smaller value are taken for an extension where nothing else decides."""
    is_first = listed[name]["extensions"][0] == extension
    is_known = listed[name]["type"] == "prose" or name in trained_languages("starcoder")
    return not is_first, name not in popular, not is_known, name


@cache
def _rules_of(extension: str) -> tuple[_Rule, ...]:
    """The patterns of an extension, compiled when it is first met."""
    options = re.MULTILINE | re.ASCII
    return tuple(
        _Rule(
            tuple(one["languages"]),
            tuple(re.compile(pattern, options) for pattern in one.get("all", [])),
            tuple(re.compile(pattern, options) for pattern in one.get("none", [])),
        )
        for one in _table().rules[extension]
    )


def _by_suffix(name: str, table: _Table) -> tuple[str, tuple[str, ...]]:
    """The longest ending with a dot that a language has, and its languages."""
    at = name.find(".")
    while at >= 0:
        found = table.by_extension.get(name[at:])
        if found:
            return name[at:], found
        at = name.find(".", at + 1)
    return "", ()


def _squeezed(text: str) -> str:
    """The text's start without long runs, on which the patterns take time that grows with their square."""
    text = _BLANK_LINES.sub("\n\n", text[:_MAX_RULES_CHARACTERS])
    return _LONG_WORD.sub(r"\1", _LONG_RUN.sub(r"\1", text))


def _by_rules(name: str, text: str) -> tuple[str, ...]:
    text = _squeezed(text)
    at = name.find(".")
    while at >= 0:
        if name[at:] in _table().rules:
            for rule in _rules_of(name[at:]):
                if all(one.search(text) for one in rule.every) and not any(
                    one.search(text) for one in rule.none
                ):
                    return rule.languages
            return ()
        at = name.find(".", at + 1)
    return ()


def _by_interpreter(text: str, table: _Table) -> tuple[str, ...]:
    if not text.startswith("#!"):
        return ()
    match = _SHEBANG.match(text)
    if match is None:
        return ()
    script, rest = match[1].rpartition("/")[2], match[2] or ""
    if script == "env":
        options = _ENV_OPTIONS.match(rest)
        script = options[1].rpartition("/")[2] if options else ""
    if script == "sh" and (executed := _EXEC.search("\n".join(text.split("\n", 5)[:5]))):
        script = executed[1]
    if script == "osascript" and "-l" in rest:
        return ()
    for one in (script, re.sub(r"(?:\.\d+)+$", "", script), re.sub(r"[\d.]+$", "", script)):
        if one in table.by_interpreter:
            return table.by_interpreter[one]
    return ()


def _by_mode_line(text: str, table: _Table) -> tuple[str, ...]:
    """What Emacs or Vim are asked to take the file for, in its first or last lines."""
    if "-*-" not in text and not re.search(r"(?:vim?|ex):", text[:2000] + text[-2000:], re.IGNORECASE):
        return ()
    lines = text.split("\n")
    scope = "\n".join([*lines[:_MODE_LINES], *lines[-_MODE_LINES:]])[:8000]
    match = _EMACS.search(scope) or _VIM.search(scope)
    name = next((one for one in match.groups() if one), "") if match else ""
    language = table.by_alias.get(name.lower())
    return (language,) if language else ()
