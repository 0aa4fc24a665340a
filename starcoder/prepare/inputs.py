"""Lists what there is to take, without reading it: files of repositories and folders, commits and issues.

What cannot be listed is counted, never an error; a path that is not there is the user's mistake.
"""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from starcoder.errors import ConfigError
from starcoder.prepare import converting, git
from starcoder.prepare.ignore import Rule, attribute_rules, ignore_rules, said_of
from starcoder.prepare.languages import language_of
from starcoder.prepare.licences import MAX_LICENCE_BYTES, is_licence_file, licence_of_text
from starcoder.prepare.secrets import mask
from starcoder.prepare.settings import PrepareSettings
from starcoder.prepare.texts import decode, is_vendored

_MAX_COMMIT_FILE_BYTES = 50_000
_MAX_ISSUES_BYTES = 1_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A repository, or a folder that is none; `revision` is empty where files are read as they lie."""

    name: str
    folder: str
    revision: str = ""
    licences: dict[str, str] = field(default_factory=dict)  # by folder, "" the root


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One document to be: a file, a commit or an issue."""

    path: str
    kind: str = "file"
    size: int = 0
    blob: str = ""  # of git; empty: read the file
    before: str = ""  # the blob before a commit
    text: str = field(default="", repr=False)  # the commit's message or the issue, without secrets
    masked: dict[str, int] = field(default_factory=dict)  # what was masked in `text`
    time: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """All items of one repository, and how many were left out for each reason."""

    repository: Repository
    items: tuple[Item, ...]
    dropped: dict[str, int]


def list_inputs(settings: PrepareSettings, clones: Path) -> list[Listing]:
    """Everything there is, in a fixed order; URLs are cloned under `clones`.

    Raises:
        ConfigError: a path is not there, or a revision names no commit.
    """
    found: list[Listing] = []
    for text in settings.inputs:
        folder, revision, name = _locate(text, clones)
        if folder is None:
            found.append(_empty(name, "repository that cannot be cloned"))
            continue
        found += _list_repository(folder, revision, name, settings)
    for export in settings.issues:
        found += _list_issues(Path(export), settings)
    return _named_apart(found)


def _locate(text: str, clones: Path) -> tuple[Path | None, str, str]:
    """Folder, revision and name of an input."""
    base, at, revision = text.rpartition("@")
    is_whole = not at or "/" in revision or ":" in revision or Path(text).expanduser().exists()
    if is_whole or not (git.is_url(base) or Path(base).expanduser().exists()):
        base, revision = text, ""
    if git.is_url(base):
        name = git.name_of_url(base)
        target = clones / hashlib.sha256(base.encode()).hexdigest()[:16]
        try:
            git.clone(base, target)
        except git.GitError:
            return None, "", name
        return target, revision, name
    folder = Path(base).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {base!r}", "name folders, repositories or their URLs")
    if not git.is_repository(folder):
        return folder, "", folder.name
    url = git.origin(folder)
    is_elsewhere = url != "" and git.is_url(url) and not url.startswith("file:")
    return folder, revision, git.name_of_url(url) if is_elsewhere else folder.name.removesuffix(".git")


def _list_repository(folder: Path, revision: str, name: str, settings: PrepareSettings) -> Iterator[Listing]:
    if not git.is_repository(folder):
        yield from _list_folder(folder, name, settings)
        return
    try:
        commit = git.resolve(folder, revision or "HEAD")
    except git.GitError:
        if revision:
            raise ConfigError(
                f"{name!r} has no revision {revision!r}", "name a branch, tag or commit"
            ) from None
        dropped = {"repository without a readable commit": 1}
        yield Listing(repository=Repository(name=name, folder=str(folder)), items=(), dropped=dropped)
        yield from _list_folder(folder, name, settings)
        return
    if settings.worktree and (folder / ".git").exists():
        paths = git.worktree_paths(folder)
        yield _listing(folder, name, [_file_item(folder, path) for path in paths], Counter(), settings)
        return
    try:
        yield from _list_commit(folder, commit, name, settings)
    except git.GitError:
        yield _empty(name, "repository without a readable tree")


def _list_commit(folder: Path, commit: str, name: str, settings: PrepareSettings) -> Iterator[Listing]:
    """The files of a commit, its history if wanted, and its submodules that are there."""
    dropped: Counter[str] = Counter()
    times = git.commit_times(folder, commit) if settings.split_by == "time" else {}
    items: list[Item | str] = []
    submodules: list[tuple[str, str]] = []
    for entry in git.tree(folder, commit):
        if entry.mode == "160000":
            submodules.append((entry.path, entry.blob))
        elif entry.mode == "120000":
            items.append("symbolic link")
        else:
            time = times.get(entry.path)
            items.append(Item(path=entry.path, size=entry.size or 0, blob=entry.blob, time=time))
    listing = _listing(folder, name, items, dropped, settings, commit)
    changes = list(_commits(folder, commit, settings)) if settings.commits else []
    yield replace(listing, items=(*listing.items, *changes))
    for path, pinned in submodules:
        inside = folder / path
        if (inside / ".git").exists():
            yield from _list_repository(inside, pinned, f"{name}/{path}", settings)
        else:
            yield _empty(f"{name}/{path}", "submodule that is not checked out")


def _commits(folder: Path, commit: str, settings: PrepareSettings) -> Iterator[Item]:
    for change in git.single_file_changes(folder, commit):
        message = mask(change.message, settings.secrets)
        yield Item(
            path=change.path,
            kind="commit",
            size=2 * _MAX_COMMIT_FILE_BYTES // 10,
            blob=change.after,
            before=change.before,
            text=message.text,
            masked=dict(message.found),
            time=change.time,
        )


def _list_folder(folder: Path, name: str, settings: PrepareSettings) -> Iterator[Listing]:
    """A folder that is no repository; the repositories below it come after it, as their own."""
    items: list[Item | str] = []
    nested: list[Path] = []
    rules: list[Rule] = []

    def failed(_: OSError) -> None:
        items.append("unreadable folder")

    for root, folders, files in os.walk(folder, onerror=failed):
        here = Path(root).relative_to(folder).as_posix()
        prefix = "" if here == "." else f"{here}/"
        if ".gitignore" in files:
            rules += ignore_rules(_read_text(Path(root) / ".gitignore"), prefix)
        kept = []
        for one in sorted(folders):
            path = Path(root) / one
            if path.is_symlink():
                items.append("symbolic link")
            elif one == ".git" or ((path / "dataset.json").is_file() and (path / "data").is_dir()):
                continue
            elif git.is_repository(path):
                nested.append(path)
            elif said_of(f"{prefix}{one}", rules, is_directory=True).get("ignore"):
                items.append("ignored by .gitignore")
            else:
                kept.append(one)
        folders[:] = kept
        for one in sorted(files):
            is_ignored = said_of(f"{prefix}{one}", rules).get("ignore")
            items.append("ignored by .gitignore" if is_ignored else _file_item(folder, f"{prefix}{one}"))
    yield _listing(folder, name, items, Counter(), settings)
    for path in nested:
        below = f"{name}/{path.relative_to(folder).as_posix()}"
        yield from _list_repository(path, "", below, settings)


def _file_item(folder: Path, path: str) -> Item | str:
    """The file, or why it is none."""
    try:
        about = (folder / path).lstat()
    except OSError:
        return "unreadable"
    if stat.S_ISLNK(about.st_mode):
        return "symbolic link"
    if not stat.S_ISREG(about.st_mode):
        return "not a regular file"
    return Item(path=path, size=about.st_size)


def _listing(
    folder: Path,
    name: str,
    found: list[Item | str],
    dropped: Counter[str],
    settings: PrepareSettings,
    commit: str = "",
) -> Listing:
    """Leaves out what its path or size tells enough of."""
    dropped.update(item for item in found if isinstance(item, str))
    files = [item for item in found if isinstance(item, Item)]
    with git.Blobs(folder) as blobs:
        rules, licences = _about(folder, files, blobs)
    items = []
    for item in files:
        reason = _reason(item, rules, settings)
        if reason:
            dropped[reason] += 1
        else:
            items.append(item)
    repository = Repository(name=name, folder=str(folder), revision=commit, licences=licences)
    return Listing(repository=repository, items=tuple(items), dropped=dict(dropped))


def _reason(item: Item, rules: list[Rule], settings: PrepareSettings) -> str | None:
    says = said_of(item.path, rules) if rules else {}
    name = PurePosixPath(item.path).name
    if not item.path.isprintable():
        return "path with control characters or of no encoding"
    if item.size == 0:
        return "empty"
    if item.size > settings.max_file_bytes:
        return "huge"
    if says.get("binary"):
        return "binary"
    if says.get("linguist-generated"):
        return "generated"
    if not settings.vendored and says.get("linguist-vendored", is_vendored(item.path)):
        return "vendored"
    if language_of(item.path) is None and "." in name[1:]:
        return "no language of the family"
    return None


def _about(folder: Path, files: list[Item], blobs: git.Blobs) -> tuple[list[Rule], dict[str, str]]:
    """What the repository says of its files: .gitattributes, and LICENSE texts by folder."""
    rules: list[Rule] = []
    licences: dict[str, str] = {}
    for item in files:
        name, parent = PurePosixPath(item.path).name, item.path.rpartition("/")[0]
        if item.size > MAX_LICENCE_BYTES:
            continue
        if name == ".gitattributes":
            rules += attribute_rules(_text_of(folder, item, blobs), f"{parent}/" if parent else "")
        elif is_licence_file(item.path) and (licence := licence_of_text(_text_of(folder, item, blobs))):
            licences.setdefault(parent, licence)
    return rules, licences


def _text_of(folder: Path, item: Item, blobs: git.Blobs) -> str:
    data = blobs.read(item.blob, item.size) if item.blob else None
    if data is None:
        return "" if item.blob else _read_text(folder / item.path)
    text = decode(data)
    return "" if isinstance(text, str) else text.content


def _read_text(path: Path) -> str:
    try:
        text = decode(path.read_bytes()) if path.stat().st_size <= MAX_LICENCE_BYTES else ""
    except OSError:
        return ""
    return "" if isinstance(text, str) else text.content


def _list_issues(export: Path, settings: PrepareSettings) -> list[Listing]:
    """The issues of one export, by repository."""
    try:
        size = export.stat().st_size
        text = decode(export.read_bytes()) if size <= _MAX_ISSUES_BYTES else "huge"
    except OSError as error:
        raise ConfigError(f"{str(export)!r} cannot be read: {error.strerror}", "name a JSON export") from None
    if isinstance(text, str):
        return [_empty(export.stem, text)]
    by_name: dict[str, list[Item]] = {}
    dropped = 0
    for issue in converting.issues(text.content, export.stem):
        if issue is None:
            dropped += 1
            continue
        masked = mask(issue.text, settings.secrets)
        item = Item(
            path=f"issue {issue.number}",
            kind="issue",
            size=len(masked.text),
            text=masked.text,
            masked=dict(masked.found),
        )
        by_name.setdefault(issue.repository, []).append(item)
    listings = [
        Listing(repository=Repository(name=name, folder=""), items=tuple(items), dropped={})
        for name, items in by_name.items()
    ]
    unreadable = [replace(_empty(export.stem, "unreadable issue"), dropped={"unreadable issue": dropped})]
    return listings + (unreadable if dropped else [])


def _empty(name: str, reason: str) -> Listing:
    return Listing(repository=Repository(name=name, folder=""), items=(), dropped={reason: 1})


def _named_apart(listings: list[Listing]) -> list[Listing]:
    """A number behind names that came before, unless it is the same folder's."""
    folders: dict[str, str] = {}
    named = []
    for listing in listings:
        name, number = listing.repository.name, 1
        while folders.setdefault(name, listing.repository.folder) != listing.repository.folder:
            number += 1
            name = f"{listing.repository.name}-{number}"
        named.append(replace(listing, repository=replace(listing.repository, name=name)))
    return named
