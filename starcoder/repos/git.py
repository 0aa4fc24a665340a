"""Read git repositories of any origin through libgit2: revisions, trees, blobs and history.

Nothing of a repository runs and nothing connects, because no code here could: libgit2 gets two object stores
and no repository, so neither a configuration (the repository's, the user's) nor an environment variable is
looked at, there are no hooks, filters, text conversions or signatures to check, and an object that is not
there is missing rather than fetched. Who owns the files is therefore of no importance either.

Limits: objects that a repository borrows from another one (`objects/info/alternates`, links) are not read, so
that its name stands for its own content; neither are the SHA-256 and reftable formats. `clone` is the one
exception to all of this: it runs `git` on a URL that the user typed, in an environment of our own.
"""

import functools
import heapq
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import url2pathname

from starcoder.errors import StarcoderError
from starcoder.files import replace_atomically

if TYPE_CHECKING:
    import pygit2

FOLDER, LINK, SUBMODULE = "040000", "120000", "160000"

_URL = re.compile(r"(https?|ssh|git)://|[\w.-]+@[\w.-]+:")
_FILE_URL = re.compile(r"file://(?:localhost)?(?=/)")
_HEX = re.compile(r"[0-9a-f]{4,40}")
_MAX_FILES = 1_000_000  # of a revision: ten nested folders of ten equal ones would be 10,000,000,000 files
_MAX_DEPTH = 200  # folders
_MAX_SMALL_FILE = 50_000_000  # bytes of a file of git's own: packed-refs, index
# What `clone` hands down of the user's environment: how to find git and ssh, keys, proxies, certificates.
_KEPT = (
    *("PATH", "HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "TMPDIR", "SYSTEMROOT"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR"),
)
_OURS = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_ALLOW_PROTOCOL": "https:http:ssh:git",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "true",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
    "LC_ALL": "C",
}


class GitError(StarcoderError):
    """A repository, or the part of it that was asked for, cannot be read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a revision."""

    path: str
    mode: str  # 100644, FOLDER (only one that cannot be read), LINK or SUBMODULE
    blob: str
    size: int | None  # None: the object is missing, or it is no file


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit without its content."""

    id: str
    time: int  # seconds since 1970, of the committer
    author: str  # name and e-mail address
    message: str
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileChange:
    """What a commit did to one path; a mode or blob is empty where there is no file."""

    path: str
    modes: tuple[str, str]
    blobs: tuple[str, str]


def is_url(text: str) -> bool:
    """Whether this names a repository on another machine."""
    return _URL.match(text) is not None


def local_path(text: str) -> str:
    """The path that a `file://` URL names; other texts as they are."""
    rest = _FILE_URL.sub("", text)
    return url2pathname(rest) if rest != text else text


def public_url(url: str) -> str:
    """The URL without user, password and token."""
    return re.sub(r"^(\w+://)[^/]*@", r"\1", url)


def name_of_url(url: str) -> str:
    """`owner/name` of a repository's URL."""
    path = re.sub(r"^\w+://[^/]*/|^[^/]*:", "", url).rstrip("/").removesuffix(".git")
    return "/".join([part for part in path.split("/") if part][-2:])


def is_repository(path: Path) -> bool:
    """Whether the folder itself, not one above it, is a repository, bare or with a work tree."""
    return (path / ".git").exists() or all((path / n).exists() for n in ("HEAD", "objects", "refs"))


def find_root(folder: Path) -> Path | None:
    """The repository that a folder is in, or is; None if it is in none."""
    folder = folder.resolve()
    return next((one for one in (folder, *folder.parents) if is_repository(one)), None)


def clone(url: str, target: Path) -> None:
    """Make a bare clone of everything; nothing of the user's git configuration is used.

    A password comes from the URL or ~/.netrc, a key from ssh's agent or its default files.

    Raises:
        GitError: it cannot be cloned, or git is not installed. The message shows no credentials.
    """
    if target.is_dir():
        return
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | _OURS
    with replace_atomically(target) as part:
        command = [
            *("git", "-c", "core.hooksPath=/dev/null", "clone", "--bare", "--quiet", "--template="),
            *("--no-recurse-submodules", "--", url, str(part)),
        ]
        try:
            # A session of its own has no terminal to ask on.
            done = subprocess.run(
                command,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
                check=False,
            )
        except OSError as error:
            raise GitError(
                f"git cannot be run: {error.strerror}", "install git, or clone it yourself"
            ) from None
        if done.returncode:
            raise GitError(
                f"{public_url(url)!r} cannot be cloned",
                "git's configuration is not used: put a token into the URL, or clone it and name the folder",
            )
        (part / "config").write_text(
            f'[remote "origin"]\n\turl = {public_url(url)}\n'
        )  # no token on the disk


def added_lines(old: bytes, new: bytes) -> frozenset[int]:
    """Numbers, from 1, of the lines of `new` that are not in `old`; none if one of them is binary."""
    if b"\0" in old or b"\0" in new:
        return frozenset()
    patch = _library().Patch.create_from(old, new, context_lines=0)
    spans = ((hunk.new_start, hunk.new_lines) for hunk in patch.hunks)
    return frozenset(number for start, count in spans for number in range(start, start + count))


class GitRepository:
    """One repository, open for reading. Missing and broken objects are None or GitError, as said.

    Not to be shared between threads.
    """

    def __init__(self, folder: Path):
        """Raises: GitError: the folder is no repository that can be read, and why."""
        self.folder = folder
        self._own, self._common = _git_folders(folder)
        config = _small_file(self._common / "config")
        if re.search(rb"^\s*objectformat\s*=\s*sha256", config, re.M | re.I):
            raise GitError(f"{str(folder)!r} is a repository in the SHA-256 format")
        if re.search(rb"^\s*refstorage\s*=\s*reftable", config, re.M | re.I):
            raise GitError(f"{str(folder)!r} is a repository in the reftable format")
        self._url = _origin(config)
        store = self._common / "objects"
        if not _is_own_store(store):
            raise GitError(
                f"{str(folder)!r} borrows objects of another repository",
                "`git repack -a -d`, then remove .git/objects/info/alternates",
            )
        pygit2 = _library()
        self._odb = pygit2.Odb()
        self._odb.add_backend(pygit2.OdbBackendPack(str(store)), 1)
        self._odb.add_backend(pygit2.OdbBackendLoose(str(store), -1, False, 0o755, 0o644), 2)
        self._repo = pygit2.Repository()  # in memory: it has no folder, no configuration, no references
        self._repo.set_odb(self._odb)

    @property
    def origin(self) -> str:
        """The URL the repository was cloned from; "" if there is none."""
        return self._url

    @property
    def has_worktree(self) -> bool:
        """Whether files are checked out next to the repository."""
        return self._own != self.folder

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or (the start of) an id names, with ~ and ^ behind it; or None."""
        match = re.fullmatch(r"([^~^]*)((?:~\d*|\^\d*|\^\{(?:commit)?\})*)", revision)
        if match is None:
            return None
        id = self._reference(match[1])
        if id is None and not _HEX.fullmatch(match[1]):
            return None
        try:  # never `revparse`: it would look for references in the current folder
            commit = self._repo[id or match[1]].peel(_library().Commit)
            for step in re.findall(r"~\d*|\^(?!\{)\d*", match[2]):
                number = int(step[1:] or 1)
                for _ in range(number if step[0] == "~" else min(number, 1)):
                    commit = self._repo[commit.parent_ids[0 if step[0] == "~" else number - 1]]
        except (KeyError, IndexError, ValueError, _library().GitError):
            return None
        return str(commit.id)

    def entries(self, commit: str) -> Iterator[Entry]:
        """Every path of a commit in git's order; folders only if they cannot be read.

        Raises:
            GitError: the root cannot be read, or there are more than a million files.
        """
        try:
            tree = self._repo[commit].peel(_library().Tree)
        except (KeyError, ValueError, _library().GitError):
            raise GitError(f"commit {commit} of {str(self.folder)!r} has no readable tree") from None
        num_files = 0
        stack = [("", iter(tree))]
        while stack:
            prefix, rest = stack[-1]
            one = next(rest, None)
            if one is None:
                stack.pop()
                continue
            num_files += 1
            if num_files > _MAX_FILES:
                raise GitError(f"commit {commit} of {str(self.folder)!r} has more than {_MAX_FILES:,} files")
            path, mode = prefix + os.fsdecode(one.raw_name), f"{int(one.filemode):06o}"
            if mode != FOLDER:
                yield Entry(path, mode, str(one.id), self._size(one.id) if mode != SUBMODULE else None)
                continue
            below = self._tree(one.id) if len(stack) < _MAX_DEPTH else None
            if below is None:
                yield Entry(path, FOLDER, str(one.id), None)
            else:
                stack.append((f"{path}/", iter(below)))

    def read(self, blob: str, limit: int | None = None) -> bytes | None:
        """The blob's bytes; None if it is missing, broken, no blob, or larger than `limit`."""
        try:
            kind, size = self._odb.read_header(blob)
            if kind != _library().enums.ObjectType.BLOB or (limit is not None and size > limit):
                return None
            data: bytes = self._odb.read(blob)[1]
        except (KeyError, ValueError, OSError, _library().GitError):
            return None
        return data

    def write_files(self, commit: str, target: Path) -> None:
        """Write the files of a commit under a folder as they are stored, and the links that stay inside.

        Raises:
            GitError: the tree cannot be read, or an object of it is missing.
        """
        links = []
        for entry in self.entries(commit):
            if entry.mode not in ("100644", "100755", "100664", LINK) or not is_safe_path(entry.path):
                continue
            data = self.read(entry.blob)
            if data is None:
                raise GitError(f"{entry.path!r} of commit {commit} in {str(self.folder)!r} cannot be read")
            path = target / entry.path
            if entry.mode == LINK:
                links.append((path, os.fsdecode(data)))
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o755 if entry.mode == "100755" else 0o644)
        for path, to in links:  # last, so that no file is written through one
            above = re.match(r"(\.\./)*", to)[0].count("/")  # type: ignore[index]
            inside = re.sub(r"^(\.\./)*", "", to)
            is_inside = above < len(path.relative_to(target).parts) and is_safe_path(inside)
            if is_inside and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(to)

    def commits(self, commit: str) -> Iterator[Commit]:
        """A commit and those before it, the newest first; parents that are not there are left out."""
        seen = {commit}
        heap: list[tuple[int, int, Any]] = []

        def push(id: str) -> None:
            found = self._commit(id)
            if found is not None:
                heapq.heappush(heap, (-found.commit_time, len(seen), found))

        push(commit)
        while heap:
            found = heapq.heappop(heap)[2]
            parents = tuple(str(parent) for parent in found.parent_ids)
            author = found.author
            name = _text(author.raw_name) if author is not None else ""
            email = _text(author.raw_email) if author is not None else ""
            yield Commit(
                str(found.id), found.commit_time, f"{name} <{email}>", _text(found.raw_message), parents
            )
            for parent in parents:
                if parent not in seen:
                    seen.add(parent)
                    push(parent)

    def changes(self, new: str, old: str | None) -> list[FileChange] | None:
        """What differs between two commits, `old` None being empty; None if one of them cannot be read."""
        try:
            after = self._repo[new].peel(_library().Tree)
            if old is None:
                diff = after.diff_to_tree(swap=True)
            else:
                diff = self._repo[old].peel(_library().Tree).diff_to_tree(after)
            return [
                FileChange(
                    os.fsdecode((delta.new_file if delta.new_file.mode else delta.old_file).raw_path),
                    (_mode(delta.old_file), _mode(delta.new_file)),
                    (_blob(delta.old_file), _blob(delta.new_file)),
                )
                for delta in diff.deltas
            ]
        except (KeyError, ValueError, _library().GitError):
            return None

    def tracked_paths(self) -> list[str]:
        """Paths of the work tree that the index names; [] if there is no index, or none that can be read."""
        path = self._own / "index"
        if not path.is_file() or path.stat().st_size > 10 * _MAX_SMALL_FILE:
            return []
        try:
            return [entry.path for entry in _library().Index(str(path))]
        except (ValueError, OSError, _library().GitError):
            return []

    def _commit(self, id: str) -> Any:
        try:
            found = self._repo[id]
        except (KeyError, ValueError, _library().GitError):
            return None
        return found if isinstance(found, _library().Commit) else None

    def _tree(self, id: object) -> Any:
        try:
            found = self._repo[id]
        except (KeyError, ValueError, _library().GitError):
            return None
        return found if isinstance(found, _library().Tree) else None

    def _size(self, id: object) -> int | None:
        try:
            size: int = self._odb.read_header(id)[1]
        except (KeyError, ValueError, OSError, _library().GitError):
            return None
        return size

    def _reference(self, name: str) -> str | None:
        """The id that a name stands for. Source: gitrevisions(7), the order of its rules."""
        for form in (
            "{}",
            "refs/{}",
            "refs/tags/{}",
            "refs/heads/{}",
            "refs/remotes/{}",
            "refs/remotes/{}/HEAD",
        ):
            found = self._target(form.format(name or "HEAD"))
            if found is not None:
                return found
        return None

    def _target(self, name: str) -> str | None:
        """The id in a loose or packed reference, through at most five symbolic ones."""
        for _ in range(5):
            if not re.fullmatch(r"[A-Z_]+|refs/[^\0-\x20~^:?*\[\\]+", name) or ".." in name or "//" in name:
                return None
            text = _small_file(self._own / name) or _small_file(self._common / name)
            found = text.decode("utf-8", "replace").strip() if text else self._packed.get(name, "")
            if not found.startswith("ref:"):
                return found if re.fullmatch("[0-9a-f]{40}", found) else None
            name = found[4:].strip()
        return None

    @functools.cached_property
    def _packed(self) -> dict[str, str]:
        lines = _small_file(self._common / "packed-refs").decode("utf-8", "replace").split("\n")
        pairs = (line.split(" ", 1) for line in lines if re.match("[0-9a-f]{40} ", line))
        return {name: id for id, name in pairs}


def is_safe_path(path: str) -> bool:
    """Whether a path of a tree stays inside: git's objects can hold any name."""
    return not any(part in ("", ".", "..") or part.lower() == ".git" for part in path.split("/"))


def _git_folders(folder: Path) -> tuple[Path, Path]:
    """Where HEAD and index are, and where the rest is; both may be elsewhere for a work tree or submodule.

    A `.git` that names another place is believed only if that place names this folder back: otherwise
    unpacking an archive would be enough to pass another repository off as this one.

    Raises:
        GitError: it is no repository, or its parts do not belong together.
    """
    own = folder / ".git"
    if own.is_symlink():
        raise GitError(f"{str(own)!r} is a symbolic link")
    if own.is_file():
        match = re.fullmatch(rb"gitdir: ([^\n]+)\n?", _small_file(own))
        if match is None:
            raise GitError(f"{str(own)!r} names no repository")
        own = (folder / os.fsdecode(match[1])).resolve()
        back = _small_file(own / "gitdir").strip() or _worktree(_small_file(own / "config"))
        expected = folder.resolve()
        if not back or (own / os.fsdecode(back)).resolve() not in (expected, expected / ".git"):
            raise GitError(f"{str(own)!r}, which {str(folder)!r} names, is the repository of another folder")
    elif not own.is_dir():
        own = folder
    common = own
    if (own / "commondir").exists():
        common = (own / os.fsdecode(_small_file(own / "commondir").strip())).resolve()
        if own.resolve().parent != common / "worktrees":
            raise GitError(
                f"{str(folder)!r} uses the objects of {str(common)!r}, which is another repository"
            )
    if not (own / "HEAD").is_file() or not (common / "objects").is_dir():
        raise GitError(f"{str(folder)!r} is no git repository")
    return own, common


def _is_own_store(store: Path) -> bool:
    """Whether all objects lie in the store itself: no other one is named, nothing is a link or a device."""
    if store.is_symlink() or (store / "info" / "alternates").exists():
        return False
    for root, folders, files in os.walk(store):
        if any(Path(root, name).is_symlink() for name in folders):
            return False
        if not all(Path(root, name).is_file() and not Path(root, name).is_symlink() for name in files):
            return False
    return True


def _small_file(path: Path) -> bytes:
    """What is in a file; b"" if it is no regular file, too large, or cannot be read."""
    try:
        if path.is_file() and path.stat().st_size <= _MAX_SMALL_FILE:
            return path.read_bytes()
    except (OSError, ValueError):
        pass
    return b""


def _origin(config: bytes) -> str:
    return _value(config, rb'remote\s+"origin"', rb"url")


def _worktree(config: bytes) -> bytes:
    return os.fsencode(_value(config, rb"core", rb"worktree"))


def _value(config: bytes, section: bytes, key: bytes) -> str:
    """The last value of a key in git's configuration format, without includes."""
    value, is_inside = "", False
    for line in config.split(b"\n"):
        line = line.strip()
        if line.startswith(b"["):
            is_inside = re.match(rb"\[\s*" + section + rb"\s*\]", line, re.I) is not None
        elif is_inside and (match := re.match(key + rb"\s*=\s*(.*)", line, re.I)):
            value = os.fsdecode(match[1]).strip().strip('"')
    return value


def _mode(file: "pygit2.DiffFile") -> str:
    return f"{int(file.mode):06o}" if file.mode else ""


def _blob(file: "pygit2.DiffFile") -> str:
    return str(file.id) if file.mode else ""


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", "replace")


@functools.cache
def _library() -> Any:
    """libgit2, which is kept from every configuration and attributes file of the user and the machine."""
    import pygit2

    for level in ("SYSTEM", "GLOBAL", "XDG", "PROGRAMDATA"):
        pygit2.settings.search_path[pygit2.enums.ConfigLevel[level]] = ""
    return pygit2
