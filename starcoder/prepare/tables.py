"""Parquet tables of a prepared data set: documents, what was left out, and what was masked."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from starcoder.errors import ConfigError, MissingExtraError
from starcoder.files import replace_atomically
from starcoder.prepare.ingest import Row
from starcoder.prepare.plan import Plan
from starcoder.prepare.records import Dropped
from starcoder.prepare.secrets import mask
from starcoder.prepare.settings import PrepareSettings

DROPPED, MASKED = "dropped.parquet", "masked.parquet"
_ROWS_AT_ONCE = 500


def pyarrow_modules() -> tuple[Any, Any]:
    """pyarrow and its Parquet module.

    Raises:
        ConfigError: they are not installed.
    """
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("Parquet needs pyarrow", "prepare") from None
    return pyarrow, parquet


def require_pyarrow() -> None:
    """Raises: ConfigError: Parquet cannot be written here."""
    pyarrow_modules()


def write_table(path: Path, parts: Iterable[Any]) -> None:
    """Write the parts of a table one after the other, the file whole or not at all."""
    _, parquet = pyarrow_modules()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as file, ExitStack() as stack:
        writer = None
        for part in parts:
            if writer is None:
                options = {"compression": "zstd", "use_dictionary": True}
                writer = stack.enter_context(parquet.ParquetWriter(file, part.schema, **options))
            writer.write_table(part)


def write_dropped(folder: Path, dropped: Sequence[Dropped], settings: PrepareSettings) -> None:
    """Write which documents were left out and why. Paths are masked as those of documents are."""

    def masked(text: str) -> str:
        return mask(text.encode("utf-8", "replace").decode(), settings.secrets).text if text else ""

    rows = [
        {
            "repository": one.repository,
            "path": masked(one.path),
            "reason": one.reason,
            "detail": one.detail,
            "duplicate_of": one.duplicate_of,
        }
        for one in dropped
    ]
    _write_rows(folder / DROPPED, rows, ("repository", "path", "reason", "detail", "duplicate_of"))


def write_masked(folder: Path, plan: Plan) -> None:
    """Write how often which kind of secret was masked in which document."""
    rows = [
        {"repository": row.repository, "path": row.path, "document": row.kind, "kind": kind, "num": num}
        for split in plan.shards
        for row in plan.rows(split)
        for kind, num in sorted(row.masked.items())
    ]
    _write_rows(folder / MASKED, rows, ("repository", "path", "document", "kind", "num"))


def _write_rows(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    pyarrow, _ = pyarrow_modules()
    types = {name: pyarrow.int64() if name == "num" else pyarrow.string() for name in columns}
    values = {name: [row[name] for row in rows] for name in columns}
    write_table(path, [pyarrow.Table.from_pydict(values, schema=pyarrow.schema(types.items()))])


def read_documents(folder: Path) -> Iterator[list[tuple[Row, str]]]:
    """The documents of a prepared data set, some at a time, in the order in which they were written.

    Raises:
        ConfigError: the folder is none.
    """
    _, parquet = pyarrow_modules()
    files = sorted((folder / "data").glob("*.parquet"))
    if not files or not (folder / "dataset.json").is_file():
        raise ConfigError(f"{str(folder)!r} holds no prepared data set", "--base names what `prepare` wrote")
    for file in files:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=_ROWS_AT_ONCE):
                yield [(_row(one), one["content"]) for one in batch.to_pylist()]


def explain(folder: Path, path: str) -> list[dict[str, object]]:
    """What became of a file: each document or dropped input whose path is, or ends with, `path`.

    The path may begin with the repository's name.

    Raises:
        ConfigError: the folder holds no prepared data set, or nothing has that path.
    """
    _, parquet = pyarrow_modules()

    def is_meant(row: Mapping[str, Any]) -> bool:
        whole = f"/{row['repository']}/{row['path']}"
        return whole.endswith(f"/{path.strip('/')}")

    found: list[dict[str, object]] = []
    columns = ["repository", "path", "kind", "revision", "language", "license", "num_masked", "num_tokens"]
    for file in sorted((folder / "data").glob("*.parquet")):
        rows = filter(is_meant, parquet.read_table(file, columns=columns).to_pylist())
        found += [{"outcome": "kept", "split": file.name.partition("-")[0], **row} for row in rows]
    for name, outcome in ((DROPPED, "dropped"), (MASKED, "masked")):
        if (folder / name).is_file():
            rows = filter(is_meant, parquet.read_table(folder / name).to_pylist())
            found += [{"outcome": outcome, **{key: x for key, x in row.items() if x != ""}} for row in rows]
    if not found:
        raise ConfigError(
            f"nothing in {str(folder)!r} has the path {path!r}", "give the path in its repository, or its end"
        )
    return found


def _row(one: Mapping[str, Any]) -> Row:
    return Row(
        repository=one["repository"],
        path=one["path"],
        revision=one["revision"],
        language=one["language"],
        license=one["license"],
        kind=one["kind"],
        blob=one["blob"],
        encoding=one["encoding"],
        time=one["committed_at"],
        masked={},
        num_characters=one["num_characters"],
        num_tokens=one["num_tokens"],
        imports=(),
        length=len(one["content"].encode()),
    )
