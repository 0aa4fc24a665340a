"""Tells which spans of a text stand verbatim in given source files: an index on disk, fully offline.

Spans begin at the start of a word and are as long as they can be. Secrets are masked before anything is
written, so none is in the index; `line` counts in the masked text. The index takes about twice the size of
its texts and is memory-mapped.
"""

import hashlib
import json
import mmap
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from starcoder.errors import ConfigError
from starcoder.prepare import secrets
from starcoder.prepare.suffixes import Suffixes, sort_suffixes, word_starts

MIN_CHARACTERS = 50  # of a span; shorter ones are everybody's
_MIN_COMPLETED = 20  # characters of a completion that a span has to cover, if not all of it
_CONTEXT = 250  # characters before a completion that spans may begin in
_MAX_SOURCES = 5
_SHARD_BYTES = 32 << 20
_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A source file to be found again."""

    path: str
    text: str = field(repr=False)
    repository: str = ""
    revision: str = ""
    license: str = "unknown"  # SPDX expression


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a span stands."""

    path: str
    repository: str
    revision: str
    license: str
    line: int  # counted from 1, in the text that was indexed


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A maximal verbatim match: characters [start, end) of the text that was asked about."""

    start: int
    end: int
    num_sources: int  # places where it stands
    sources: tuple[Source, ...] = ()  # the first of them


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What an index was built from."""

    num_documents: int
    num_bytes: int
    num_masked: int  # secrets and personal data


def build(documents: Iterable[Document], output: Path) -> Counts:
    """Write the index of the documents to a folder, in the place of an index that is there.

    Holds about 1 GB at most, whatever the number of documents; documents with equal texts are stored once.

    Raises:
        ConfigError: the folder holds something else, or there are no documents.
    """
    if output.exists() and not (output / "index.json").is_file() and any(output.iterdir()):
        raise ConfigError(f"{str(output)!r} holds something else", "name a new folder with --output")
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writer = _Writer(partial)
    for document in documents:
        writer.add(document)
    counts = writer.finish()
    if not counts.num_documents:
        shutil.rmtree(partial)
        raise ConfigError(
            "there are no documents to index", "name a folder with source files or Parquet files"
        )
    shutil.rmtree(output, ignore_errors=True)
    os.replace(partial, output)
    return counts


class _Writer:
    """Writes an index, one shard at a time."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._texts: list[bytes] = []
        self._starts = [0]
        self._rows: list[list[dict[str, str]]] = []  # the places of each stored text
        self._known: dict[bytes, int] = {}
        self._num_shards = self._num_documents = self._num_bytes = self._num_masked = 0

    def add(self, document: Document) -> None:
        masked = secrets.mask(document.text)
        self._num_masked += sum(masked.found.values())
        self._num_documents += 1
        place = {
            "path": document.path,
            "repository": secrets.mask(document.repository).text,
            "revision": document.revision,
            "license": document.license,
        }
        data = _encoded(masked.text)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if digest in self._known:
            self._rows[self._known[digest]].append(place)
            return
        self._known[digest] = len(self._rows)
        self._rows.append([place])
        self._texts.append(data + b"\0")
        self._starts.append(self._starts[-1] + len(data) + 1)
        if self._starts[-1] >= _SHARD_BYTES:
            self._end_shard()

    def finish(self) -> Counts:
        """Write what is left, and the table of documents."""
        if self._texts:
            self._end_shard()
        lines = [json.dumps(row).encode() + b"\n" for row in self._rows]
        (self._folder / "documents.jsonl").write_bytes(b"".join(lines))
        ends = np.cumsum([0, *map(len, lines)], dtype=np.int64)
        np.save(self._folder / "documents.npy", ends)
        counts = Counts(
            num_documents=self._num_documents, num_bytes=self._num_bytes, num_masked=self._num_masked
        )
        head = {"format": _FORMAT, "num_shards": self._num_shards, **asdict(counts)}
        (self._folder / "index.json").write_text(json.dumps(head) + "\n", "utf-8")
        return counts

    def _end_shard(self) -> None:
        text, name = b"".join(self._texts), f"shard-{self._num_shards:04}"
        (self._folder / f"{name}.text").write_bytes(text)
        np.save(self._folder / f"{name}.suffixes.npy", sort_suffixes(text))
        np.save(self._folder / f"{name}.starts.npy", np.array(self._starts[:-1], np.int64))
        self._num_shards += 1
        self._num_bytes += len(text)
        self._texts, self._starts = [], [0]


class Index:
    """An index that `build` wrote, opened. Safe to use from several threads."""

    def __init__(self, folder: Path):
        """Raises: ConfigError: there is no index, or one of another format."""
        try:
            head = json.loads((folder / "index.json").read_text("utf-8"))
        except (OSError, ValueError):
            raise ConfigError(
                f"there is no attribution index in {str(folder)!r}",
                "`starcoder attribution build` writes one",
            ) from None
        if head.get("format") != _FORMAT:
            raise ConfigError(f"{str(folder)!r} is an index of another version", "build it again")
        self._shards: list[_Shard] = []
        first = 0
        for number in range(head["num_shards"]):
            self._shards.append(_Shard(folder / f"shard-{number:04}", first))
            first += self._shards[-1].num_documents
        self._rows = _mapped(folder / "documents.jsonl")
        self._ends = np.load(folder / "documents.npy")

    def find(self, text: str, *, min_characters: int = MIN_CHARACTERS) -> tuple[Span, ...]:
        """The maximal spans of the text that stand verbatim in a document, in order; they may overlap."""
        data = _encoded(text)
        is_first = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80  # of a character's bytes
        characters = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_first)])
        spans, covered = [], 0
        for start in word_starts(data).tolist():
            rest = data[start:]
            longest = [shard.suffixes.longest(rest) for shard in self._shards]
            end = start + max(longest)
            while end < len(data) and not is_first[end]:
                end -= 1
            if end <= covered or characters[end] - characters[start] < min_characters:
                continue
            covered = end
            num, sources = self._sources(data[start:end])
            spans.append(
                Span(start=int(characters[start]), end=int(characters[end]), num_sources=num, sources=sources)
            )
        return tuple(spans)

    def find_in_completion(self, prefix: str, text: str) -> tuple[Span, ...]:
        """The spans of a completion, counted from its start.

        The match may begin in the text before it, and the source's line is where it begins; it covers at
        least 20 characters of the completion, or all of it.
        """
        before = prefix[-_CONTEXT:]
        found = []
        for span in self.find(before + text):
            start, end = max(0, span.start - len(before)), span.end - len(before)
            if end - start >= min(_MIN_COMPLETED, max(1, len(text))):
                found.append(Span(start=start, end=end, num_sources=span.num_sources, sources=span.sources))
        return tuple(found)

    def _sources(self, match: bytes) -> tuple[int, tuple[Source, ...]]:
        """How many documents' places hold the match, and the first of them."""
        num, sources = 0, list[Source]()
        for shard in self._shards:
            for position in shard.suffixes.places(match):
                document, line = shard.locate(position)
                row = json.loads(self._rows[self._ends[document] : self._ends[document + 1]].tobytes())
                num += len(row)
                for place in row[: _MAX_SOURCES - len(sources)]:
                    sources.append(Source(**place, line=line))
        return num, tuple(sources)


class _Shard:
    """A part of the texts, with the number of its first document."""

    def __init__(self, path: Path, first: int):
        self._text = _mapped(path.with_name(path.name + ".text"))
        suffixes = path.with_name(path.name + ".suffixes.npy")
        # The head of the file alone: nothing to map.
        order = np.load(suffixes, mmap_mode=None if suffixes.stat().st_size <= 128 else "r")
        self._starts = np.load(path.with_name(path.name + ".starts.npy")).tolist()
        self._first, self.num_documents = first, len(self._starts)
        self.suffixes = Suffixes(self._text, memoryview(order))

    def locate(self, position: int) -> tuple[int, int]:
        """Number of the document, and the line in it, counted from 1."""
        place = bisect_right(self._starts, position) - 1
        before = self._text[self._starts[place] : position].tobytes()
        return self._first + place, before.count(b"\n") + 1


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _encoded(text: str) -> bytes:
    """UTF-8 without the zero byte, which separates documents; 0xFF, which no text has, stands for it."""
    return text.encode("utf-8", "surrogatepass").replace(b"\0", b"\xff")
