"""Reads licenses from package metadata and from REUSE's files."""

import json
import re
import tomllib
from collections.abc import Callable, Iterable

from starcoder.repos.license_expressions import expression_of, joined, license_named


def metadata_reader(name: str) -> Callable[[str], str | None] | None:
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
            named = [license_named(match[1]) for match in pattern.finditer(text)]
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
    "setup.py": _by_pattern(
        r"\blicense\s*=\s*[\"']([^\"'\n]+)[\"']", r"[\"']License :: .*:: ([^\"'\n]+)[\"']"
    ),
    "pom.xml": _by_pattern(r"<license>\s*<name>\s*([^<]+?)\s*</name>"),
    "DESCRIPTION": _by_pattern(r"^License:[ \t]*(.+?)(?:[ \t]*\+[ \t]*file LICEN[CS]E)?$"),
    "mix.exs": _by_pattern(r"licenses:\s*\[\s*\"([^\"]+)\""),
    "PKG-INFO": _by_pattern(r"^License(?:-Expression)?:[ \t]*(.+)$", r"^Classifier: License :: .*:: (.+)$"),
    ".gemspec": _by_pattern(r"\.licenses?\s*=\s*\[?\s*[\"']([^\"']+)[\"']"),
    ".cabal": _by_pattern(r"^license:[ \t]*(.+)$"),
    ".nuspec": _by_pattern(r"<license type=\"expression\">\s*([^<]+?)\s*</license>"),
    ".csproj": _by_pattern(r"<PackageLicenseExpression>\s*([^<]+?)\s*</PackageLicenseExpression>"),
}


def reuse_rules(text: str) -> list[tuple[str, str]]:
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
        rules += [
            (str(glob), joined(valid, "AND")) for glob in ([globs] if isinstance(globs, str) else globs)
        ]
    return rules


def dep5_rules(text: str) -> list[tuple[str, str]]:
    """(glob, license) of a Debian copyright file, whose globs cross folders."""
    rules = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        files = re.search(r"^Files:((?:.*\n?(?:[ \t]+.*\n?)*))", paragraph, re.MULTILINE)
        license = re.search(r"^License:[ \t]*(.+)$", paragraph, re.MULTILINE)
        named = license_named(license[1]) if license else None
        if files and named:
            rules += [(glob.replace("*", "**"), named) for glob in files[1].split()]
    return rules


def named_by(rules: Iterable[tuple[str, str]], base: str, paths: Iterable[str]) -> dict[str, str]:
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
