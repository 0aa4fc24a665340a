"""Values that the stages of preparation exchange: what there is to take, and what was left out and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from starcoder.repos.walk import TreeFile


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A repository, a folder that is none, or the source of an export.

    `revision` is empty where files are read from the disk, `folder` where there are none.
    """

    name: str
    folder: str = ""
    revision: str = ""
    licenses: Mapping[str, str] = field(default_factory=dict)  # by path, "" being the root


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One document to be: a file, a commit, an issue or a pull request."""

    path: str
    kind: str = "file"
    size: int = 0
    blob: str = ""  # of git; empty: read the file
    before: str = ""  # the blob before a commit
    text: str = field(default="", repr=False)  # the commit's message or the issue, without secrets
    masked: Mapping[str, int] = field(default_factory=dict)  # what was masked in `text`
    time: int | None = None
    language: str = ""  # that .gitattributes or a mapping names

    @classmethod
    def of_file(cls, file: TreeFile, time: int | None) -> "Record":
        """A file of a tree."""
        return cls(
            path=file.path,
            size=file.size,
            blob=file.blob,
            time=time,
            language=file.attributes.get("linguist-language", ""),
        )


@dataclass(frozen=True, slots=True)
class Dropped:
    """A document that was left out, and why."""

    path: str
    reason: str
    detail: str = ""
    repository: str = ""
    duplicate_of: str = ""  # repository:path of the document that stays


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """All records of one repository, and what was left out before it was read."""

    repository: Repository
    records: tuple[Record, ...] = ()
    dropped: tuple[Dropped, ...] = ()

    @classmethod
    def without(cls, name: str, reason: str, folder: str = "") -> "Listing":
        """The listing of a repository or export of which nothing can be taken."""
        return cls(
            repository=Repository(name=name, folder=folder), dropped=(Dropped(path="", reason=reason),)
        )
