"""What of a source tree is skipped: paths that .gitignore names, hidden ones, folders that tools made.

Patterns are matched by `pathspec`. Source: git's gitignore(5) and gitattributes(5).
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import PurePosixPath

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from starcoder.files import unix_newlines

# Folders that package managers, build tools and virtual environments make, next to hidden ones.
MADE = frozenset(
    (
        "node_modules",
        "bower_components",
        "__pycache__",
        "venv",
        ".venv",
        "site-packages",
        "build",
        "dist",
        "target",
    )
)
_ATTRIBUTES = frozenset(("linguist-generated", "linguist-vendored", "linguist-language", "binary"))


def is_made(path: str) -> bool:
    """Whether a path of a tree is hidden, or in a folder that is, or in one that a tool makes."""
    *folders, name = PurePosixPath(path).parts or ("",)
    return name.startswith(".") or any(part.startswith(".") or part in MADE for part in folders)


class IgnoreRules:
    """The .gitignore files of a tree; those of deeper folders come before those above."""

    def __init__(self) -> None:
        self._specs: dict[str, GitIgnoreSpec] = {}  # by folder, "" the root

    def add(self, text: str, folder: str) -> None:
        """Take in the .gitignore of a folder, "" being the root."""
        patterns = map(_pattern, unix_newlines(text).split("\n"))
        self._specs[folder] = GitIgnoreSpec([one for one in patterns if one is not None])

    def is_ignored(self, path: str, *, is_directory: bool = False) -> bool:
        """Whether the path is; of an ignored folder ask once and do not look into it."""
        folder = path
        while folder:
            folder = folder.rpartition("/")[0]
            spec = self._specs.get(folder)
            if spec is None:
                continue
            inside = path[len(folder) + 1 :] if folder else path
            found = spec.check_file(f"{inside}/" if is_directory else inside).include
            if found is not None:
                return found
        return False


class Attributes:
    """What .gitattributes files say of linguist's words and `binary`; later and deeper lines win."""

    def __init__(self) -> None:
        self._rules: list[tuple[str, str, GitIgnoreSpecPattern, Mapping[str, str]]] = []

    def add(self, text: str, folder: str) -> None:
        """Take in the .gitattributes of a folder, "" being the root, after those of the folders above."""
        for line in unix_newlines(text).split("\n"):
            name, *words = line.split() or [""]
            values: dict[str, str] = {}
            for word in words:
                key, _, value = word.lstrip("-!").partition("=")
                if key in _ATTRIBUTES:
                    is_off = word.startswith(("-", "!")) or value.lower() in ("false", "0")
                    values[key] = "" if is_off else value or "true"
            # A macro, a comment, a pattern of a folder and a negative one match no file.
            is_of_files = not name.startswith(("[attr]", "#", "!")) and not name.endswith("/")
            if values and is_of_files and (pattern := _pattern(name)) is not None:
                self._rules.append((f"{folder}/" if folder else "", name, pattern, values))

    def of(self, path: str) -> dict[str, str]:
        """The attributes of a file; "" is one that was switched off."""
        found: dict[str, str] = {}
        for prefix, text, pattern, values in self._rules:
            if path.startswith(prefix) and _is_named(path[len(prefix) :], text, pattern):
                found |= values
        return found


def _is_named(path: str, text: str, pattern: GitIgnoreSpecPattern) -> bool:
    """Whether the pattern names the file itself: an attribute of a folder is none of its files."""
    if "/" not in text:
        return pattern.match_file(path.rpartition("/")[2]) is not None
    if pattern.match_file(path) is None:
        return False
    folder = path.rpartition("/")[0]
    return text.endswith("**") or not folder or pattern.match_file(folder) is None


def _pattern(line: str) -> GitIgnoreSpecPattern | None:
    """The compiled pattern; None for one that git would not match either."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what could be a nested set of characters
            return GitIgnoreSpecPattern(line)
    except (ValueError, re.error):
        return None
