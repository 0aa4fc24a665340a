"""Problems cut from a user's own repository: next lines, lines and blocks to infill, bodies of functions.

Python is cut by its syntax, other languages by lines and indentation, which know no functions. With held-out
commits only what those commits wrote is asked for: a model that learnt from the repository before them has
not seen it.

Limits: a hole is whole lines; files are read as they are at HEAD (with held-out commits) or on the disk.
"""

import ast
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from starcoder.errors import ConfigError
from starcoder.evaluate.problems import Problem
from starcoder.files import unix_newlines
from starcoder.repos import git
from starcoder.repos.walk import read_file, source_files
from starcoder.request import CompletionRequest, SamplingParams

Kind = Literal["next-line", "line", "block", "function"]
KINDS: tuple[Kind, ...] = get_args(Kind)

LANGUAGES = {
    ".py": "python",
    ".js": "javascript",
    ".ts": "typescript",
    ".java": "java",
    ".c": "c",
    ".h": "c",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".hpp": "cpp",
    ".go": "go",
    ".rs": "rust",
    ".rb": "ruby",
    ".php": "php",
    ".sh": "bash",
    ".pl": "perl",
}
_MAX_BYTES = 1_000_000  # of a file: longer ones are data
_LEAST_LETTERS = 4  # of a line that is worth asking for: no brackets, no `pass`-like stubs of punctuation
_MAX_BLOCK, _MAX_FUNCTION = 12, 30  # lines
_MAX_TOKENS: dict[Kind, int] = {"next-line": 64, "line": 64, "block": 256, "function": 512}


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A file, and which of its lines (from 1) may be asked for; None is all of them."""

    path: str
    text: str
    lines: frozenset[int] | None = None


@dataclass(frozen=True, slots=True, order=True)
class Hole:
    """Whole lines of a file, from 1, both ends included."""

    kind: Kind
    first: int
    last: int


def read(repository: Path, *, holdout_commits: int | None = None) -> list[SourceFile]:
    """The source files of a folder, or those that its last commits wrote in.

    Raises:
        ConfigError: no such folder, no source files in it, or no git repository where commits are held out.
    """
    if not repository.is_dir():
        raise ConfigError(
            f"there is no folder {str(repository)!r}", "--repo takes the folder of a repository"
        )
    found = _on_disk(repository) if holdout_commits is None else _held_out(repository, holdout_commits)
    files = list(found)
    if not files:
        what = (
            "source files" if holdout_commits is None else f"new lines in its last {holdout_commits} commits"
        )
        raise ConfigError(f"{str(repository)!r} has no {what}", f"it looks for {', '.join(LANGUAGES)}")
    return files


def cut(
    files: Sequence[SourceFile],
    *,
    repo: str = "",
    kinds: Sequence[Kind] = KINDS,
    limit: int = 100,
    seed: int = 0,
) -> tuple[Problem, ...]:
    """At most `limit` problems of each kind, chosen by `seed` alone.

    Raises:
        ConfigError: the files have no place that can be asked for.
    """
    places: dict[Kind, list[tuple[SourceFile, Hole]]] = {kind: [] for kind in kinds}
    for file in files:
        for hole in holes(file):
            if hole.kind in places:
                places[hole.kind].append((file, hole))
    chosen = []
    for kind, found in places.items():
        rng = random.Random(f"{seed}/{kind}")
        some = rng.sample(found, min(limit, len(found)))
        chosen += sorted(some, key=lambda place: (place[0].path, place[1]))
    if not chosen:
        raise ConfigError("there is no line, block or function to ask for", "hold out more commits")
    return tuple(_problem(file, hole, repo) for file, hole in chosen)


def holes(file: SourceFile) -> list[Hole]:
    """All places of a file that may be asked for, sorted."""
    lines = file.text.split("\n")
    found = _python_holes(file.text, lines) if file.path.endswith(".py") else _line_holes(lines)
    allowed = file.lines
    return sorted(
        hole
        for hole in set(found)
        if allowed is None or all(number in allowed for number in range(hole.first, hole.last + 1))
    )


def _problem(file: SourceFile, hole: Hole, repo: str) -> Problem:
    """Holes begin at a line's start; a prefix to go on from ends with its last word.

    A tokenizer joins blanks with what follows them, so behind bare indentation a model cannot write the
    word that it learnt to write there.
    """
    lines = file.text.split("\n")
    before = "".join(f"{line}\n" for line in lines[: hole.first - 1])
    wanted = "\n".join(lines[hole.first - 1 : hole.last])
    after = "\n" + "\n".join(lines[hole.last :])
    is_next = hole.kind == "next-line"
    prefix = before.rstrip() if is_next else before
    blanks = before[len(prefix) :]
    is_line = hole.kind in ("next-line", "line")
    return Problem(
        id=f"{hole.kind}/{file.path}:{hole.first}",
        request=CompletionRequest(
            prefix=prefix,
            suffix=None if is_next else after,
            path=file.path,
            repo=repo or None,
            layout="auto" if is_next else "psm",
            sampling=SamplingParams(
                max_tokens=_MAX_TOKENS[hole.kind],
                max_lines=1 + blanks.count("\n") if is_line else None,
                min_indent=None if is_line else _indent(lines[hole.first - 1]),
            ),
        ),
        reference=blanks + wanted,
        language=LANGUAGES[Path(file.path).suffix],
        group=hole.kind,
        rest=after,
    )


def _python_holes(text: str, lines: Sequence[str]) -> Iterator[Hole]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.stmt)
            and node.end_lineno == node.lineno
            and _is_worth(lines[node.lineno - 1])
        ):
            yield Hole("line", node.lineno, node.lineno)
            if any(line.strip() for line in lines[: node.lineno - 1]):
                yield Hole("next-line", node.lineno, node.lineno)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            yield from _body("function", node.lineno, body, _MAX_FUNCTION)
        elif isinstance(node, ast.For | ast.While | ast.If | ast.With | ast.Try):
            yield from _body("block", node.lineno, node.body, _MAX_BLOCK)


def _body(kind: Kind, header: int, body: Sequence[ast.stmt], most: int) -> Iterator[Hole]:
    if not body:
        return
    first, last = body[0].lineno, body[-1].end_lineno or body[-1].lineno
    if first > header and 2 <= last - first + 1 <= most:
        yield Hole(kind, first, last)


def _line_holes(lines: Sequence[str]) -> Iterator[Hole]:
    """Lines, and runs of lines that stand deeper than the line before them."""
    for number, line in enumerate(lines, 1):
        if not _is_worth(line):
            continue
        yield Hole("line", number, number)
        if any(above.strip() for above in lines[: number - 1]):
            yield Hole("next-line", number, number)
        depth, last = _indent(line), number
        while last < len(lines) and (not lines[last].strip() or _indent(lines[last]) > depth):
            last += 1
        while last > number and not lines[last - 1].strip():
            last -= 1
        if 2 <= last - number <= _MAX_BLOCK:
            yield Hole("block", number + 1, last)


def _is_worth(line: str) -> bool:
    return sum(character.isalnum() for character in line) >= _LEAST_LETTERS


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _on_disk(repository: Path) -> Iterator[SourceFile]:
    for path in source_files(repository, max_bytes=_MAX_BYTES):
        if path.suffix in LANGUAGES and (data := read_file(path, _MAX_BYTES)) is not None:
            try:
                text = unix_newlines(data.decode("utf-8"))
            except UnicodeDecodeError:
                continue  # no text of ours
            yield SourceFile(path=path.relative_to(repository).as_posix(), text=text)


def _held_out(folder: Path, num_commits: int) -> Iterator[SourceFile]:
    """Files below the folder that the last commits of HEAD's first parents wrote in."""
    if num_commits < 1:
        raise ConfigError(f"holdout_commits is {num_commits}; expected at least 1")
    repository, head = open_head(folder)
    before: str | None = head
    for _ in range(num_commits):
        before = repository.resolve(f"{before}^") if before else None
    inner = folder.resolve().relative_to(repository.folder.resolve()).as_posix()
    prefix = "" if inner == "." else f"{inner}/"
    for change in repository.changes(head, before) or ():
        path = change.path.removeprefix(prefix)
        is_file = change.modes[1].startswith("100") and change.path.startswith(prefix)
        if not is_file or Path(path).suffix not in LANGUAGES:
            continue
        new = repository.read(change.blobs[1], _MAX_BYTES)
        old = repository.read(change.blobs[0]) if change.blobs[0] else b""
        if new is None or old is None:
            continue
        lines = git.added_lines(old, new)
        if lines:
            yield SourceFile(path=path, text=unix_newlines(new.decode("utf-8", "replace")), lines=lines)


def open_head(folder: Path) -> tuple[git.GitRepository, str]:
    """The repository that a folder is in, and the commit that is checked out.

    Raises:
        ConfigError: there is none, or it has no commit.
    """
    root = git.find_root(folder)
    try:
        repository = git.GitRepository(root or folder)
        head = repository.resolve("HEAD")
    except git.GitError as error:
        raise ConfigError(f"git cannot read {str(folder)!r}: {error.message}", error.hint) from None
    if head is None:
        raise ConfigError(
            f"git cannot read {str(folder)!r}: it has no commit", "--repo takes a git repository"
        )
    return repository, head
