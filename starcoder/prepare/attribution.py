"""Find which spans of a text occur verbatim in given source files: an index on disk, fully offline.

Spans begin at the start of a word and are as long as they can be; line ends count as "\\n" on both sides, and
an index may ignore indentation. Secrets are masked before anything is written, so none is in the index;
`line` counts in the masked text. The index takes about twice the size of its texts and is memory-mapped;
every file of it is checked when it is opened.
"""

import hashlib
import json
import mmap
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from starcoder.errors import ConfigError
from starcoder.files import write_whole
from starcoder.prepare import secrets
from starcoder.prepare.suffixes import Suffixes, sort_suffixes, word_starts

MIN_CHARACTERS = 50  # of a span; shorter ones are everybody's
_MIN_COMPLETED = 20  # characters of a completion that a span has to cover, if not all of it
_CONTEXT = 250  # characters before a completion that spans may begin in
_MAX_SOURCES = 5
_SHARD_BYTES = 32 << 20
_FORMAT = 2
# Lines of a span that says nothing of where code is from: imports, and comments of which one is a license's.
_BEGINS_IMPORT = re.compile(r"(import|from|#\s*include|using|use|package|require(_once)?|export \*|mod)\b")
_GOES_ON = re.compile(r"[\w.,* ()]+,?$|[)}]")  # names in the brackets of an import
_COMMENT = re.compile(r"#|//|/\*|\*|--|;|\"\"\"|'''|<!--|%|rem\b", re.IGNORECASE)
_LEGAL = re.compile(r"licen[cs]e|copyright|warrant|SPDX-|redistribut", re.IGNORECASE)


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
    """Where a span occurs."""

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
    num_sources: int  # documents that have it
    sources: tuple[Source, ...] = ()  # the first of them
    is_boilerplate: bool = False  # imports or a license's header alone


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What an index was built from."""

    num_documents: int
    num_bytes: int
    num_masked: int  # secrets and personal data


def build(documents: Iterable[Document], output: Path, *, ignore_indentation: bool = False) -> Counts:
    """Write the index of the documents to a folder, in the place of an index that is there.

    Holds about 1 GB at most, whatever the number of documents; documents with equal texts are stored once.

    Raises:
        ConfigError: the folder holds something else, or there are no documents.
    """
    is_index = (output / "index.json").is_file() and (output / "documents.npy").is_file()
    if output.exists() and not is_index and any(output.iterdir()):
        raise ConfigError(f"{str(output)!r} holds something else", "name a new folder with --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".attribution-", dir=output.parent) as scratch:
        folder = Path(scratch, "new")
        folder.mkdir()
        writer = _Writer(folder, ignore_indentation)
        for document in documents:
            writer.add(document)
        counts = writer.finish()
        if not counts.num_documents:
            raise ConfigError(
                "there are no documents to index", "name a folder with source files or Parquet files"
            )
        if output.exists():
            os.replace(output, Path(scratch, "old"))
        os.replace(folder, output)
    return counts


class _Writer:
    """Writes an index, one shard at a time."""

    def __init__(self, folder: Path, ignore_indentation: bool):
        self._folder, self._ignore_indentation = folder, ignore_indentation
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
        data = _encoded(_normalized(masked.text, self._ignore_indentation)[0])
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
        np.save(self._folder / "places.npy", np.array([len(row) for row in self._rows], np.int64))
        counts = Counts(
            num_documents=self._num_documents, num_bytes=self._num_bytes, num_masked=self._num_masked
        )
        head = {"format": _FORMAT, "num_shards": self._num_shards, **asdict(counts)}
        head["ignore_indentation"] = self._ignore_indentation
        head["checksums"] = {path.name: _checksum(path) for path in sorted(self._folder.iterdir())}
        write_whole(self._folder / "index.json", json.dumps(head) + "\n")
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
        """Raises: ConfigError: there is no index, one of another version, or a damaged one."""
        head = _head(folder)
        self._ignore_indentation = bool(head["ignore_indentation"])
        self._shards: list[_Shard] = []
        first = 0
        for number in range(head["num_shards"]):
            self._shards.append(_Shard(folder / f"shard-{number:04}", first))
            first += self._shards[-1].num_documents
        self._rows = _mapped(folder / "documents.jsonl")
        self._ends = np.load(folder / "documents.npy")
        self._num_places = np.load(folder / "places.npy")

    def find(self, text: str, *, min_characters: int = MIN_CHARACTERS) -> tuple[Span, ...]:
        """The maximal spans of the text that occur verbatim in a document, in order; they may overlap."""
        normalized, offsets = _normalized(text, self._ignore_indentation)
        data = _encoded(normalized)
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
            first, last = offsets[int(characters[start])], offsets[int(characters[end]) - 1] + 1
            boilerplate = _is_boilerplate(text[first:last])
            spans.append(
                Span(start=first, end=last, num_sources=num, sources=sources, is_boilerplate=boilerplate)
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
                found.append(replace(span, start=start, end=end))
        return tuple(found)

    def _sources(self, match: bytes) -> tuple[int, tuple[Source, ...]]:
        """How many documents' places hold the match, and the first of them."""
        num, sources = 0, list[Source]()
        for shard in self._shards:
            for position in shard.suffixes.places(match):
                document = shard.document_at(position)
                num += int(self._num_places[document])
                if len(sources) == _MAX_SOURCES:
                    continue
                row = json.loads(self._rows[self._ends[document] : self._ends[document + 1]].tobytes())
                line = shard.line_at(position)
                sources += [Source(**place, line=line) for place in row[: _MAX_SOURCES - len(sources)]]
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

    def document_at(self, position: int) -> int:
        """Number of the document that a place in the shard's text is in."""
        return self._first + bisect_right(self._starts, position) - 1

    def line_at(self, position: int) -> int:
        """Number of the line in its document, counted from 1."""
        start = self._starts[bisect_right(self._starts, position) - 1]
        return self._text[start:position].tobytes().count(b"\n") + 1


def _head(folder: Path) -> dict[str, Any]:
    """What index.json says, once every other file is as it says.

    Raises:
        ConfigError: there is no index, one of another version, or a damaged one.
    """
    path = folder / "index.json"
    try:
        head = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        head = {}
    if head is None:
        raise ConfigError(
            f"there is no attribution index in {str(folder)!r}", "`starcoder attribution build` writes one"
        )
    damaged = ConfigError(f"the attribution index {str(folder)!r} is damaged", "build it again")
    if not isinstance(head, dict) or "format" not in head:
        raise damaged
    if head["format"] != _FORMAT:
        raise ConfigError(f"{str(folder)!r} is an index of another version", "build it again")
    expected = {"documents.jsonl", "documents.npy", "places.npy"}
    try:
        shards = [f"shard-{number:04}" for number in range(head["num_shards"])]
        expected |= {f"{one}{end}" for one in shards for end in (".text", ".suffixes.npy", ".starts.npy")}
        is_whole = head["checksums"].keys() == expected and all(
            _checksum(folder / name) == checksum for name, checksum in head["checksums"].items()
        )
    except (OSError, KeyError, TypeError, AttributeError):
        raise damaged from None
    if not is_whole:
        raise damaged
    return head


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _normalized(text: str, ignore_indentation: bool) -> tuple[str, Sequence[int]]:
    """The text with "\\n" line ends, perhaps without indentation, and where each of its characters was."""
    if "\r" not in text and not ignore_indentation:
        return text, range(len(text) + 1)
    pattern = r"\r(?=\n)|(?m:^)[ \t]+" if ignore_indentation else r"\r(?=\n)"
    offsets: list[int] = []
    at = 0
    for match in re.finditer(pattern, text):
        offsets += range(at, match.start())
        at = match.end()
    offsets += range(at, len(text) + 1)
    return re.sub(pattern, "", text).replace("\r", "\n"), offsets


def _is_boilerplate(text: str) -> bool:
    """Whether a span is imports alone, or comments of which one names a license."""
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    comments = [line for line in lines if _COMMENT.match(line)]
    if any(_LEGAL.search(line) for line in lines) and len(comments) >= len(lines) - 1:
        return True
    rest = [line for line in lines if line not in comments]
    begins = [line for line in rest if _BEGINS_IMPORT.match(line)]
    return bool(begins) and all(_BEGINS_IMPORT.match(line) or _GOES_ON.match(line) for line in rest)


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _encoded(text: str) -> bytes:
    """UTF-8 without the zero byte, which separates documents; 0xFF, which no text has, stands for it."""
    return text.encode("utf-8", "surrogatepass").replace(b"\0", b"\xff")
