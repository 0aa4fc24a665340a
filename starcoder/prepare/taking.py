"""Turns a batch of listed items into clean documents: decodes, filters, masks, converts and counts them.

What it writes holds no secret that masking finds: nothing unmasked is ever stored.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from starcoder.files import bundled, write_whole
from starcoder.prepare import converting, git
from starcoder.prepare.decontaminate import Benchmarks
from starcoder.prepare.filters import reason_to_drop
from starcoder.prepare.items import MAX_COMMIT_FILE_BYTES, Item, Repository
from starcoder.prepare.order import imports_of
from starcoder.prepare.secrets import mask
from starcoder.prepare.settings import PrepareSettings
from starcoder.prepare.texts import decode, generated
from starcoder.repos.languages import language_of
from starcoder.repos.licenses import is_wanted, license_of_file
from starcoder.tokenizer import Tokenizer

_CONVERTED = ("notebook", "commit", "issue")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A document; its text lies in the batch's file, `length` bytes from `offset` on."""

    repository: str
    path: str
    revision: str
    language: str
    license: str
    kind: str
    blob: str
    encoding: str
    time: int | None
    masked: dict[str, int]
    num_characters: int
    num_tokens: int
    imports: tuple[str, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of a batch."""

    rows: tuple[Row, ...]
    dropped: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Document:
    content: str = field(repr=False)
    language: str
    kind: str
    blob: str
    encoding: str


@dataclass(frozen=True, slots=True)
class Taker:
    """Makes documents; holds what all batches share."""

    settings: PrepareSettings
    tokenizer: Tokenizer
    benchmarks: Benchmarks

    @classmethod
    def of(cls, settings: PrepareSettings) -> "Taker":
        """Raises: ConfigError: a benchmark cannot be read. CheckpointError: the tokenizer cannot."""
        tokenizer = Tokenizer.load(settings.tokenizer or bundled())
        return cls(settings, tokenizer, Benchmarks.read(settings.benchmark, settings.contamination))

    def take(self, repository: Repository, items: tuple[Item, ...], target: Path) -> None:
        """Write `target`.bin with the texts and then, as the sign that all is there, `target`.json."""
        rows: list[Row] = []
        dropped: Counter[str] = Counter()
        texts: list[bytes] = []
        offset = 0
        with git.Blobs(Path(repository.folder or ".")) as blobs:
            for item in items:
                made = self._row(repository, item, blobs, offset)
                if isinstance(made, str):
                    dropped[made] += 1
                    continue
                row, text = made
                rows.append(row)
                texts.append(text)
                offset += row.length
        write_whole(target.with_suffix(".bin"), b"".join(texts))
        document = {"rows": [asdict(row) for row in rows], "dropped": dict(sorted(dropped.items()))}
        write_whole(target.with_suffix(".json"), json.dumps(document).encode())

    def _row(
        self, repository: Repository, item: Item, blobs: git.Blobs, offset: int
    ) -> tuple[Row, bytes] | str:
        document = self._document(repository, item, blobs)
        if isinstance(document, str):
            return document
        content = document.content if item.kind == "file" else ""
        license = license_of_file(item.path, content, repository.licenses)
        if not is_wanted(license, self.settings.allow_license, self.settings.deny_license):
            return "license"
        if self.benchmarks.holds_any_of(document.content):
            return "contaminated by a benchmark"
        masked = mask(document.content, self.settings.secrets)
        data = masked.text.encode("utf-8", "replace")
        is_raw = document.kind in _CONVERTED
        encode = self.tokenizer.encode_with_special if is_raw else self.tokenizer.encode
        row = Row(
            repository=repository.name,
            path=mask(item.path, self.settings.secrets).text,
            revision=repository.revision,
            language=document.language,
            license=license,
            kind=document.kind,
            blob=document.blob,
            encoding=document.encoding,
            time=item.time,
            masked=dict(Counter(item.masked) + Counter(masked.found)),
            num_characters=len(masked.text),
            num_tokens=len(encode(data.decode())),
            imports=imports_of(document.language, document.content) if document.kind == "file" else (),
            offset=offset,
            length=len(data),
        )
        return row, data

    def _document(self, repository: Repository, item: Item, blobs: git.Blobs) -> _Document | str:
        if item.kind == "issue":
            return _Document(item.text, "Text", "issue", _blob_name(item.text.encode()), "utf-8")
        data = _read(repository, item, blobs, item.blob, self.settings.max_file_bytes)
        if isinstance(data, str):
            return data
        language = language_of(item.path, data[:4096])
        if language is None or (self.settings.languages and language not in self.settings.languages):
            return "no language of the family" if language is None else "language not asked for"
        text = decode(data)
        if isinstance(text, str):
            return text
        reason = generated(item.path, text.content)
        if reason:
            return reason
        content, kind, blob = text.content, "file", item.blob or _blob_name(data)
        if language == "Jupyter Notebook":
            if self.settings.family == "santacoder":
                return "notebook, for which the family has no layout"
            cells = converting.notebook(content)
            if cells is None:
                return "notebook without cells"
            content, kind = cells, "notebook"
        if item.kind == "commit":
            change = self._change(repository, item, blobs, text.content)
            if change is None:
                return "commit that is large or says little"
            return _Document(change, language, "commit", blob, text.encoding)
        reason = reason_to_drop(content, language, self.settings.filters)
        if reason:
            return f"filter {reason}"
        return _Document(content, language, kind, blob, text.encoding)

    def _change(self, repository: Repository, item: Item, blobs: git.Blobs, after: str) -> str | None:
        if len(after) > MAX_COMMIT_FILE_BYTES or reason_to_drop(after, "Text", self.settings.filters):
            return None
        data = _read(repository, item, blobs, item.before, MAX_COMMIT_FILE_BYTES)
        before = data if isinstance(data, str) else decode(data)
        return None if isinstance(before, str) else converting.commit(before.content, item.text, after)


def read_batch(target: Path) -> Batch:
    """What `take` wrote."""
    document: dict[str, Any] = json.loads(target.with_suffix(".json").read_bytes())
    rows = tuple(Row(**{**row, "imports": tuple(row["imports"])}) for row in document["rows"])
    return Batch(rows, document["dropped"])


def compared_texts(target: Path, rows: tuple[Row, ...]) -> Iterator[str]:
    """What duplicates of a batch's rows are found by: the texts, but of commits what they say and change."""
    with target.with_suffix(".bin").open("rb") as file:
        for row in rows:
            file.seek(row.offset)
            text = file.read(row.length).decode()
            yield converting.changed_text(text) if row.kind == "commit" else text


def _read(repository: Repository, item: Item, blobs: git.Blobs, blob: str, limit: int) -> bytes | str:
    """The bytes, or why there are none."""
    if blob:
        data = blobs.read(blob, limit)
        return "unreadable" if data is None else data
    try:
        with (Path(repository.folder) / item.path).open("rb") as file:
            data = file.read(limit + 1)
    except OSError:
        return "unreadable"
    return "huge" if len(data) > limit else data


def _blob_name(data: bytes) -> str:
    """The name git gives these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
