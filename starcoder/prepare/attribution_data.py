"""Reads what an attribution index is built from: a prepared dataset, JSON lines, or source files."""

import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from starcoder.errors import ConfigError, MissingExtraError
from starcoder.files import read_jsonl, unix_newlines
from starcoder.prepare.attribution import Document
from starcoder.repos.licenses import UNKNOWN, license_of_file
from starcoder.repos.skip import is_made
from starcoder.repos.walk import TreeReader, source_files, walk

if TYPE_CHECKING:
    Row = Mapping[str, object]

_DATA = re.compile(r"\.(parquet|jsonl|ndjson|arrow)(\.(gz|zst))?$")
MAX_FILE_BYTES = 1_000_000  # larger source files are data, not code
_COLUMNS = ("path", "repository", "package", "revision", "license", "content", "text")


def documents_of(data: Path) -> Iterator[Document]:
    """The documents of a file or folder, in a fixed order.

    A folder is a data set if `prepare` wrote it or if it holds Parquet or JSON lines and no source file;
    else its source files are read from the disk. The folder's name is then the repository; left out are
    hidden files, folders that tools make, what .gitignore names, links, binary files and files above 1 MB.

    Raises:
        ConfigError: nothing is there, or a row has no path or text.
    """
    if not data.exists():
        raise ConfigError(f"there is no {str(data)!r}", "name a dataset or a folder of source files")
    if data.is_file():
        files = [data]
    elif (data / "dataset.json").is_file():
        files = sorted((data / "data").glob("*.parquet"))
    else:
        found = source_files(data)
        files = [file for file in found if _DATA.search(file.name)]
        if len(files) < len(found) or not found:
            yield from _source_documents(data)
            return
    for file in files:
        for row in _parquet_rows(file) if file.suffix == ".parquet" else read_jsonl(file):
            yield _document(row, file)


def _document(row: "Row", file: Path) -> Document:
    def text(*names: str) -> str:
        return next((value for name in names if isinstance(value := row.get(name), str) and value), "")

    if not isinstance(row.get("path"), str) or not any(
        isinstance(row.get(n), str) for n in ("content", "text")
    ):
        raise ConfigError(f"a row of {str(file)!r} has no path or content", "expected what `prepare` writes")
    return Document(
        path=text("path"),
        text=text("content", "text"),
        repository=text("repository", "package"),
        revision=text("revision"),
        license=text("license") or UNKNOWN,
    )


def _parquet_rows(file: Path) -> "Iterator[Row]":
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtraError(
            f"Parquet files need {error.name}, which is not installed", "prepare"
        ) from None
    with parquet.ParquetFile(file) as opened:
        columns = [name for name in opened.schema_arrow.names if name in _COLUMNS]
        for batch in opened.iter_batches(batch_size=256, columns=columns):
            yield from batch.to_pylist()


def _source_documents(folder: Path) -> Iterator[Document]:
    for tree in walk(folder, worktree=True):
        reader = TreeReader(tree.folder)
        for file in tree.files:
            if is_made(file.path) or _DATA.search(file.path) or file.size > MAX_FILE_BYTES:
                continue
            text = _text(reader.read(file.path, file.blob, MAX_FILE_BYTES))
            if text:
                license = license_of_file(file.path, text, tree.licenses)
                yield Document(path=file.path, text=text, repository=tree.name, license=license)


def _text(data: bytes | None) -> str:
    """The text of a file; "" if it is none."""
    try:
        return "" if data is None or b"\0" in data else unix_newlines(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return ""
