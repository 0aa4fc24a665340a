"""What of other files goes with a request: open documents, recent edits, and definitions of imported names.

Pieces are ranked by the names they share with the text around the cursor and cut to a budget. Files that
.gitignore or the settings exclude, files outside the project and those that often hold secrets are not read.
Limits: imports of Python and of JavaScript or TypeScript are followed, one step deep.
"""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from starcoder.lsp.documents import Document
from starcoder.repos.skip import IgnoreRules

_WINDOW_LINES = 40
_AROUND_CURSOR = 2000  # characters before the cursor whose names rank the pieces
_DEFINITION_LINES = 16
_MAX_FILE_BYTES = 400_000
_MAX_IMPORTS = 12
_RECENT_S = 600.0
_NAME = re.compile(r"[^\W\d]\w{2,}")
_PYTHON_IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<package>\.*[\w.]*)[ \t]+import[ \t]+(?P<names>\([^)]*\)|[^\n#]+)"
    r"|import[ \t]+(?P<modules>[\w., \t]+))",
    re.MULTILINE,
)
_SCRIPT_IMPORT = re.compile(r"""import\s+(?P<names>[^'";]{1,500}?)\s+from\s+['"](?P<path>\.[^'"\n]+)['"]""")
_SCRIPT_SUFFIXES = (".ts", ".tsx", ".js", ".jsx", ".mjs", "/index.ts", "/index.js")

# Files that usually hold secrets, by the names that tools give them.
SECRET_FILES = GitIgnoreSpec.from_lines(
    (
        *(
            ".env",
            ".env.*",
            "*.env",
            ".envrc",
            ".netrc",
            "_netrc",
            ".pypirc",
            ".npmrc",
            ".pgpass",
            ".htpasswd",
        ),
        *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.asc", "*.gpg"),
        *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "credentials", "credentials.*", "secrets.*"),
        *(".aws/", ".ssh/", ".gnupg/", ".kube/", ".docker/config.json", "*.tfvars", "*.tfstate", "*.ovpn"),
        *("service-account*.json", "*-credentials.json", ".git-credentials", ".vault-token"),
    )
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of another file; higher `score` first."""

    path: str
    text: str
    score: float


class Project:
    """The folder that the editor has open, and which of its files may be read."""

    def __init__(self, root: Path | None, exclude: Iterable[str] = ()):
        self.root = None if root is None else root.resolve()
        self._exclude = GitIgnoreSpec.from_lines(exclude)

    def relative(self, path: str | Path | None) -> str | None:
        """Path below the root, with slashes; None outside of it and without a root."""
        if path is None or self.root is None:
            return None
        try:
            return Path(path).resolve().relative_to(self.root).as_posix()
        except (ValueError, OSError, RuntimeError):
            return None

    def may_read(self, path: str | Path | None) -> bool:
        """Whether a file's text may go to the server. A document that is no file may."""
        if path is None:
            return True
        name = self.relative(path) or Path(path).name
        if SECRET_FILES.match_file(str(path).lstrip("/")) or self._exclude.match_file(name):
            return False
        return self.root is None or not self._is_ignored(name)

    def _is_ignored(self, name: str) -> bool:
        assert self.root is not None, "only asked with a root"
        rules, parts = IgnoreRules(), PurePosixPath(name).parts
        for depth in range(len(parts)):
            folder = "/".join(parts[:depth])
            if depth and rules.is_ignored(folder, is_directory=True):
                return True
            text = _read(self.root / folder / ".gitignore")
            if text is not None:
                rules.add(text, folder)
        return rules.is_ignored(name)


def gather(
    document: Document, offset: int, others: Iterable[Document], project: Project, budget: int
) -> list[dict[str, str]]:
    """Pieces of other files of at most `budget` characters, as `extras` of a request: the best piece last.

    The model sees the last one right before the file that is completed.
    """
    if budget <= 0:
        return []
    names = _names(document.text[max(0, offset - _AROUND_CURSOR) : offset + _AROUND_CURSOR // 4])
    pieces = [
        *_definitions(document, project),
        *(
            piece
            for other in others
            if other.uri != document.uri
            for piece in _windows(other, names, project)
        ),
    ]
    chosen: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: -piece.score):
        if piece.score <= 0 or len(piece.text) + len(piece.path) > budget:
            continue
        budget -= len(piece.text) + len(piece.path)
        chosen.append(piece)
    return [{"path": piece.path, "text": piece.text} for piece in reversed(chosen)]


def _windows(document: Document, names: set[str], project: Project) -> Iterator[Piece]:
    """The part of an open document that shares most names, and the part that was just edited."""
    path = document.path
    if "\0" in document.text or (path is not None and project.root and project.relative(path) is None):
        return
    if not project.may_read(path):
        return
    name = project.relative(path) or (Path(path).name if path else "untitled")
    lines = document.text.split("\n")
    starts = range(0, max(1, len(lines)), _WINDOW_LINES)
    scored = [
        (_overlap(names, window), start, window) for start in starts if (window := _window(lines, start))
    ]
    if scored:
        score, start, window = max(scored)
        yield Piece(name, window, score)
        age_s = time.monotonic() - document.edited_s
        if document.edited_s and age_s < _RECENT_S:
            line = document.text.count("\n", 0, document.edited_at)
            first = max(0, line - _WINDOW_LINES // 2)
            if abs(first - start) >= _WINDOW_LINES // 2:
                window = _window(lines, first)
                yield Piece(name, window, _overlap(names, window) + 0.5 * (1 - age_s / _RECENT_S))


def _window(lines: list[str], start: int) -> str:
    return "\n".join(lines[start : start + _WINDOW_LINES]) + "\n"


def _names(text: str) -> set[str]:
    return set(_NAME.findall(text))


def _overlap(names: set[str], text: str) -> float:
    """Share of the names around the cursor that the text has too."""
    return len(names & _names(text)) / len(names) if names else 0.0


def _definitions(document: Document, project: Project) -> Iterator[Piece]:
    """Heads of what the document imports from other files of the project."""
    if project.root is None or document.path is None:
        return
    for number, (file, names) in enumerate(_imports(document, project.root)):
        if number >= _MAX_IMPORTS:
            return
        relative = project.relative(file)
        text = None if relative is None or not project.may_read(file) else _read(file)
        if relative is None or text is None:
            continue
        found = "".join(head for name in names if (head := _head(text, name)) is not None)
        if found:
            yield Piece(relative, found, 1.0)


def _imports(document: Document, root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Files that exist and the names imported from each."""
    assert document.path is not None, "only called for files"
    folder = Path(document.path).parent
    if document.path.endswith((".py", ".pyi")):
        for match in _PYTHON_IMPORT.finditer(document.text):
            package, names = match["package"], match["names"]
            if package is None:
                continue
            dots = len(package) - len(package.lstrip("."))
            up = folder.joinpath(*[".."] * (dots - 1)) if dots else None
            inner = package.lstrip(".").replace(".", "/")
            imported = [part.split(" as ")[0].strip() for part in names.strip("()\n ").split(",")]
            for base in [up] if up is not None else [root, root / "src", folder]:
                for suffix in (".py", "/__init__.py"):
                    file = base / f"{inner}{suffix}" if inner else base / "__init__.py"
                    if file.is_file():
                        yield file, [name for name in imported if name.isidentifier()]
                        break
                else:
                    continue
                break
    elif document.path.endswith((".ts", ".tsx", ".js", ".jsx", ".mjs")):
        for match in _SCRIPT_IMPORT.finditer(document.text):
            for suffix in ("", *_SCRIPT_SUFFIXES):
                file = folder / f"{match['path']}{suffix}"
                if file.is_file():
                    yield file, _NAME.findall(match["names"])
                    break


def _head(text: str, name: str) -> str | None:
    """The first lines of the definition of `name`; None if it is not defined there."""
    escaped = re.escape(name)
    match = re.search(
        rf"^[ \t]*(?:export\s+|default\s+|async\s+|abstract\s+)*"
        rf"(?:def|class|function|interface|type|const|let)\s+{escaped}\b|^{escaped}\s*[:=]",
        text,
        re.MULTILINE,
    )
    if match is None:
        return None
    lines = text[match.start() :].split("\n")[:_DEFINITION_LINES]
    indent = len(lines[0]) - len(lines[0].lstrip())
    for number, line in enumerate(lines[1:], start=1):
        is_next = line.strip() and len(line) - len(line.lstrip()) <= indent and line.strip()[0] not in ")]}"
        if is_next:
            lines = lines[:number]
            break
    return "\n".join(lines).rstrip() + "\n"


def _read(path: Path) -> str | None:
    """A small text file; None for what is not one."""
    try:
        stat = path.stat()
        return _read_version(str(path), stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=64)
def _read_version(path: str, mtime_ns: int, size: int) -> str | None:
    if size > _MAX_FILE_BYTES:
        return None
    text = Path(path).read_bytes().decode("utf-8", "replace")
    return None if "\0" in text else text.replace("\r\n", "\n")
