"""Problems cut from a user's own repository: next lines, lines and blocks to infill, bodies of functions.

Python is cut by its syntax, other languages by lines and indentation, which know no functions. With held-out
commits only what those commits wrote is asked for: a model that learnt from the repository before them has
not seen it.

Limits: a hole is whole lines; files are read as they are at HEAD (with held-out commits) or on the disk.
"""

import ast
import random
import re
import subprocess
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from starcoder.errors import ConfigError
from starcoder.evaluate.problems import Problem
from starcoder.files import unix_newlines
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
SKIPPED = {".git", ".venv", "venv", "node_modules", "build", "dist", "__pycache__"}
_LEAST_LETTERS = 4  # of a line that is worth asking for: no brackets, no `pass`-like stubs of punctuation
_MAX_BLOCK, _MAX_FUNCTION = 12, 30  # lines
_MAX_TOKENS: dict[Kind, int] = {"next-line": 64, "line": 64, "block": 256, "function": 512}
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # git's name of a tree with nothing in it


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
    for path in sorted(repository.rglob("*")):
        name = path.relative_to(repository)
        if path.suffix not in LANGUAGES or SKIPPED & set(name.parts) or not path.is_file():
            continue
        if path.stat().st_size <= _MAX_BYTES:
            try:
                yield SourceFile(path=name.as_posix(), text=unix_newlines(path.read_text("utf-8")))
            except UnicodeDecodeError:
                continue  # no text of ours


def _held_out(repository: Path, num_commits: int) -> Iterator[SourceFile]:
    if num_commits < 1:
        raise ConfigError(f"holdout_commits is {num_commits}; expected at least 1")
    history = int(_git(repository, "rev-list", "--count", "--first-parent", "HEAD"))
    before = f"HEAD~{num_commits}" if num_commits < history else _EMPTY_TREE
    diff = _git(
        repository, "-c", "core.quotePath=off", "diff", "--relative", "--no-color", "--no-ext-diff",
        "--unified=0", "--diff-filter=AM", "--no-renames", before, "HEAD", "--", ".",
    )  # fmt: skip
    for path, lines in _added(diff.splitlines()):
        if Path(path).suffix in LANGUAGES:
            text = unix_newlines(_git(repository, "show", f"HEAD:./{path}"))
            if len(text) <= _MAX_BYTES:
                yield SourceFile(path=path, text=text, lines=lines)


def _added(diff: Iterable[str]) -> Iterator[tuple[str, frozenset[int]]]:
    """Each file of a diff without context, with the numbers of the lines it adds."""
    path, lines, num_left = "", set[int](), 0
    for line in diff:
        if num_left and line[:1] in ("+", "-"):
            num_left -= 1  # what a hunk says it holds; it may look like a header
        elif line.startswith("+++ "):
            if path and lines:
                yield path, frozenset(lines)
            path, lines = line.removeprefix("+++ b/").rstrip("\t"), set()
        elif match := _HUNK.match(line):
            removed, start, added = int(match[1] or 1), int(match[2]), int(match[3] or 1)
            lines.update(range(start, start + added))
            num_left = removed + added
    if path and lines:
        yield path, frozenset(lines)


def _git(repository: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise ConfigError("git is not installed", "held-out commits are read by git") from None
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
        raise ConfigError(f"git cannot read {str(repository)!r}: {reason}", "--repo takes a git repository")
    return done.stdout.decode("utf-8", "replace")
