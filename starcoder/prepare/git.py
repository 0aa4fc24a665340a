"""Reads git repositories through the `git` command: trees, blobs, history and clones, of any revision.

Nothing of a repository runs: no hooks, no filters, no checkout. A repository that is cut off in the middle
gives what can still be read.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO

from starcoder.errors import StarcoderError

FOLDER, LINK, SUBMODULE = "040000", "120000", "160000"

_URL = re.compile(r"(https?|ssh|git|file)://|[\w.-]+@[\w.-]+:")
# Nothing of a repository runs, nobody is asked for a password, no index is written.
_SAFE = (
    "--no-optional-locks",
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "safe.directory=*"),
    *("-c", "core.askPass=true", "-c", "core.sshCommand=ssh -oBatchMode=yes"),
)


class GitError(StarcoderError):
    """A git command failed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a revision."""

    path: str
    mode: str  # 100644, FOLDER, LINK or SUBMODULE
    blob: str
    size: int | None  # None: the object is lost, or no file


@dataclass(frozen=True, slots=True)
class Change:
    """A commit that changes one file."""

    commit: str
    time: int
    message: str
    path: str
    before: str
    after: str


def is_url(text: str) -> bool:
    """Whether git would clone this from elsewhere."""
    return _URL.match(text) is not None


def public_url(url: str) -> str:
    """The URL without user, password and token."""
    return re.sub(r"^(\w+://)[^/@]*@", r"\1", url)


def name_of_url(url: str) -> str:
    """`owner/name` of a repository's URL."""
    parts = [part for part in re.split(r"[/:]+", url.rstrip("/").removesuffix(".git")) if part]
    return "/".join(parts[-2:] if not url.startswith("file:") else parts[-1:])


def is_repository(path: Path) -> bool:
    """Whether the folder itself, not one above it, is a repository, bare or with a work tree."""
    return (path / ".git").exists() or all((path / n).exists() for n in ("HEAD", "objects", "refs"))


def clone(url: str, target: Path) -> None:
    """A bare clone of everything.

    Raises:
        GitError: it cannot be cloned. The message shows no credentials.
    """
    if target.is_dir():
        return
    part = target.with_name(f"{target.name}.part{os.getpid()}")
    command = ["git", *_SAFE, "clone", "--bare", "--quiet", "--", url, str(part)]
    # A session of its own has no terminal to ask on.
    done = subprocess.run(
        command, capture_output=True, stdin=subprocess.DEVNULL, start_new_session=True, check=False
    )
    if done.returncode:
        raise GitError(
            f"{public_url(url)!r} cannot be cloned",
            "does `git clone` of it work without asking for a password?",
        )
    run(part, "config", "remote.origin.url", public_url(url))  # no token stays on disk
    part.rename(target)


def run(folder: Path, *arguments: str) -> bytes:
    """What a git command writes.

    Raises:
        GitError: it fails.
    """
    command = ["git", *_SAFE, "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise GitError(f"git cannot be run: {error.strerror}", "install git") from None
    if done.returncode:
        said = (done.stderr.decode(errors="replace").splitlines() or [""])[-1]
        raise GitError(f"git {arguments[0]} failed in {folder.name!r}: {public_url(said)}")
    return done.stdout


def resolve(folder: Path, revision: str) -> str | None:
    """The commit a revision names; None: there is none."""
    try:
        return run(folder, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    except GitError:
        return None


def origin(folder: Path) -> str:
    """The URL the repository was cloned from; "" if there is none."""
    try:
        return run(folder, "config", "--get", "remote.origin.url").decode(errors="replace").strip()
    except GitError:
        return ""


def tree(folder: Path, commit: str) -> list[Entry]:
    """Every path of a commit, in git's order; folders are there only if they cannot be read.

    Raises:
        GitError: not even the root can be read.
    """
    try:
        return _entries(folder, "-r", commit)
    except GitError:
        return list(_readable(folder, _entries(folder, commit)))


def _readable(folder: Path, entries: list[Entry]) -> Iterator[Entry]:
    """The entries below, one folder at a time: for repositories of which something is lost."""
    for entry in entries:
        try:
            below = _entries(folder, entry.blob) if entry.mode == FOLDER else []
        except GitError:
            yield entry
            continue
        if entry.mode == FOLDER:
            named = [replace(one, path=f"{entry.path}/{one.path}") for one in below]
            yield from _readable(folder, named)
        else:
            yield entry


def _entries(folder: Path, *what: str) -> list[Entry]:
    listed = run(folder, "ls-tree", "-l", "-z", "--full-tree", *what)
    entries = []
    for line in listed.split(b"\0")[:-1]:
        about, _, path = line.partition(b"\t")
        mode, _, blob, size = about.split()
        number = int(size) if size.isdigit() else None
        entries.append(Entry(os.fsdecode(path), mode.decode(), blob.decode(), number))
    return entries


def worktree_paths(folder: Path) -> list[str]:
    """Paths of the work tree that are tracked or could be: what .gitignore names is left out."""
    listed = run(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return sorted({os.fsdecode(path) for path in listed.split(b"\0") if path})


def commit_times(folder: Path, commit: str) -> dict[str, int]:
    """When each path was last changed, in seconds since 1970."""
    log = run(folder, "log", "--format=%x01%ct", "--name-only", "--no-renames", "-z", commit)
    times: dict[str, int] = {}
    for block in log.split(b"\x01")[1:]:
        stamp, _, rest = block.partition(b"\0")
        for path in rest.lstrip(b"\n").split(b"\0"):
            if path:
                times.setdefault(os.fsdecode(path), int(stamp))
    return times


def single_file_changes(folder: Path, commit: str) -> Iterator[Change]:
    """Commits, newest first, that change one file and nothing else; merges are none."""
    form = "--format=%x01%H%x02%ct%x02%B%x02"
    log = run(folder, "log", "--no-merges", "--raw", "--no-abbrev", "--no-renames", "-z", form, commit)
    for block in log.split(b"\x01")[1:]:
        parts = block.split(b"\x02")
        if len(parts) != 4:
            continue
        fields = parts[3].strip(b"\0\n").split(b"\0")
        if len(fields) != 2 or not fields[0].endswith(b" M"):
            continue
        old_mode, new_mode, before, after, _ = fields[0].decode().lstrip(":").split()
        if old_mode[:3] == new_mode[:3] == "100":
            message = parts[2].decode(errors="replace").strip()
            path = os.fsdecode(fields[1])
            yield Change(parts[0].decode(), int(parts[1]), message, path, before, after)


class Blobs:
    """Reads blobs one after the other through one `git cat-file --batch`. A context manager."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Blobs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def read(self, blob: str, limit: int) -> bytes | None:
        """The blob's bytes; None if it is missing, broken or larger than `limit`."""
        source, sink = self._pipes()
        try:
            sink.write(f"{blob}\n".encode())
            sink.flush()
            words = source.readline().split()
            if len(words) != 3:
                if not words:
                    self._stop()
                return None
            size = int(words[2])
            if size > limit:
                self._stop()  # cheaper than reading it to its end
                return None
            data = source.read(size + 1)
        except OSError:
            self._stop()
            return None
        if len(data) != size + 1:
            self._stop()
            return None
        return data[:-1] if words[1] == b"blob" else None

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            self._process = subprocess.Popen(
                ["git", *_SAFE, "-C", str(self._folder), "cat-file", "--batch"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        assert self._process.stdout is not None and self._process.stdin is not None, "both are pipes"
        return self._process.stdout, self._process.stdin

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # what was not written no longer matters
                    stream.close()
        process.wait()
