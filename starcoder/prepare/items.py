"""What there is to take of one repository: its items, less those that path, size or attributes leave out."""

import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from starcoder.prepare import git
from starcoder.prepare.ignore import Rule, attribute_rules, said_of
from starcoder.prepare.settings import PrepareSettings
from starcoder.prepare.texts import decode, is_vendored
from starcoder.repos.languages import language_of
from starcoder.repos.licenses import MAX_LICENSE_BYTES, licenses_of_tree

MAX_COMMIT_FILE_BYTES = 50_000  # of a file that a commit changes


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A repository, or a folder that is none; `revision` is empty where files are read as they lie."""

    name: str
    folder: str
    revision: str = ""
    licenses: dict[str, str] = field(default_factory=dict)  # of `licenses_of_tree`


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


def listing_of(
    folder: Path,
    name: str,
    found: list[Item | str],
    settings: PrepareSettings,
    commit: str = "",
) -> Listing:
    """The listing of what was found, less the files whose path or size tells enough; strings are reasons."""
    dropped = Counter(item for item in found if isinstance(item, str))
    files = [item for item in found if isinstance(item, Item)]
    with git.Blobs(folder) as blobs:
        rules, licenses = _about(folder, files, blobs)
    items = []
    for item in files:
        reason = _reason(item, rules, settings)
        if reason:
            dropped[reason] += 1
        else:
            items.append(item)
    repository = Repository(name=name, folder=str(folder), revision=commit, licenses=licenses)
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
    """What the repository says of its files: .gitattributes, and licenses by path."""
    rules: list[Rule] = []
    small = {item.path: item for item in files if item.size <= MAX_LICENSE_BYTES}
    for item in small.values():
        if PurePosixPath(item.path).name == ".gitattributes":
            folder_name = item.path.rpartition("/")[0]
            rules += attribute_rules(_text_of(folder, item, blobs), f"{folder_name}/" if folder_name else "")
    paths = [item.path for item in files]
    licenses = licenses_of_tree(
        paths, lambda path: _text_of(folder, small[path], blobs) if path in small else ""
    )
    return rules, licenses


def _text_of(folder: Path, item: Item, blobs: git.Blobs) -> str:
    data = blobs.read(item.blob, item.size) if item.blob else None
    if data is None:
        return "" if item.blob else read_text(folder / item.path)
    text = decode(data)
    return "" if isinstance(text, str) else text.content


def read_text(path: Path) -> str:
    """The text of a small file; "" if it has none."""
    try:
        is_small = path.is_file() and path.stat().st_size <= MAX_LICENSE_BYTES
        text = decode(path.read_bytes()) if is_small else ""
    except OSError:
        return ""
    return "" if isinstance(text, str) else text.content


def file_item(folder: Path, path: str) -> Item | str:
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


def empty(name: str, reason: str, folder: Path | None = None) -> Listing:
    """The listing of a repository of which nothing can be taken."""
    repository = Repository(name=name, folder=str(folder) if folder else "")
    return Listing(repository=repository, items=(), dropped={reason: 1})
