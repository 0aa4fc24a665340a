"""Rows to train on: from local files and folders, source trees and the hub, and which of their columns count.

A row is a document's columns by name. Rows are read from any place on, so that a run can resume; sets that
are not streamed are held in memory or mapped from disk by `datasets`.
"""

import csv
import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from starcoder.errors import ConfigError, MissingExtraError
from starcoder.files import read_jsonl
from starcoder.repos.walk import source_files
from starcoder.train.settings import SourceSettings

Row = Mapping[str, object]

_SUFFIXES = {".jsonl", ".json", ".parquet", ".csv", ".txt"}
_TRAIN = re.compile(r"train([-_.].*)?")
_VALIDATION = re.compile(r"(valid(ation)?|val|dev|held_out|eval)([-_.].*)?")
# May stand beside a data set as well as beside code.
_PROSE = {".md", ".rst", ".txt", ".toml", ".yaml", ".yml"}
# Suffixes of source files in a folder that is no data set; prose is code's neighbour, so Markdown is in.
_SOURCE = re.compile(
    r"\.(pyi?|m?[jt]s|[jt]sx|java|kt|scala|go|rs|[ch]|cc|[ch]pp|cxx|cs|rb|php|swift|mm?|lua|p[lm]|r|jl|hs|ml|exs?"
    r"|erl|clj|dart|sh|bash|ps1|sql|html|s?css|vue|svelte|ya?ml|toml|md|rst|cmake|tcl|vhdl|s?v|f90|ipynb|proto"
    r"|gradle|groovy|zig|nim)",
    re.IGNORECASE,
)
_MAX_SOURCE_BYTES = 1_000_000
_PAIRS = (
    *(("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("question", "response")),
    *(("instruction", "output"), ("instruction", "response"), ("input", "output")),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What kind of documents the rows are, and the columns they are made from."""

    kind: Literal["text", "pair", "messages", "preference"]
    columns: tuple[str, ...]


class Rows(Protocol):
    """Rows that can be read from any place on, in the order of an epoch."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    def read(self, epoch: int, start: int, count: int) -> list[tuple[int, Row]]:
        """Up to `count` rows from place `start` of the epoch's order, with their numbers; [] at its end."""


class Table:
    """Rows that are all there, shuffled anew each epoch."""

    def __init__(self, rows: Sequence[Row], columns: Iterable[str], *, seed: int, chosen: Sequence[int] = ()):
        """`chosen` numbers some of `rows`; all of them if empty."""
        self._rows, self.columns, self._seed = rows, tuple(columns), seed
        self._chosen = list(chosen) or list(range(len(rows)))
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, epoch: int, start: int, count: int) -> list[tuple[int, Row]]:
        if self._order[0] != epoch:
            order = list(self._chosen)
            random.Random(f"rows {self._seed} {epoch}").shuffle(order)
            self._order = epoch, order
        return [(n, self._rows[n]) for n in self._order[1][start : start + count]]

    def all(self) -> list[Row]:
        """Every row in the order it was read."""
        return [self._rows[n] for n in self._chosen]

    def part(self, chosen: Sequence[int]) -> "Table":
        return Table(self._rows, self.columns, seed=self._seed, chosen=chosen)


class Stream:
    """Rows that come one after the other, as a streamed set of the hub has them; read once each epoch.

    Those of a `buffer` are shuffled, anew each epoch.
    """

    def __init__(
        self, rows: Iterable[Row], columns: Iterable[str], skip: "Skip", *, buffer: int = 1, seed: int = 0
    ):
        self._rows, self.columns, self._skip = rows, tuple(columns), skip
        self._buffer, self._seed = buffer, seed
        self._at: tuple[int, int] = (0, 0)
        self._iterator = self._begin(0)

    def _begin(self, epoch: int) -> Iterator[tuple[int, Row]]:
        kept = ((n, row) for n, row in enumerate(self._rows) if not self._skip(row))
        while window := list(islice(kept, self._buffer)):
            if self._buffer > 1:
                random.Random(f"stream {self._seed} {epoch} {window[0][0]}").shuffle(window)
            yield from window

    def read(self, epoch: int, start: int, count: int) -> list[tuple[int, Row]]:
        if self._at != (epoch, start):  # a resumed run, or the next epoch
            self._iterator = islice(self._begin(epoch), start, None)
        rows = list(islice(self._iterator, count))
        self._at = (epoch, start + len(rows))
        return rows


class Skip(Protocol):
    """Whether a row is left out of training because it is for validation."""

    def __call__(self, row: Row) -> bool: ...


@dataclass(frozen=True, slots=True)
class Sources:
    """What a run trains on and what it is measured on."""

    train: Rows
    validation: tuple[Row, ...]
    shape: Shape
    num_documents: int | None  # None: streamed, so not known


def read(settings: SourceSettings, *, seed: int = 0) -> Sources:
    """Find the rows, recognise their shape, and set some apart for validation.

    Raises:
        ConfigError: nothing there, an empty set, or columns that are not there; the real ones are listed.
    """
    if not settings.data:
        raise ConfigError("there is no data to train on", "--data names a file, a folder or a hub id")
    if settings.streaming and not Path(settings.data).expanduser().exists():
        return _streamed(settings, seed)
    rows, own = _open(settings.data, settings)
    shape, columns = _recognised(rows, settings, settings.data)
    table = Table(rows, columns, seed=seed)
    if settings.validation is not None:
        own = _open(settings.validation, settings)[0]
        _recognised(own, settings, settings.validation)
    if own is not None and len(own):
        return Sources(table, _at_most(own, settings.validation_documents), shape, len(table))
    held, kept = _split(rows, shape, settings)
    validation = _at_most([rows[n] for n in held], settings.validation_documents)
    return Sources(table.part(kept), validation, shape, len(kept))


def recognise(columns: Sequence[str], settings: SourceSettings, where: str) -> Shape:
    """The shape of rows with these columns.

    Raises:
        ConfigError: a column that was asked for is missing, or none of the known shapes fits.
    """
    asked = {
        "messages": (settings.messages_column,),
        "pair": (settings.prompt_column, settings.completion_column),
        "text": (settings.text_column,),
    }
    there = ", ".join(map(repr, columns))
    for name in (name for names in asked.values() for name in names if name and name not in columns):
        raise ConfigError(f"{where!r} has no column {name!r}", f"its columns are {there}")
    if bool(settings.prompt_column) != bool(settings.completion_column):
        raise ConfigError("prompts and completions go together", f"name both columns, among {there}")
    kinds: tuple[Literal["messages", "pair", "text"], ...] = ("messages", "pair", "text")
    for kind in kinds:
        if all(asked[kind]):
            return Shape(kind, tuple(name for name in asked[kind] if name))
    for accepted in ("accepted", "chosen"):
        if {accepted, "rejected"} <= set(columns):
            prompt = "prompt" if "prompt" in columns else "prefix"
            return Shape("preference", (prompt, accepted, "rejected"))
    for name in ("messages", "conversations"):
        if name in columns:
            return Shape("messages", (name,))
    for pair in _PAIRS:
        if set(pair) <= set(columns):
            return Shape("pair", pair)
    for name in ("content", "text", "code"):
        if name in columns:
            return Shape("text", (name,))
    raise ConfigError(
        f"{where!r} has none of the columns that are known; it has {there}",
        "name them with --text-column, --messages-column, or --prompt-column and --completion-column",
    )


def _streamed(settings: SourceSettings, seed: int) -> Sources:
    rows = _hub(settings.data, settings)
    first = list(islice(rows, 2000))
    shape, columns = _recognised(first, settings, settings.data)

    def is_held(row: Row) -> bool:
        return _fraction(row, shape) < settings.validation_share

    validation = _at_most([row for row in first if is_held(row)], settings.validation_documents)
    stream = Stream(rows, columns, is_held, buffer=settings.shuffle_buffer, seed=seed)
    return Sources(stream, validation, shape, None)


def _recognised(rows: Sequence[Row], settings: SourceSettings, where: str) -> tuple[Shape, tuple[str, ...]]:
    if not len(rows):
        hint = f"give sources, or files with at least one row, which end in {', '.join(sorted(_SUFFIXES))}"
        raise ConfigError(f"{where!r} holds no documents", hint)
    columns = tuple(dict.fromkeys(name for n in range(min(50, len(rows))) for name in rows[n]))
    return recognise(columns, settings, where), columns


def _at_most(rows: Sequence[Row], limit: int | None) -> tuple[Row, ...]:
    return tuple(rows[n] for n in range(len(rows) if limit is None else min(limit, len(rows))))


def _fraction(row: Row, shape: Shape) -> float:
    """A number in [0, 1) drawn from what the document says, so that copies fall on one side of a split."""
    text = json.dumps([row.get(name) for name in shape.columns], sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def _split(rows: Sequence[Row], shape: Shape, settings: SourceSettings) -> tuple[list[int], list[int]]:
    """Numbers of the rows to validate on and to train on; fewer than 10 documents are all trained on."""
    values = [_fraction(rows[n], shape) for n in range(len(rows))]
    distinct = sorted(set(values))
    num_held = round(len(distinct) * settings.validation_share)
    if len(distinct) < 10 or settings.validation_share <= 0:
        return [], list(range(len(rows)))
    border = distinct[max(1, num_held)]
    held = [n for n, value in enumerate(values) if value < border]
    return held, [n for n, value in enumerate(values) if value >= border]


def _open(data: str, settings: SourceSettings) -> tuple[Sequence[Row], Sequence[Row] | None]:
    """The training rows, and those that the set itself has for validation."""
    path = Path(data).expanduser()
    if path.is_dir() and settings.subset is not None and data == settings.data:
        path /= settings.subset
        if not path.is_dir():
            raise ConfigError(f"{data!r} has no folder {settings.subset!r}", "--subset names one in --data")
    if path.is_file():
        return _read_file(path), None
    if path.is_dir():
        sources = list(_source_paths(path))
        has_code = any(source.suffix not in _PROSE for source in sources)
        files = [] if has_code else _data_files(path)
        if not files:
            # Beside code a text is more often a list of requirements than a document.
            return list(_read_sources(path, [s for s in sources if s.suffix != ".txt" or not has_code])), None
        held = [file for file in files if _is_validation(file.relative_to(path))]
        train = [file for file in files if file not in held]
        return _read_files(train), _read_files(held) if held else None
    if data.count("/") != 1 or data.startswith((".", "/", "~")):
        raise ConfigError(f"there is no data at {data!r}", "--data names a file, a folder or a hub id")
    return _hub(data, settings), None


def _data_files(folder: Path) -> list[Path]:
    """Files of a data set: JSONL or Parquet, files named after a split, else CSV."""
    if (folder / "dataset.json").is_file():  # what `prepare` wrote, next to tables of what it left out
        folder /= "data"
    files = sorted(f for pattern in ("*", "*/*") for f in folder.glob(pattern) if f.suffix in _SUFFIXES)
    found = [f for f in files if f.suffix in (".jsonl", ".parquet")]
    named = [
        f
        for f in files
        if f.suffix in (".csv", ".json") and (_TRAIN.fullmatch(f.name) or _is_validation(Path(f.name)))
    ]
    return [*found, *named] or [f for f in files if f.suffix == ".csv"]


def _is_validation(path: Path) -> bool:
    return any(_VALIDATION.fullmatch(part) for part in path.parts)


def _read_files(files: Sequence[Path]) -> list[Row]:
    return [row for file in files for row in _read_file(file)]


def _read_file(path: Path) -> list[Row]:
    match path.suffix:
        case ".jsonl":
            return list(read_jsonl(path))
        case ".json":
            return _read_json(path)
        case ".parquet":
            return _read_parquet(path)
        case ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file))
    try:
        return [{"content": path.read_text(encoding="utf-8"), "path": path.name}]
    except UnicodeDecodeError:
        raise ConfigError(
            f"{str(path)!r} is no text", f"data files end in {', '.join(sorted(_SUFFIXES))}"
        ) from None


def _read_json(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return list(read_jsonl(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{str(path)!r} is not a list of JSON objects", "or write one object to a line")
    return rows


def _read_parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]
    except ImportError:
        raise _extra("Parquet needs pyarrow") from None
    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error}", "it may be damaged") from None
    return rows


def _source_paths(folder: Path) -> Iterator[Path]:
    """The source files of a tree, and its texts."""
    for path in source_files(folder, max_bytes=_MAX_SOURCE_BYTES):
        if _SOURCE.fullmatch(path.suffix) or path.suffix == ".txt":
            yield path


def _read_sources(folder: Path, paths: Iterable[Path]) -> Iterator[Row]:
    """Sources of a tree with their paths in it; what is empty or no UTF-8 is left out."""
    for path in paths:
        try:
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if content.strip():
            name = path.relative_to(folder).as_posix()
            yield {"content": content, "path": name, "repository": folder.resolve().name}


def _hub(name: str, settings: SourceSettings) -> Any:
    """A data set of the hub, or a format that `datasets` knows, streamed or mapped."""
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise _extra("data sets of the hub need datasets") from None
    subset = settings.subset
    is_folder = subset is not None and "/" in subset
    chosen = {"data_dir": subset} if is_folder else {"name": subset}
    try:
        return datasets.load_dataset(name, split=settings.split, streaming=settings.streaming, **chosen)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"the data set {name!r} cannot be read: {first}",
            "check its name, subset and split; a gated one needs `hf auth login`",
        ) from None


def _extra(what: str) -> ConfigError:
    return MissingExtraError(what, "train")
