"""Records to train on: from files, folders, source trees and the hub, and which of them are held out.

A row becomes a record by its shape (`starcoder.train.shapes`). A row that cannot be read is skipped, counted
and kept with its place and reason; more of them than a set share end the run before its first step. Records
are read from any place on, so that a run can resume; sets that are not streamed are held in memory or mapped
from disk by `datasets`.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from starcoder.errors import ConfigError, MissingExtraError
from starcoder.repos.walk import source_files
from starcoder.train.data_files import (
    SUFFIXES,
    BadRow,
    FileRows,
    data_files,
    data_suffix,
    is_data_file,
    read_file,
)
from starcoder.train.settings import SourceSettings
from starcoder.train.shapes import (
    Columns,
    Document,
    Infill,
    Kind,
    Pair,
    Record,
    Row,
    RowError,
    Shape,
    quoted,
    recognize,
)

# Text files that may lie next to a data set as well as next to code.
_PROSE = {".md", ".rst", ".txt", ".toml", ".yaml", ".yml"}
# Suffixes of source files in a folder that is no data set; prose is part of a code base, so Markdown is in.
_SOURCE = re.compile(
    r"\.(pyi?|m?[jt]s|[jt]sx|java|kt|scala|go|rs|[ch]|cc|[ch]pp|cxx|cs|rb|php|swift|mm?|lua|p[lm]|r|jl|hs|ml|exs?"
    r"|erl|clj|dart|sh|bash|ps1|sql|html|s?css|vue|svelte|ya?ml|toml|md|rst|cmake|tcl|vhdl|s?v|f90|ipynb|proto"
    r"|gradle|groovy|zig|nim)",
    re.IGNORECASE,
)
_MAX_SOURCE_BYTES = 1_000_000
_FIRST_ROWS = 50  # whose columns are a file's columns
_FIRST_STREAMED = 2000  # rows of a stream that are looked at before training
# Columns that say where a row comes from: nobody misses them in what is learned.
_METADATA = re.compile(
    r"(id|idx|index|uid|uuid|source|url|lang|language|licen[sc]e|split|path|repository|.*_id)"
)


class Rows(Protocol):
    """Records that can be read from any place on, in the order of an epoch."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    def place(self, number: int) -> str:
        """Where the record of a number comes from: file and row."""

    def read(self, epoch: int, start: int, count: int) -> list[tuple[int, Record]]:
        """Up to `count` records from `start` on in the epoch's order, with their numbers; [] at its end."""


class Table:
    """Records that are all there, in a new order each epoch.

    `weights` says how often an epoch holds each record: 1 once, 2 twice, 0.5 in every second epoch or so.
    """

    def __init__(
        self,
        records: Sequence[Record],
        columns: Iterable[str],
        *,
        seed: int,
        chosen: Sequence[int] | None = None,
        weights: Sequence[float] = (),
        places: Sequence[tuple[Path, int]] = (),
    ):
        """`chosen` numbers some of `records`; None chooses all. `weights` are of all records; () is 1.

        `places` are the records' files and rows.
        """
        self._records, self.columns, self._seed, self._places = records, tuple(columns), seed, places
        self._chosen = list(range(len(records)) if chosen is None else chosen)
        self._weights = weights
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return len(self._numbers(0))

    def _numbers(self, epoch: int) -> list[int]:
        """What the epoch holds; a record's second time has another number, for other random choices."""
        if not self._weights:
            return list(self._chosen)
        rng, size = random.Random(f"weights {self._seed} {epoch}"), len(self._records)
        return [
            n + size * time
            for n in self._chosen
            for time in range(int(self._weights[n]) + (rng.random() < self._weights[n] % 1))
        ]

    def read(self, epoch: int, start: int, count: int) -> list[tuple[int, Record]]:
        if self._order[0] != epoch:
            order = self._numbers(epoch)
            random.Random(f"rows {self._seed} {epoch}").shuffle(order)
            self._order = epoch, order
        numbers = self._order[1][start : start + count]
        return [(n, self._records[n % len(self._records)]) for n in numbers]

    def place(self, number: int) -> str:
        if not self._places:
            return f"record {number % len(self._records) + 1}"
        path, row = self._places[number % len(self._records)]
        return f"{path}, row {row}"

    def all(self) -> list[tuple[int, Record]]:
        """Every record once, with its number, in the order it was read."""
        return [(n, self._records[n]) for n in self._chosen]

    def part(self, chosen: Sequence[int]) -> "Table":
        return Table(
            self._records,
            self.columns,
            seed=self._seed,
            chosen=chosen,
            weights=self._weights,
            places=self._places,
        )


class Stream:
    """Records that come one after the other, as a streamed set of the hub has them; read once each epoch.

    Those of a `buffer` are shuffled, in a new way each epoch.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        columns: Iterable[str],
        record: Callable[[int, Row], Record | None],
        is_held: Callable[[Record], bool],
        *,
        buffer: int = 1,
        seed: int = 0,
    ):
        """`record` reads the row of a number, None if it is to be skipped."""
        self._rows, self.columns, self._record, self._is_held = rows, tuple(columns), record, is_held
        self._buffer, self._seed = buffer, seed
        self._at: tuple[int, int] = (0, 0)
        self._iterator = self._begin(0)

    def _begin(self, epoch: int) -> Iterator[tuple[int, Record]]:
        records = ((n, self._record(n, row)) for n, row in enumerate(self._rows))
        kept = ((n, one) for n, one in records if one is not None and not self._is_held(one))
        while window := list(islice(kept, self._buffer)):
            if self._buffer > 1:
                random.Random(f"stream {self._seed} {epoch} {window[0][0]}").shuffle(window)
            yield from window

    def place(self, number: int) -> str:
        return f"row {number + 1} of the stream"

    def read(self, epoch: int, start: int, count: int) -> list[tuple[int, Record]]:
        if self._at != (epoch, start):  # a resumed run, or the next epoch
            self._iterator = islice(self._begin(epoch), start, None)
        records = list(islice(self._iterator, count))
        self._at = (epoch, start + len(records))
        return records


@dataclass(frozen=True, slots=True)
class Sources:
    """What a run trains on and what it is measured on."""

    train: Rows
    validation: tuple[Record, ...]
    kinds: frozenset[Kind]
    num_documents: int | None  # of an epoch; None: streamed, so not known
    skipped: list[BadRow]  # a stream adds to them while it is read
    unused: tuple[str, ...] = ()  # columns of which nothing is learned


@dataclass(frozen=True, slots=True)
class _Part:
    """The records of one data set, before any are held out."""

    records: Sequence[Record]
    places: Sequence[tuple[Path, int]]
    validation: Sequence[Record] | None  # the set's own
    columns: tuple[str, ...]
    kinds: frozenset[Kind]
    num_rows: int
    bad: tuple[BadRow, ...]
    used: frozenset[str]


def read(settings: SourceSettings, *, seed: int = 0) -> Sources:
    """Find the rows, recognize their shape, and set some apart for validation.

    Raises:
        ConfigError: nothing there, an empty set, columns that are not there, or too many rows that cannot be
            read; the error lists the real columns, or the first row.
    """
    if not settings.data:
        raise ConfigError("there is no data to train on", "--data names a file, a folder or a hub id")
    if settings.streaming and not any(Path(one).expanduser().exists() for one in settings.data):
        return _streamed(settings, seed)
    parts = [_open(data, settings) for data in settings.data]
    _require_good(parts, settings)
    records = [record for part in parts for record in part.records]
    columns = tuple(dict.fromkeys(name for part in parts for name in part.columns))
    weights = [w for part, w in zip(parts, settings.weights, strict=False) for _ in part.records]
    if settings.weights and len(settings.weights) != len(parts):
        raise ConfigError(
            f"there are {len(settings.weights)} weights for {len(parts)} data sets",
            "give one for each --data",
        )
    places = [place for part in parts for place in part.places]
    table = Table(records, columns, seed=seed, weights=weights, places=places)
    skipped = [bad for part in parts for bad in part.bad]
    kinds = frozenset(kind for part in parts for kind in part.kinds)
    unused = _unused(parts)
    own = [record for part in parts for record in part.validation or ()]
    if settings.validation is not None:
        own_part = _open(settings.validation, settings)
        _require_good([own_part], settings)
        own, skipped = list(own_part.records), [*skipped, *own_part.bad]
    if own:
        held = tuple(own[: settings.validation_documents])
        return Sources(table, held, kinds, len(table), skipped, unused)
    held_numbers, kept = _split(records, settings)
    validation = tuple(records[n] for n in held_numbers[: settings.validation_documents])
    table = table.part(kept)
    return Sources(table, validation, kinds, len(table), skipped, unused)


def _unused(parts: Sequence[_Part]) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(
            name
            for part in parts
            if part.kinds != {"text"}
            for name in part.columns
            if name not in part.used and not _METADATA.fullmatch(name)
        )
    )


def _require_good(parts: Sequence[_Part], settings: SourceSettings) -> None:
    for data, part in zip(settings.data, parts, strict=False):
        if not part.num_rows:
            raise ConfigError(
                f"{data!r} holds no documents",
                f"give sources, or files with at least one row, which end in {', '.join(SUFFIXES)}",
            )
    bad = [one for part in parts for one in part.bad]
    num_rows = sum(part.num_rows for part in parts)
    if len(bad) > settings.max_skipped_share * num_rows or len(bad) == num_rows:
        more = f", and {len(bad) - 1:,} more of {num_rows:,} rows" if len(bad) > 1 else ""
        raise ConfigError(
            f"{bad[0].place}: {bad[0].reason}{more}",
            "mend the data, or raise --max-skipped-share to train without such rows",
        )


def _streamed(settings: SourceSettings, seed: int) -> Sources:
    if len(settings.data) > 1 or settings.weights:
        raise ConfigError("several data sets cannot be streamed", "leave out --streaming")
    (data,) = settings.data
    rows = _hub(data, settings)
    first = list(islice(rows, _FIRST_STREAMED))
    read = _Reader(first, settings, data)
    skipped: list[BadRow] = []

    def record(number: int, row: Row) -> Record | None:
        try:
            return read(row)
        except RowError as error:
            bad = BadRow(f"{data}, row {number + 1}", str(error))
            if bad not in skipped[-100:]:  # of an earlier epoch, or looked at before
                skipped.append(bad)
            return None

    def is_held(record: Record) -> bool:
        return _fraction(record) < settings.validation_share

    records = [found for n, row in enumerate(first) if (found := record(n, row)) is not None]
    _require_good(
        [_Part(records, (), None, read.columns, frozenset(), len(first), tuple(skipped), frozenset())],
        settings,
    )
    held = tuple([one for one in records if is_held(one)][: settings.validation_documents])
    stream = Stream(rows, read.columns, record, is_held, buffer=settings.shuffle_buffer, seed=seed)
    return Sources(stream, held, frozenset({read.shape.kind}), None, skipped)


class _Reader:
    """Reads the rows of one file: by its shape, or by a row's own where that is of the same kind."""

    def __init__(self, rows: Sequence[Row], settings: SourceSettings, where: str):
        """Raises: ConfigError: a chosen column is missing, or none of the known shapes fits."""
        first = [rows[n] for n in range(min(_FIRST_ROWS, len(rows)))]
        self.columns = tuple(dict.fromkeys(name for row in first for name in row if isinstance(name, str)))
        self._chosen = Columns(
            text=settings.text_column,
            prompt=settings.prompt_column,
            completion=settings.completion_column,
            messages=settings.messages_column,
        )
        try:
            found = recognize(first[0] if first else {}, self._chosen, self.columns)
        except ConfigError as error:
            raise ConfigError(f"{where!r}: {error.message}", error.hint) from None
        if found is None:
            raise ConfigError(
                f"{where!r} has none of the columns that are known; it has {quoted(self.columns)}",
                "name them with --text-column, --messages-column, or --prompt-column and --completion-column",
            )
        self.shape = found
        self._shapes: dict[tuple[str, ...], Shape] = {}

    def __call__(self, row: Row) -> Record:
        names = tuple(row)
        if names not in self._shapes:
            own = None if self._chosen != Columns() else recognize(row)
            self._shapes[names] = own if own is not None and own.kind == self.shape.kind else self.shape
        return self._shapes[names].read(row)


def _open(data: str, settings: SourceSettings) -> _Part:
    """A data set of a file, a folder or the hub."""
    path = Path(data).expanduser()
    if path.is_dir() and settings.subset is not None and data in settings.data:
        path /= settings.subset
        if not path.is_dir():
            raise ConfigError(f"{data!r} has no folder {settings.subset!r}", "--subset names one in --data")
    if path.is_file():
        return _part([_read(path)], None, settings)
    if path.is_dir():
        return _folder(path, data, settings)
    parent = Path(data).parent
    looks_local = (
        is_data_file(Path(data)) or data.startswith((".", "/", "~")) or (parent != Path() and parent.is_dir())
    )
    if data.count("/") != 1 or looks_local:
        raise ConfigError(f"there is no data at {data!r}", "--data names a file, a folder or a hub id")
    rows = _hub(data, settings)
    return _part([FileRows(Path(data), rows, range(1, len(rows) + 1))], None, settings)


def _read(path: Path) -> FileRows:
    if data_suffix(path) not in SUFFIXES and not _SOURCE.fullmatch(path.suffix):
        raise ConfigError(f"{str(path)!r} is of no known form", f"data files end in {', '.join(SUFFIXES)}")
    return read_file(path)


def _folder(path: Path, data: str, settings: SourceSettings) -> _Part:
    sources = list(_source_paths(path))
    has_code = any(source.suffix not in _PROSE for source in sources)
    files = {} if has_code else data_files(path)
    if not any(files.values()):
        # Next to code a text is more often a list of requirements than a document.
        rows = list(_read_sources(path, [s for s in sources if s.suffix != ".txt" or not has_code]))
        return _part([FileRows(path, rows, range(1, len(rows) + 1))], None, settings)
    if not files["train"]:
        raise ConfigError(
            f"{data!r} holds only files to validate or test on, which are not trained on",
            "name a file itself to train on it all the same",
        )
    return _part(list(map(_read, files["train"])), list(map(_read, files["validation"])), settings)


def _part(train: Sequence[FileRows], held: Sequence[FileRows] | None, settings: SourceSettings) -> _Part:
    bad: list[BadRow] = []
    columns: list[str] = []
    used: set[str] = set()
    kinds: set[Kind] = set()

    places: list[tuple[Path, int]] = []

    def records(file: FileRows) -> Sequence[Record]:
        bad.extend(file.bad)
        if not len(file.rows):
            return []
        read = _Reader(file.rows, settings, str(file.path))
        columns.extend(read.columns)
        used.update(read.shape.columns)
        kinds.add(read.shape.kind)
        found: list[Record] = []
        for at in range(len(file.rows)):
            try:
                found.append(read(file.rows[at]))
                places.append((file.path, file.numbers[at]))
            except RowError as error:
                bad.append(BadRow(file.place(at), str(error)))
        return found

    made = [record for file in train for record in records(file)]
    train_places, num_rows = list(places), len(made) + len(bad)
    own = None if not held else [record for file in held for record in records(file)]
    return _Part(
        records=made,
        places=train_places,
        validation=own,
        columns=tuple(dict.fromkeys(columns)),
        kinds=frozenset(kinds),
        num_rows=num_rows,
        bad=tuple(bad),
        used=frozenset(used),
    )


def _fraction(record: Record) -> float:
    """A number in [0, 1) drawn from what the record says, so that copies fall on one side of a split."""
    match record:
        case Document(text=text):
            said: object = text
        case Pair(prompt=prompt, completion=completion):
            said = [prompt, completion]
        case Infill():
            said = [record.prefix, record.middle, record.suffix]
        case _:
            said = asdict(record)
    text = json.dumps(said, sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def _split(records: Sequence[Record], settings: SourceSettings) -> tuple[list[int], list[int]]:
    """Numbers of the records to validate on and to train on; fewer than 10 are all trained on."""
    values = [_fraction(record) for record in records]
    distinct = sorted(set(values))
    num_held = round(len(distinct) * settings.validation_share)
    if len(distinct) < 10 or settings.validation_share <= 0:
        return [], list(range(len(records)))
    border = distinct[max(1, num_held)]
    held = [n for n, value in enumerate(values) if value < border]
    return held, [n for n, value in enumerate(values) if value >= border]


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
        except (OSError, UnicodeDecodeError):
            continue
        if content.strip():
            name = path.relative_to(folder).as_posix()
            yield {"content": content, "path": name, "repository": folder.resolve().name}


def _hub(name: str, settings: SourceSettings) -> Any:
    """A data set of the hub, or a format that `datasets` knows, streamed or mapped."""
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("data sets of the hub need datasets", "train") from None
    subset = settings.subset
    is_folder = subset is not None and "/" in subset
    chosen = {"data_dir": subset} if is_folder else {"name": subset}
    try:
        return datasets.load_dataset(name, split=settings.split, streaming=settings.streaming, **chosen)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).split("\n") or [type(error).__name__])[0]
        raise ConfigError(
            f"the data set {name!r} cannot be read: {first}",
            "check its name, subset and split; a gated one needs `hf auth login`",
        ) from None
