"""List what there is to take, mostly without reading it: files of repositories and folders, commits, issues.

What cannot be listed is counted, never an error; a path that is not there is the user's mistake.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from starcoder.errors import ConfigError
from starcoder.prepare import formats, talk
from starcoder.prepare.records import Dropped, Listing, Record, Repository
from starcoder.prepare.secrets import mask
from starcoder.prepare.settings import PrepareSettings
from starcoder.prepare.source_text import decode, is_vendored
from starcoder.repos import git
from starcoder.repos.languages import mapped_language, may_be_source
from starcoder.repos.walk import SourceTree, TreeFile, walk

MAX_COMMIT_FILE_BYTES = 50_000  # of a file that a commit changes
NOTEBOOK_ENDING, NOTEBOOK_FACTOR = ".ipynb", 30  # pictures make notebooks large: their text is measured later
_MAX_ISSUES_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Place:
    """An input that was understood."""

    name: str
    folder: Path | None  # None: a URL that cannot be cloned
    revision: str


def list_inputs(settings: PrepareSettings, clones: Path) -> list[Listing]:
    """Everything there is, in a fixed order; URLs are cloned under `clones`.

    Raises:
        ConfigError: a path is not there, or a revision names no commit.
    """
    places = [_located(text, clones) for text in settings.inputs]
    found = [listing for place in places for listing in _listings(place, settings)]
    for export in settings.issues:
        found += _list_issues(export, settings)
    return _named_apart(found)


def check_inputs(settings: PrepareSettings) -> None:
    """Raises: ConfigError: a path is not there, or a revision of a local repository names no commit."""
    for text in settings.inputs:
        if not git.is_url(_at_revision(text)[0]):
            _located(text, Path())
    for export in settings.issues:
        if not Path(export).is_file():
            raise ConfigError(
                f"there is no file {export!r}", "--issues names JSON exports, each after its own flag"
            )


def _located(text: str, clones: Path) -> _Place:
    base, revision = _at_revision(text)
    if git.is_url(base):
        name = git.name_of_url(base)
        target = clones / hashlib.sha256(base.encode()).hexdigest()[:16]
        try:
            git.clone(base, target)
        except git.GitError:
            return _Place(name, None, "")
        return _checked(_Place(name, target, revision))
    folder = Path(git.local_path(base)).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {base!r}", "name folders, repositories or their URLs")
    name = folder.name.removesuffix(".git") or folder.parent.name
    if git.is_repository(folder):
        try:
            url = git.GitRepository(folder).origin
        except git.GitError:
            url = ""
        name = git.name_of_url(url) if git.is_url(url) else name
    return _checked(_Place(name, folder, revision))


def _checked(place: _Place) -> _Place:
    """Raises: ConfigError: the revision names no commit."""
    if place.revision and place.folder is not None:
        try:
            commit = git.GitRepository(place.folder).resolve(place.revision)
        except git.GitError:
            commit = None
        if commit is None:
            raise ConfigError(
                f"{place.name!r} has no revision {place.revision!r}", "name a branch, tag or commit"
            )
    return place


def _at_revision(text: str) -> tuple[str, str]:
    """A place and the revision behind its last @, "" if what follows the @ belongs to the place."""
    base, at, revision = text.rpartition("@")
    if not at or Path(git.local_path(text)).expanduser().exists():
        return text, ""
    is_part_of_url = ":" in revision or ("/" in revision and not base.endswith(".git"))
    if Path(git.local_path(base)).expanduser().exists() or (git.is_url(base) and not is_part_of_url):
        return base, revision
    return text, ""


def _listings(place: _Place, settings: PrepareSettings) -> Iterator[Listing]:
    if place.folder is None:
        yield Listing.without(place.name, "repository that cannot be cloned")
        return
    trees = walk(place.folder, revision=place.revision, name=place.name, worktree=settings.worktree)
    for tree in trees:
        yield _listing(tree, settings)


def _listing(tree: SourceTree, settings: PrepareSettings) -> Listing:
    """The records of a tree, less the files whose path or size tells enough."""
    dropped = [Dropped(path=path, reason=reason) for path, reason in tree.omitted]
    records: list[Record] = []
    history = git.GitRepository(tree.folder) if tree.revision and _asks_history(settings) else None
    times = _times(history, tree.revision) if history and settings.split_by == "time" else {}
    for file in tree.files:
        reason = _reason(file, settings)
        if reason:
            dropped.append(Dropped(path=file.path, reason=reason))
        else:
            records.append(Record.of_file(file, times.get(file.path)))
    if settings.notebook_scripts:
        records += [replace(one, kind="script") for one in records if one.path.endswith(NOTEBOOK_ENDING)]
    if history and settings.commits:
        for one in _commits(history, tree.revision, settings):
            if isinstance(one, Record):
                records.append(one)
            else:
                dropped.append(one)
    repository = Repository(
        name=tree.name, folder=str(tree.folder), revision=tree.revision, licenses=tree.licenses
    )
    return Listing(repository=repository, records=tuple(records), dropped=tuple(dropped))


def _asks_history(settings: PrepareSettings) -> bool:
    return settings.commits or settings.split_by == "time"


def _reason(file: TreeFile, settings: PrepareSettings) -> str | None:
    said = file.attributes
    if not file.path.isprintable():
        return "path with control characters or of no encoding"
    if file.size == 0:
        return "empty"
    if file.size > settings.max_file_bytes * (NOTEBOOK_FACTOR if file.path.endswith(NOTEBOOK_ENDING) else 1):
        return "huge"
    if said.get("binary"):
        return "binary"
    if said.get("linguist-generated"):
        return "generated"
    vendored = bool(said["linguist-vendored"]) if "linguist-vendored" in said else is_vendored(file.path)
    if vendored and not settings.vendored:
        return "vendored"
    is_mapped = file.language or mapped_language(file.path, settings.language_map)
    if not is_mapped and not may_be_source(file.path):
        return "no known language"
    return None


def _times(repository: git.GitRepository, commit: str) -> dict[str, int]:
    """When each path was last changed, in seconds since 1970."""
    times: dict[str, int] = {}
    for one in repository.commits(commit):
        if len(one.parents) < 2:
            for change in repository.changes(one.id, one.parents[0] if one.parents else None) or ():
                times.setdefault(change.path, one.time)
    return times


def _commits(
    repository: git.GitRepository, commit: str, settings: PrepareSettings
) -> Iterator[Record | Dropped]:
    """Commits, newest first, that change one file and nothing else; merges are none."""
    counts: Counter[str] = Counter()
    for one in repository.commits(commit):
        changes = repository.changes(one.id, one.parents[0]) if len(one.parents) == 1 else None
        if changes is None or len(changes) != 1:
            continue
        (change,) = changes
        if not all(mode.startswith("100") for mode in change.modes):
            continue
        reason = formats.why_not_a_commit(one.author, one.message)
        counts[change.path] += reason is None
        if reason is None and counts[change.path] > settings.commits_per_file:
            reason = "commit of a file with many commits"
        if reason is not None:
            yield Dropped(path=change.path, reason=reason, detail=one.id)
            continue
        message = mask(one.message.strip(), settings.secrets)
        yield Record(
            path=change.path,
            kind="commit",
            size=MAX_COMMIT_FILE_BYTES // 5,
            blob=change.blobs[1],
            before=change.blobs[0],
            text=message.text,
            masked=dict(message.found),
            time=one.time,
        )


def _list_issues(export: Path, settings: PrepareSettings) -> list[Listing]:
    """The issues of one export, by repository."""
    try:
        size = export.stat().st_size
        text = decode(export.read_bytes()) if size <= _MAX_ISSUES_BYTES else "huge"
    except OSError as error:
        raise ConfigError(f"{str(export)!r} cannot be read: {error.strerror}", "name a JSON export") from None
    if isinstance(text, str):
        return [Listing.without(export.stem, text)]
    by_name: dict[str, list[Record]] = {}
    left_out: list[Dropped] = []
    has_pull_requests = settings.family == "starcoder2"
    issues = talk.issues(text.content, export.stem, has_pull_requests=has_pull_requests)
    for number, issue in enumerate(issues, 1):
        if isinstance(issue, str):
            left_out.append(Dropped(path=f"entry {number}", reason=issue))
            continue
        masked = mask(issue.text, settings.secrets)
        record = Record(
            path=f"issue {issue.number}",
            kind="issue",
            size=len(masked.text),
            text=masked.text,
            masked=dict(masked.found),
        )
        by_name.setdefault(issue.repository, []).append(record)
    listings = [
        Listing(repository=Repository(name=name), records=tuple(records)) for name, records in by_name.items()
    ]
    if left_out:
        listings.append(Listing(repository=Repository(name=export.stem), dropped=tuple(left_out)))
    return listings


def _named_apart(listings: Sequence[Listing]) -> list[Listing]:
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
