"""Lists what there is to take, without reading it: files of repositories and folders, commits and issues.

What cannot be listed is counted, never an error; a path that is not there is the user's mistake.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from starcoder.errors import ConfigError
from starcoder.prepare import converting, git
from starcoder.prepare.ignore import Rule, ignore_rules, said_of
from starcoder.prepare.items import (
    MAX_COMMIT_FILE_BYTES,
    Item,
    Listing,
    Repository,
    empty,
    file_item,
    listing_of,
    read_text,
)
from starcoder.prepare.secrets import mask
from starcoder.prepare.settings import PrepareSettings
from starcoder.prepare.texts import decode

_MAX_ISSUES_BYTES = 1_000_000_000


def list_inputs(settings: PrepareSettings, clones: Path) -> list[Listing]:
    """Everything there is, in a fixed order; URLs are cloned under `clones`.

    Raises:
        ConfigError: a path is not there, or a revision names no commit.
    """
    found: list[Listing] = []
    for text in settings.inputs:
        folder, revision, name = _locate(text, clones)
        if folder is None:
            found.append(empty(name, "repository that cannot be cloned"))
            continue
        if revision and git.resolve(folder, revision) is None:
            raise ConfigError(f"{name!r} has no revision {revision!r}", "name a branch, tag or commit")
        found += _list_repository(folder, revision, name, settings)
    for export in settings.issues:
        found += _list_issues(export, settings)
    return _named_apart(found)


def _locate(text: str, clones: Path) -> tuple[Path | None, str, str]:
    """Folder, revision and name of an input."""
    base, revision = _at_revision(text)
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


def _at_revision(text: str) -> tuple[str, str]:
    """A place and the revision behind its last @, "" if what follows the @ belongs to the place."""
    base, at, revision = text.rpartition("@")
    if not at or Path(text).expanduser().exists():
        return text, ""
    is_part_of_url = ":" in revision or ("/" in revision and not base.endswith(".git"))
    if Path(base).expanduser().exists() or (git.is_url(base) and not is_part_of_url):
        return base, revision
    return text, ""


def _list_repository(folder: Path, revision: str, name: str, settings: PrepareSettings) -> Iterator[Listing]:
    if not git.is_repository(folder):
        yield from _list_folder(folder, name, settings)
        return
    commit = git.resolve(folder, revision or "HEAD")
    if commit is None:
        yield empty(name, "repository without a readable commit", folder)
        yield from _list_folder(folder, name, settings)
        return
    try:
        if settings.worktree and (folder / ".git").exists():
            paths = git.worktree_paths(folder)
            yield listing_of(folder, name, [file_item(folder, path) for path in paths], settings)
        else:
            yield from _list_commit(folder, commit, name, settings)
    except git.GitError:
        yield empty(name, "repository without a readable tree", folder)


def _list_commit(folder: Path, commit: str, name: str, settings: PrepareSettings) -> Iterator[Listing]:
    """The files of a commit, its history if wanted, and its submodules that are there."""
    times = git.commit_times(folder, commit) if settings.split_by == "time" else dict[str, int]()
    items: list[Item | str] = []
    submodules: list[tuple[str, str]] = []
    for entry in git.tree(folder, commit):
        if entry.mode == git.SUBMODULE:
            submodules.append((entry.path, entry.blob))
        elif entry.mode == git.LINK:
            items.append("symbolic link")
        elif entry.size is None:
            items.append("unreadable folder" if entry.mode == git.FOLDER else "unreadable")
        else:
            time = times.get(entry.path)
            items.append(Item(path=entry.path, size=entry.size, blob=entry.blob, time=time))
    listing = listing_of(folder, name, items, settings, commit)
    try:
        changes = list(_commits(folder, commit, settings)) if settings.commits else []
        yield replace(listing, items=(*listing.items, *changes))
    except git.GitError:
        yield replace(listing, dropped={**listing.dropped, "history that cannot be read": 1})
    for path, pinned in submodules:
        inside = folder / path
        if (inside / ".git").exists():
            yield from _list_repository(inside, pinned, f"{name}/{path}", settings)
        else:
            yield empty(f"{name}/{path}", "submodule that is not checked out")


def _commits(folder: Path, commit: str, settings: PrepareSettings) -> Iterator[Item]:
    for change in git.single_file_changes(folder, commit):
        message = mask(change.message, settings.secrets)
        yield Item(
            path=change.path,
            kind="commit",
            size=MAX_COMMIT_FILE_BYTES // 5,
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
            rules += ignore_rules(read_text(Path(root) / ".gitignore"), prefix)
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
            items.append("ignored by .gitignore" if is_ignored else file_item(folder, f"{prefix}{one}"))
    yield listing_of(folder, name, items, settings)
    for path in nested:
        below = f"{name}/{path.relative_to(folder).as_posix()}"
        yield from _list_repository(path, "", below, settings)


def _list_issues(export: Path, settings: PrepareSettings) -> list[Listing]:
    """The issues of one export, by repository."""
    try:
        size = export.stat().st_size
        text = decode(export.read_bytes()) if size <= _MAX_ISSUES_BYTES else "huge"
    except OSError as error:
        raise ConfigError(f"{str(export)!r} cannot be read: {error.strerror}", "name a JSON export") from None
    if isinstance(text, str):
        return [empty(export.stem, text)]
    by_name: dict[str, list[Item]] = {}
    dropped = 0
    has_pull_requests = settings.family == "starcoder2"
    for issue in converting.issues(text.content, export.stem, has_pull_requests=has_pull_requests):
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
    unreadable = [replace(empty(export.stem, "unreadable issue"), dropped={"unreadable issue": dropped})]
    return listings + (unreadable if dropped else [])


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
