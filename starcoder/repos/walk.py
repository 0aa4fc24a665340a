"""Walk trees of source files: a revision of a git repository, a work tree or any folder, and what is in them.

Nothing of a tree runs, no link is followed, and what cannot be read is counted and stops nothing. The content
of a file is read when it is asked for.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from starcoder.repos import git
from starcoder.repos.languages import language_named
from starcoder.repos.licenses import MAX_LICENSE_BYTES, license_of_path, licenses_of_tree
from starcoder.repos.skip import Attributes, IgnoreRules, is_made


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeFile:
    """A file of a tree."""

    path: str  # from the tree's root, with "/"
    size: int  # bytes
    blob: str = ""  # git's id of the content; "" if it is read from the disk
    language: str | None = None  # by .gitattributes; None if they name none
    license: str = ""  # of the file by its path: its own notice is in its content
    attributes: dict[str, str] = field(
        default_factory=dict
    )  # linguist's words in .gitattributes, and `binary`


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceTree:
    """The files of one revision or folder, in a fixed order, and how many paths were no files, by reason."""

    name: str
    folder: Path
    revision: str = ""  # the commit; "" where files are read from the disk
    files: tuple[TreeFile, ...] = ()
    licenses: dict[str, str] = field(default_factory=dict)  # by path, "" being the root
    omitted: tuple[tuple[str, str], ...] = ()  # path and reason

    @property
    def reasons(self) -> dict[str, int]:
        """How many paths were omitted for each reason."""
        return dict(Counter(reason for _, reason in self.omitted))


class TreeReader:
    """Reads the files of one tree."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._repository: git.GitRepository | None = None

    def read(self, path: str, blob: str, limit: int) -> bytes | None:
        """The content of a file; None if it is missing, no regular file, or larger than `limit` bytes."""
        if blob:
            if self._repository is None:
                try:
                    self._repository = git.GitRepository(self._folder)
                except git.GitError:
                    return None
            return self._repository.read(blob, limit)
        return read_file(self._folder / path, limit)


def walk(folder: Path, *, revision: str = "", name: str = "", worktree: bool = False) -> Iterator[SourceTree]:
    """The tree of a folder, then those of its submodules or of the repositories below it.

    A repository is read at `revision`, HEAD if not given; with `worktree` its files are read from the disk,
    those that are not committed included, those that .gitignore names left out.
    """
    name = name or folder.resolve().name
    if not git.is_repository(folder):
        yield from _walk_folder(folder, name)
        return
    try:
        repository = git.GitRepository(folder)
        commit = repository.resolve(revision or "HEAD")
    except git.GitError as error:
        yield SourceTree(name=name, folder=folder, omitted=(("", _reason(error)),))
        yield from _walk_folder(folder, name)
        return
    if commit is None:
        yield SourceTree(name=name, folder=folder, omitted=(("", "repository without a readable commit"),))
        yield from _walk_folder(folder, name)
    elif worktree and repository.has_worktree:
        yield from _walk_folder(folder, name, tracked=frozenset(repository.tracked_paths()))
    else:
        yield from _walk_commit(repository, commit, name)


def source_files(folder: Path, *, max_bytes: int | None = None) -> list[Path]:
    """The files of a folder on the disk that a person would call its sources, sorted.

    Left out are links, hidden files, folders that tools make, what .gitignore names, and larger files.
    """
    return sorted(
        tree.folder / file.path
        for tree in _walk_folder(folder, folder.name, sources_only=True)
        for file in tree.files
        if (max_bytes is None or file.size <= max_bytes) and not is_made(file.path)
    )


def read_file(path: Path, limit: int) -> bytes | None:
    """The content of a regular file that is no link; None if there is none, or it is larger than `limit`."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    with os.fdopen(handle, "rb") as file:
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            data = file.read(limit + 1)
        except OSError:
            return None
    return data if len(data) <= limit else None


def _reason(error: git.GitError) -> str:
    return (
        "repository that borrows objects of another"
        if "borrows" in error.message
        else ("repository that cannot be read")
    )


def _walk_commit(repository: git.GitRepository, commit: str, name: str) -> Iterator[SourceTree]:
    files: list[TreeFile] = []
    omitted: list[tuple[str, str]] = []
    submodules: list[git.Entry] = []
    try:
        for entry in repository.entries(commit):
            if entry.mode == git.SUBMODULE:
                submodules.append(entry)
            elif entry.mode == git.LINK:
                omitted.append((entry.path, "symbolic link"))
            elif entry.size is None:
                what = "unreadable folder" if entry.mode == git.FOLDER else "unreadable"
                omitted.append((entry.path, what))
            elif not git.is_safe_path(entry.path):
                omitted.append((entry.path, "path that leads elsewhere"))
            else:
                files.append(TreeFile(path=entry.path, size=entry.size, blob=entry.blob))
    except git.GitError:
        why = "repository with too many files" if files else "repository without a readable tree"
        yield SourceTree(name=name, folder=repository.folder, omitted=(("", why),))
        return
    yield _described(
        SourceTree(
            name=name,
            folder=repository.folder,
            revision=commit,
            files=tuple(files),
            omitted=tuple(omitted),
        )
    )
    for entry in submodules:
        inside, below = repository.folder / entry.path, f"{name}/{entry.path}"
        if (
            git.is_safe_path(entry.path)
            and not _has_link(repository.folder, entry.path)
            and (inside / ".git").exists()
        ):
            yield from walk(inside, revision=entry.blob, name=below)
        else:
            reason = (("", "submodule that is not checked out"),)
            yield SourceTree(name=below, folder=inside, omitted=reason)


def _walk_folder(
    folder: Path, name: str, *, tracked: frozenset[str] | None = None, sources_only: bool = False
) -> Iterator[SourceTree]:
    """A folder on the disk, then the repositories below it. Paths in `tracked` are never ignored."""
    files: list[TreeFile] = []
    omitted: list[tuple[str, str]] = []
    nested: list[Path] = []
    rules = IgnoreRules()
    if text := _text(read_file(folder / ".git" / "info" / "exclude", MAX_LICENSE_BYTES)):
        rules.add(text, "")
    is_worktree, tracked = tracked is not None, tracked or frozenset()
    kept_folders = {path[:at] for path in tracked for at, c in enumerate(path) if c == "/"}
    for root, folders, names in os.walk(
        folder,
        onerror=lambda error: omitted.append((os.path.relpath(error.filename, folder), "unreadable folder")),
    ):
        here = Path(root).relative_to(folder).as_posix()
        prefix = "" if here == "." else f"{here}/"
        if ".gitignore" in names and (text := _text(read_file(Path(root, ".gitignore"), MAX_LICENSE_BYTES))):
            rules.add(text, prefix.rstrip("/"))
        below = []
        for one in sorted(folders):
            path, place = f"{prefix}{one}", Path(root, one)
            if place.is_symlink():
                omitted.append((path, "symbolic link"))
            elif one == ".git" or _is_ours(place) or (sources_only and is_made(f"{path}/x")):
                continue
            elif git.is_repository(place):
                nested.append(place)
            elif path not in kept_folders and rules.is_ignored(path, is_directory=True):
                omitted.append((path, "ignored by .gitignore"))
            else:
                below.append(one)
        folders[:] = below
        for one in sorted(names):
            path = f"{prefix}{one}"
            if path not in tracked and rules.is_ignored(path):
                omitted.append((path, "ignored by .gitignore"))
            elif isinstance(found := _file_on_disk(folder, path), str):
                omitted.append((path, found))
            else:
                files.append(found)
    tree = SourceTree(name=name, folder=folder, files=tuple(files), omitted=tuple(omitted))
    yield tree if sources_only else _described(tree)
    for place in nested:
        deeper = f"{name}/{place.relative_to(folder).as_posix()}"
        yield from (
            _walk_folder(place, deeper, sources_only=True)
            if sources_only
            else walk(place, name=deeper, worktree=is_worktree)
        )


def _described(tree: SourceTree) -> SourceTree:
    """The tree with what its .gitattributes and license files say of the files."""
    reader = TreeReader(tree.folder)
    small = {file.path: file for file in tree.files if file.size <= MAX_LICENSE_BYTES}

    def text_of(path: str) -> str:
        return _text(reader.read(path, small[path].blob, MAX_LICENSE_BYTES)) if path in small else ""

    attributes = Attributes()
    for path in sorted(small, key=lambda path: path.count("/")):
        folder, _, name = path.rpartition("/")
        if name == ".gitattributes":
            attributes.add(text_of(path), folder)
    licenses = licenses_of_tree((file.path for file in tree.files), text_of)
    files = tuple(_with_facts(file, attributes.of(file.path), licenses) for file in tree.files)
    return replace(tree, files=files, licenses=licenses)


def _with_facts(file: TreeFile, attributes: dict[str, str], licenses: dict[str, str]) -> TreeFile:
    return replace(
        file,
        language=language_named(attributes.get("linguist-language", "")),
        license=license_of_path(file.path, licenses),
        attributes=attributes,
    )


def _file_on_disk(folder: Path, path: str) -> TreeFile | str:
    """The file, or why it is none."""
    try:
        about = (folder / path).lstat()
    except OSError:
        return "unreadable"
    if stat.S_ISLNK(about.st_mode):
        return "symbolic link"
    if not stat.S_ISREG(about.st_mode):
        return "not a regular file"
    return TreeFile(path=path, size=about.st_size)


def _is_ours(folder: Path) -> bool:
    """Whether the folder is a data set or an attribution index that this package wrote."""
    return (folder / "dataset.json").is_file() or (folder / "documents.npy").is_file()


def _has_link(folder: Path, path: str) -> bool:
    """Whether a part of a path below the folder is a symbolic link."""
    above = PurePosixPath(path)
    return any((folder / part).is_symlink() for part in (above, *above.parents))


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8-sig", "replace")
