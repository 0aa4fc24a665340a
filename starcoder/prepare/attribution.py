"""Tells which spans of a text stand verbatim in given source files: an index on disk, fully offline."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A source file to be found again."""

    path: str
    text: str = field(repr=False)
    repository: str = ""
    revision: str = ""
    licence: str = ""  # SPDX expression; empty: unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a span stands."""

    path: str
    repository: str
    revision: str
    licence: str
    line: int  # counted from 1, in the text that was indexed


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A maximal verbatim match: characters [start, end) of the text that was asked about."""

    start: int
    end: int
    num_sources: int  # places where it stands
    sources: tuple[Source, ...] = ()  # the first of them


def build(documents: Iterable[Document], output: Path) -> dict[str, int]:
    """Write the index of the documents to a new folder and return counts; secrets are masked before.

    Raises:
        ConfigError: the folder exists and holds something else.
    """
    raise NotImplementedError
