"""Writes the planned documents as Parquet shards, and as packed tokens in the layout of the family."""

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from starcoder.prepare.ingest import Row
from starcoder.prepare.plan import Placed, Plan, Split
from starcoder.prepare.settings import PrepareSettings
from starcoder.prepare.tables import pyarrow_modules, write_table
from starcoder.tokenizer import Tokenizer

COLUMNS = (
    *("repository", "path", "revision", "language", "license", "content", "kind", "blob", "encoding"),
    *("committed_at", "num_masked", "num_characters", "num_tokens"),
)
_NUMBERS = ("committed_at", "num_masked", "num_characters", "num_tokens")
_ROWS_AT_ONCE = 500
_MAX_OPEN = 64  # files of batches


class Writer:
    """Writes under `folder`; `targets` are the places of the batches by their numbers."""

    def __init__(
        self, folder: Path, targets: Sequence[Path], settings: PrepareSettings, tokenizer: Tokenizer
    ):
        self._folder, self._targets = folder, targets
        self._settings, self._tokenizer = settings, tokenizer

    def all(self, plan: Plan) -> None:
        """Write every shard that is not there yet."""
        for split, parts in plan.shards.items():
            for number, part in enumerate(parts):
                name = f"{split}-{number:05}-of-{len(parts):05}.parquet"
                path = self._folder / "data" / name
                if not path.exists():
                    write_table(path, self._document_tables(part))
            if self._settings.pack_tokens:
                path = self._folder / "packed" / "data" / f"{split}-00000-of-00001.parquet"
                if not path.exists():
                    write_table(path, self._token_tables(plan, split))

    def packed_rows(self) -> dict[str, int]:
        """Rows of packed tokens by split."""
        _, parquet = pyarrow_modules()
        found = sorted((self._folder / "packed" / "data").glob("*.parquet"))
        return {path.name.partition("-")[0]: parquet.read_metadata(path).num_rows for path in found}

    def _document_tables(self, part: tuple[Placed, ...]) -> Iterator[Any]:
        pyarrow, _ = pyarrow_modules()
        schema = pyarrow.schema(
            [(name, pyarrow.int64() if name in _NUMBERS else pyarrow.string()) for name in COLUMNS]
        )
        for rows in _chunks(self._texts(part)):
            yield pyarrow.Table.from_pylist([_record(row, text) for row, text in rows], schema=schema)

    def _texts(self, part: Iterable[Placed]) -> Iterator[tuple[Row, str]]:
        """The rows with their texts. Rows of a repository come in any order, so batches stay open."""
        files: dict[int, BinaryIO] = {}
        try:
            for number, row in part:
                if number not in files:
                    if len(files) >= _MAX_OPEN:
                        files.pop(next(iter(files))).close()
                    files[number] = self._targets[number].with_suffix(".bin").open("rb")
                files[number].seek(row.offset)
                yield row, files[number].read(row.length).decode()
        finally:
            for file in files.values():
                file.close()

    def _token_tables(self, plan: Plan, split: Split) -> Iterator[Any]:
        """Rows of exactly `pack_tokens` tokens; what is left at the end of a split is dropped."""
        pyarrow, _ = pyarrow_modules()
        length = self._settings.pack_tokens
        schema = pyarrow.schema([("input_ids", pyarrow.list_(pyarrow.int32()))])
        placed = (one for part in plan.shards[split] for one in part)
        left: list[int] = []
        for tokens in family_tokens(self._texts(placed), self._tokenizer, self._settings):
            left += tokens
            count = len(left) // length
            if count >= _ROWS_AT_ONCE:
                rows = [left[n * length : (n + 1) * length] for n in range(count)]
                left = left[count * length :]
                yield pyarrow.Table.from_pydict({"input_ids": rows}, schema=schema)
        rows = [left[n * length : (n + 1) * length] for n in range(len(left) // length)]
        yield pyarrow.Table.from_pydict({"input_ids": rows}, schema=schema)


def family_tokens(
    rows: Iterable[tuple[Row, str]], tokenizer: Tokenizer, settings: PrepareSettings
) -> Iterator[list[int]]:
    """The documents as the family was trained, end-of-text behind each; user text never makes a sentinel.

    Starcoder2 has a repository's files in one document, all with their paths or all without; StarCoder has
    each file with repository and path shown independently of one another; SantaCoder has the files alone.

    Source: arXiv 2402.19173, section 5; bigcode-dataset: preprocessing/add_content_with_meta.py.
    """
    s, encode = tokenizer.sentinels, tokenizer.encode
    open_repository: str | None = None  # whose document has not ended
    is_named = False
    for row, text in rows:
        rng = random.Random(f"layout {settings.seed} {row.repository} {row.path}")
        is_continued = row.kind == "file" and s.file_sep is not None and row.repository == open_repository
        if open_repository is not None and not is_continued:
            yield [s.eos]
            open_repository = None
        if row.kind != "file":
            yield [*tokenizer.encode_with_special(text), s.eos]
        elif s.file_sep is not None:
            if not is_continued:
                open_repository, is_named = row.repository, rng.random() < settings.shown_rate
                if is_named:
                    yield [*s.repository(encode, row.repository)]
            yield s.file(encode, row.path if is_named else "", text)
        else:
            given = {"repo": (s.repo_name, row.repository), "path": (s.filename, row.path)}
            shown = {
                name: value if tag is not None and rng.random() < settings.shown_rate else ""
                for name, (tag, value) in given.items()
            }
            header = s.header(encode, repo=shown["repo"], path=shown["path"])
            yield [*header.tags, *encode(header.line + text), s.eos]
    if open_repository is not None:
        yield [s.eos]


def _record(row: Row, text: str) -> dict[str, object]:
    return {
        "repository": row.repository,
        "path": row.path,
        "revision": row.revision,
        "language": row.language,
        "license": row.license,
        "content": text,
        "kind": row.kind,
        "blob": row.blob,
        "encoding": row.encoding,
        "committed_at": row.time,
        "num_masked": sum(row.masked.values()),
        "num_characters": row.num_characters,
        "num_tokens": row.num_tokens,
    }


def _chunks(rows: Iterable[tuple[Row, str]]) -> Iterator[list[tuple[Row, str]]]:
    chunk: list[tuple[Row, str]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _ROWS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
