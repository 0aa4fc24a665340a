"""Finds the license of each file of a source tree, as an SPDX expression.

A file's own notice comes first, then what REUSE says of it, then the nearest folder above that has a license
file, package metadata or a README with a license section. A folder whose license file is not recognized is
"unknown": its parent's license does not count there.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath

from starcoder.repos.languages import language_of
from starcoder.repos.license_expressions import (
    PROPRIETARY,
    UNKNOWN,
    is_wanted,
    joined,
    license_named,
    licenses_in,
    name_at,
    this_version,
)
from starcoder.repos.license_metadata import dep5_rules, metadata_reader, named_by, reuse_rules
from starcoder.repos.license_notices import (
    MAX_LICENSE_BYTES,
    license_of_header,
    license_of_text,
    refused,
    stated,
    tagged,
)
from starcoder.repos.license_words import words_of

__all__ = [
    "MAX_LICENSE_BYTES",
    "PROPRIETARY",
    "UNKNOWN",
    "is_license_file",
    "is_wanted",
    "license_of_file",
    "license_of_header",
    "license_of_path",
    "license_of_text",
    "licenses_of_tree",
    "says_license",
]


_PROSE = ("", "txt", "text", "md", "markdown", "mkd", "rst", "adoc", "asciidoc", "html", "htm", "org")
_PROSE_LANGUAGES = (None, "Text", "Markdown", "reStructuredText", "AsciiDoc", "HTML", "Org")
_LICENSE_NAME = re.compile(
    r"(?P<before>.*?)[-_. ]?(?:(?:un)?licen[cs]es?|copying|copyright)(?P<after>.*)", re.IGNORECASE
)
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
        or metadata_reader(name) is not None
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
        reader = metadata_reader(name)
        if name == "REUSE.toml" or path.endswith(".reuse/dep5"):
            base = folder.removesuffix(".reuse").rstrip("/") if name == "dep5" else folder
            rules = reuse_rules(read(path)) if name == "REUSE.toml" else dep5_rules(read(path))
            found.update(named_by(rules, base, paths))
        elif name.endswith(".license"):
            if said := tagged(read(path)):
                found[path.removesuffix(".license")] = said
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


def license_of_file(path: str, text: str, licenses: Mapping[str, str]) -> str:
    """The license by the file's own first comment, else by `licenses_of_tree`."""
    return license_of_header(text) or license_of_path(path, licenses)


def license_of_path(path: str, licenses: Mapping[str, str]) -> str:
    """The license of the file itself or of the nearest folder above it, by `licenses_of_tree`."""
    for one in (PurePosixPath(path), *PurePosixPath(path).parents):
        name = "" if str(one) == "." else str(one)
        if name in licenses:
            return licenses[name]
    return UNKNOWN


_README = re.compile(r"readme(?:\.(?:md|rst|txt|markdown|adoc|org))?", re.IGNORECASE)
_README_SECTION = re.compile(
    r"^(?:#+[ \t]*|=+[ \t]*|\*+[ \t]*)?(?:\d+\.[ \t]*)?licen[cs](?:e|ing)(?: information)?:?[ \t#=*]*\n"
    r"(?:[-=~^\"]{3,}[ \t]*\n)?(?P<text>(?:.*\n?){1,12})",
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
    texts = {name: said for name, said in texts.items() if said != _POINTS} or dict.fromkeys(
        pointing, UNKNOWN
    )
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
        or re.fullmatch(
            r"(?i)(?:apache|mit|bsd|[al]?gpl|mpl|epl|isc|zlib|lesser|cc|boost|ofl|eupl|psf|artistic)[-_.v]?\d*(?:[._]\d)?",
            part,
        )
        is not None
        or re.fullmatch(r"(?i)the|main|project|software|code|full|agreement|v?\d+(?:[._]\d+)*", part)
        is not None
    )


def _license_of_readme(text: str) -> str | None:
    for match in _README_SECTION.finditer(text[:MAX_LICENSE_BYTES]):
        section = re.split(r"^#", match["text"], maxsplit=1, flags=re.MULTILINE)[0]
        words = words_of(re.sub(r"\]\([^)]*\)", " ", section))
        first = name_at(words, 1 if words[:1] == ["the"] else 0) if words else None
        said = stated(words) or (first[0] if first else None) or refused(words)
        if said:
            return said
    return None
