"""Files and folders of a data set -> rows, with the place that each came from.

JSONL, JSON, Parquet, CSV, TSV and text, plain or compressed by gzip or zstd; text in UTF-8, or in UTF-16 or
UTF-32 with a byte-order mark. Other encodings are refused by name, for a guess would train on garbage. Only
"\\n" ends a line of JSON: U+2028 and the like are part of a string.

Limits: a file is held in memory as a whole.
"""

import codecs
import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from starcoder.errors import ConfigError, MissingExtraError
from starcoder.files import read_bytes
from starcoder.train.shapes import Row, type_name

Split = Literal["train", "validation", "test"]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt")
_COMPRESSED = (".gz", ".zst")
_TABLES = SUFFIXES[:-1]
_NAMES: Mapping[Split, str] = {
    "test": "test|tests|testing",
    "validation": "validation|valid|val|dev|held_out|eval|evaluation",
    "train": "train|training",
}
_SPLITS = {
    split: re.compile(rf"(^|[-_. ])({names})([-_. ]|$)", re.IGNORECASE) for split, names in _NAMES.items()
}
# Of text whose byte-order mark says so. UTF-32 first: its mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be trained on, where it is and why."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class FileRows:
    """The rows of one file, counted from 1 as its owner counts them."""

    path: Path
    rows: Sequence[Row]
    numbers: Sequence[int]  # of each row: the line of JSONL, else its place among the rows
    bad: tuple[BadRow, ...] = ()

    def place(self, at: int) -> str:
        return f"{self.path}, row {self.numbers[at]}"


def is_data_file(path: Path) -> bool:
    return data_suffix(path) in SUFFIXES


def data_suffix(path: Path) -> str:
    """The suffix that says what a file holds, without that of its compression."""
    return Path(path.stem).suffix.lower() if path.suffix in _COMPRESSED else path.suffix.lower()


def data_files(folder: Path) -> dict[Split, list[Path]]:
    """The files of a data set in a folder and its direct subfolders, by the split that names say they are of.

    A folder of tables has texts and the like beside them that describe it: only tables count there. A single
    JSON file counts if it is named after a split, or if it is the only table: others are settings.
    """
    if (folder / "dataset.json").is_file():  # what `prepare` wrote, next to tables of what it left out
        folder /= "data"
    files = sorted(
        file
        for pattern in ("*", "*/*")
        for file in folder.glob(pattern)
        if file.is_file() and is_data_file(file)
    )
    files = [
        file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]
    tables = [file for file in files if data_suffix(file) in _TABLES]
    sure = [f for f in tables if data_suffix(f) != ".json" or split_of(f.relative_to(folder)) is not None]
    found: dict[Split, list[Path]] = {"train": [], "validation": [], "test": []}
    for file in sure or tables:
        found[split_of(file.relative_to(folder)) or "train"].append(file)
    return found


def split_of(path: Path) -> Split | None:
    """The split that the name of a file, or of a folder it is in, says it is of; None: it says nothing."""
    for part in reversed(path.parts):
        name = part
        while Path(name).suffix in (*SUFFIXES, *_COMPRESSED):
            name = Path(name).stem
        for split, pattern in _SPLITS.items():
            if pattern.search(name):
                return split
    return None


def read_file(path: Path) -> FileRows:
    """The rows of one file, bad lines of JSONL and CSV apart.

    Raises:
        ConfigError: damaged, in another encoding, or of another form as a whole.
    """
    try:
        suffix = data_suffix(path)
        if suffix == ".parquet":
            return _numbered(path, _parquet(path))
        data = read_bytes(path)
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror or error}", "check --data") from None
    text = _decoded(data, path)
    match suffix:
        case ".jsonl" | ".ndjson":
            return _json_lines(path, text)
        case ".json":
            return _json(path, text)
        case ".csv" | ".tsv":
            return _csv(path, text, is_tsv=suffix == ".tsv")
    return _numbered(path, [{"content": text, "path": path.name}] if text.strip() else [])


def _numbered(path: Path, rows: Sequence[Row]) -> FileRows:
    return FileRows(path, rows, range(1, len(rows) + 1))


def _decoded(data: bytes, path: Path) -> str:
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        found = _encoding_of(data, error)
        raise ConfigError(
            f"{str(path)!r} is not {encoding.upper()}: byte {data[error.start]:#04x} "
            f"at {error.start:,}; {found}",
            f"data files are UTF-8 text that ends in {', '.join(SUFFIXES)}; to convert one: "
            "iconv -f WINDOWS-1252 -t UTF-8 FILE",
        ) from None
    if "\0" in text[:1000]:
        raise ConfigError(
            f"{str(path)!r} holds zero bytes: it is binary, or UTF-16 without a byte-order mark",
            "for UTF-16: iconv -f UTF-16LE -t UTF-8 FILE",
        )
    return text


def _encoding_of(data: bytes, error: UnicodeDecodeError) -> str:
    around = data[max(0, error.start - 2000) : error.start + 2000]
    if b"\0" in around or sum(byte < 9 for byte in around) > len(around) // 50:
        return "it is binary"
    return "it looks like Windows-1252 or Latin-1"


def _json_lines(path: Path, text: str) -> FileRows:
    rows: list[Row] = []
    numbers: list[int] = []
    bad: list[BadRow] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad.append(BadRow(f"{path}, row {number}", f"not JSON: {getattr(error, 'msg', error)}"))
            continue
        if isinstance(row, dict):
            rows.append(row)
            numbers.append(number)
        else:
            bad.append(BadRow(f"{path}, row {number}", f"{type_name(row)}, expected an object"))
    return FileRows(path, rows, numbers, tuple(bad))


def _json(path: Path, text: str) -> FileRows:
    """A list of objects, an object that holds one, or objects line by line."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = _json_lines(path, text)
        if lines.rows:
            return lines
        raise ConfigError(f"{str(path)!r} is not JSON: {error}", "write a list of objects") from None
    if isinstance(found, dict):
        lists = {name: value for name, value in found.items() if isinstance(value, list)}
        found = lists.get("train", next(iter(lists.values()), [found]) if len(lists) < 2 else None)
    if not isinstance(found, list):
        raise ConfigError(f"{str(path)!r} is not a list of JSON objects", "or write one object to a line")
    rows = [row for row in found if isinstance(row, dict)]
    numbers = [n for n, row in enumerate(found, 1) if isinstance(row, dict)]
    bad = [
        BadRow(f"{path}, row {n}", f"{type_name(row)}, expected an object")
        for n, row in enumerate(found, 1)
        if not isinstance(row, dict)
    ]
    return FileRows(path, rows, numbers, tuple(bad))


def _csv(path: Path, text: str, *, is_tsv: bool) -> FileRows:
    first = text.split("\n", 1)[0]
    outside = re.sub(r'"[^"]*"', "", first)
    delimiter = "\t" if is_tsv else max(",;\t|", key=lambda one: (outside.count(one), one == ","))
    limit = csv.field_size_limit(sys.maxsize)
    try:
        lines = csv.reader(_lines(text), delimiter=delimiter, strict=True)
        return _table(path, lines)
    except csv.Error as error:
        raise ConfigError(f"{str(path)!r} is not CSV: {error}", "quote fields as RFC 4180 says") from None
    finally:
        csv.field_size_limit(limit)


def _lines(text: str) -> Iterator[str]:
    """Lines as the csv module takes them, which joins those inside quotes."""
    return (f"{line}\n" for line in text.split("\n")) if "\n" in text else iter(text.split("\r"))


def _table(path: Path, lines: Iterable[list[str]]) -> FileRows:
    numbered = ((n, line) for n, line in enumerate(lines) if line)
    _, names = next(numbered, (0, []))
    if not all(name.strip() for name in names) or len({*names}) < len(names):
        raise ConfigError(
            f"{str(path)!r} has the columns {', '.join(map(repr, names))}; each needs a name of its own",
            "the first line names the columns",
        )
    rows: list[Row] = []
    numbers: list[int] = []
    bad: list[BadRow] = []
    for number, line in numbered:
        if len(line) == len(names):
            rows.append(dict(zip(names, line, strict=True)))
            numbers.append(number)
        else:
            bad.append(BadRow(f"{path}, row {number}", f"{len(line)} fields, expected {len(names)}"))
    return FileRows(path, rows, numbers, tuple(bad))


def _parquet(path: Path) -> Sequence[Row]:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("Parquet needs pyarrow", "train") from None
    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error}", "it may be damaged") from None
    return rows
