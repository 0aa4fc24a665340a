"""Reads what an attribution index is built from: a prepared dataset, JSON lines, or source files."""

import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from starcoder.errors import ConfigError, MissingExtraError
from starcoder.files import read_jsonl
from starcoder.prepare.attribution import Document
from starcoder.repos.licenses import UNKNOWN, license_of_file, licenses_of_tree

if TYPE_CHECKING:
    Row = Mapping[str, object]

MAX_FILE_BYTES = 1_000_000  # larger source files are data, not code
_COLUMNS = ("path", "repository", "package", "revision", "license", "content", "text")


def documents_of(data: Path) -> Iterator[Document]:
    """The documents of a file or folder, in a fixed order.

    Parquet files of a folder go before its JSON lines, those before its source files. Of a source file the
    folder's name is the repository; hidden folders, binary files and files above 1 MB are left out.

    Raises:
        ConfigError: nothing is there, or a row has no path or text.
    """
    if not data.exists():
        raise ConfigError(f"there is no {str(data)!r}", "name a dataset or a folder of source files")
    in_folder = sorted(data.rglob("*.parquet")) or sorted(data.glob("*.jsonl"))
    files = [data] if data.is_file() else in_folder
    if not files:
        yield from _source_files(data)
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


def _source_files(folder: Path) -> Iterator[Document]:
    paths: list[str] = []
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "documents.npy" in names and "index.json" in names:
            continue  # an index of ours
        paths += [Path(current, name).relative_to(folder).as_posix() for name in sorted(names)]
    licenses = licenses_of_tree(paths, lambda path: _source_text(folder / path) or "")
    for path in paths:
        text = _source_text(folder / path)
        if text is not None:
            license = license_of_file(path, text, licenses)
            yield Document(path=path, text=text, repository=folder.resolve().name, license=license)


def _source_text(path: Path) -> str | None:
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            return None
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return None if "\0" in text else text
