"""Turn a batch of listed records into clean documents: decode, filter, mask, lay out and count them.

What it writes holds no secret that masking finds: nothing unmasked is ever stored.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from starcoder.files import bundled, write_whole
from starcoder.prepare import formats
from starcoder.prepare.decontaminate import Benchmarks
from starcoder.prepare.filters import reason_to_drop
from starcoder.prepare.inputs import MAX_COMMIT_FILE_BYTES, NOTEBOOK_ENDING, NOTEBOOK_FACTOR
from starcoder.prepare.order import imports_of
from starcoder.prepare.records import Dropped, Record, Repository
from starcoder.prepare.secrets import mask
from starcoder.prepare.settings import PrepareSettings
from starcoder.prepare.source_text import decode, generated
from starcoder.repos.languages import (
    MAX_START_BYTES,
    NOTEBOOK,
    language_named,
    language_of,
    language_of_notebook,
    mapped_language,
)
from starcoder.repos.licenses import is_wanted, license_of_file
from starcoder.repos.walk import TreeReader
from starcoder.tokenizer import Tokenizer

_LAID_OUT = ("notebook", "script", "commit", "issue")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A document; its text is in the batch's file, `length` bytes from `offset` on."""

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
    length: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of a batch."""

    rows: tuple[Row, ...]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True, slots=True)
class _Document:
    content: str = field(repr=False)
    language: str
    kind: str
    blob: str
    encoding: str


@dataclass(frozen=True, slots=True)
class Ingestor:
    """Makes documents; holds what all batches share."""

    settings: PrepareSettings
    tokenizer: Tokenizer
    benchmarks: Benchmarks

    @classmethod
    def of(cls, settings: PrepareSettings) -> "Ingestor":
        """Raises: ConfigError: a benchmark cannot be read. CheckpointError: the tokenizer cannot."""
        tokenizer = Tokenizer.load(settings.tokenizer or bundled())
        return cls(settings, tokenizer, Benchmarks.read(settings.benchmark, settings.contamination))

    def ingest(self, repository: Repository, records: Sequence[Record], target: Path) -> None:
        """Write `target`.bin with the texts and then, as the sign that all is there, `target`.json."""
        made: list[tuple[Row, bytes]] = []
        dropped: list[Dropped] = []
        reader = TreeReader(Path(repository.folder or "."))
        for record in records:
            one = self._row(repository, record, reader)
            if isinstance(one, Dropped):
                dropped.append(one)
            else:
                made.append(one)
        write_batch(target, made, dropped)

    def _row(self, repository: Repository, record: Record, reader: TreeReader) -> tuple[Row, bytes] | Dropped:
        def drop(reason: str, detail: str = "") -> Dropped:
            return Dropped(path=record.path, reason=reason, detail=detail, repository=repository.name)

        document = self._document(record, reader)
        if isinstance(document, str):
            return drop(document)
        content = document.content if record.kind == "file" else ""
        license = license_of_file(record.path, content, repository.licenses)
        if not is_wanted(license, self.settings.allow_license, self.settings.deny_license):
            return drop("license", license)
        if self.benchmarks.holds_any_of(document.content):
            return drop("contaminated by a benchmark")
        masked = mask(document.content, self.settings.secrets)
        data = masked.text.encode("utf-8", "replace")
        is_laid_out = document.kind in _LAID_OUT
        encode = self.tokenizer.encode_with_special if is_laid_out else self.tokenizer.encode
        row = Row(
            repository=repository.name,
            path=mask(record.path, self.settings.secrets).text,
            revision=repository.revision,
            language=document.language,
            license=license,
            kind=document.kind,
            blob=document.blob,
            encoding=document.encoding,
            time=record.time,
            masked=dict(Counter(record.masked) + Counter(masked.found)),
            num_characters=len(masked.text),
            num_tokens=len(encode(data.decode())),
            imports=imports_of(document.language, document.content) if document.kind == "file" else (),
            length=len(data),
        )
        return row, data

    def _document(self, record: Record, reader: TreeReader) -> _Document | str:
        if record.kind == "issue":
            return _Document(record.text, "Text", "issue", _blob_name(record.text.encode()), "utf-8")
        is_notebook = record.path.endswith(NOTEBOOK_ENDING)
        limit = self.settings.max_file_bytes * (NOTEBOOK_FACTOR if is_notebook else 1)
        data = reader.read(record.path, record.blob, limit)
        if data is None:
            return "unreadable"
        language = self._language(record, data)
        if language is None:
            return "no known language"
        text = decode(data)
        if isinstance(text, str):
            return text
        content, kind, blob = text.content, "file", record.blob or _blob_name(data)
        if language == NOTEBOOK and record.kind in ("file", "script"):
            found = self._notebook(record, content)
            if isinstance(found, str):
                return found
            content, kind, kernel = found
            if not self._is_wanted(language, kernel):
                return "language not asked for"
            language = kernel
        elif not self._is_wanted(language):
            return "language not asked for"
        elif reason := generated(record.path, content):
            return reason
        if record.kind == "commit":
            change = self._change(record, reader, text.content)
            if change is None:
                return "commit that is large or says little"
            return _Document(change, language, "commit", blob, text.encoding)
        reason = reason_to_drop(content, language, self.settings.filters)
        if reason:
            return f"filter {reason}"
        return _Document(content, language, kind, blob, text.encoding)

    def _notebook(self, record: Record, content: str) -> tuple[str, str, str] | str:
        """Content, kind and language of a notebook's document, or why there is none."""
        if self.settings.family == "santacoder" and record.kind == "file":
            return "notebook, for which the family has no layout"
        notebook = formats.read_notebook(content)
        if notebook is None:
            return "notebook without cells"
        tag = "<jupyter_script>" if self.settings.family == "starcoder2" else ""
        is_script = record.kind == "script"
        laid_out = tag + notebook.script if is_script else notebook.text
        if len(laid_out) > self.settings.max_file_bytes:
            return "huge"
        language = language_of_notebook(content) or language_named(notebook.language) or NOTEBOOK
        return laid_out, "script" if is_script else "notebook", language

    def _is_wanted(self, *names: str) -> bool:
        return not self.settings.languages or not set(names).isdisjoint(self.settings.languages)

    def _language(self, record: Record, data: bytes) -> str | None:
        mapped = mapped_language(record.path, self.settings.language_map)
        return mapped or record.language or language_of(record.path, data[:MAX_START_BYTES])

    def _change(self, record: Record, reader: TreeReader, after: str) -> str | None:
        if len(after) > MAX_COMMIT_FILE_BYTES or reason_to_drop(after, "Text", self.settings.filters):
            return None
        before = decode(reader.read(record.path, record.before, MAX_COMMIT_FILE_BYTES) or b"\0")
        return None if isinstance(before, str) else formats.commit(before.content, record.text, after)


def write_batch(target: Path, made: Sequence[tuple[Row, bytes]], dropped: Sequence[Dropped]) -> None:
    """Write the texts to `target`.bin and then, as the sign that all is there, the rest to `target`.json."""
    rows, offset = [], 0
    for row, _ in made:
        rows.append(asdict(replace(row, offset=offset)))
        offset += row.length
    write_whole(target.with_suffix(".bin"), b"".join(data for _, data in made))
    document = {"rows": rows, "dropped": [asdict(one) for one in dropped]}
    write_whole(target.with_suffix(".json"), json.dumps(document))


def read_batch(target: Path) -> Batch:
    """What `ingest` wrote."""
    document: dict[str, Any] = json.loads(target.with_suffix(".json").read_bytes())
    rows = tuple(Row(**{**row, "imports": tuple(row["imports"])}) for row in document["rows"])
    return Batch(rows, tuple(Dropped(**one) for one in document["dropped"]))


def compared_texts(target: Path, rows: tuple[Row, ...]) -> Iterator[str]:
    """What duplicates of a batch's rows are found by: the texts, but of commits what they say and change."""
    with target.with_suffix(".bin").open("rb") as file:
        for row in rows:
            file.seek(row.offset)
            text = file.read(row.length).decode()
            yield formats.changed_text(text) if row.kind == "commit" else text


def _blob_name(data: bytes) -> str:
    """The name git gives these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
