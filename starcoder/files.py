"""Files that several layers read and write: whole replacements, JSON lines, and what a model folder holds.

Limits: a replacement is one rename, so a reader sees the old file or the new one, but several files are not
replaced at once. `.zst` needs pyarrow.
"""

import gzip
import io
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from starcoder.errors import CheckpointError, ConfigError, MissingExtraError

# What a model folder holds besides its weights: patterns of `Path.glob`, which the hub understands too.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*",
    "dialogue_template.json",  # StarChat's
)
LFS_POINTER = b"version https://git-lfs"
FETCH_LFS = "run `git lfs pull` in its folder"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def bundled(name: str = "nano") -> Path:
    """The folder of a model that ships with the package."""
    return Path(__file__).parent / "bundled" / name


def model_files(folder: Path) -> Iterator[Path]:
    """The files of a model folder that are not weights: configuration, tokenizer, templates."""
    for pattern in MODEL_FILES:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())


def copy_model_files(source: Path, target: Path) -> None:
    """Copy everything but the weights and config.json, which whoever writes a model writes itself.

    Files of `target` with other names stay; each file is replaced whole.
    """
    for path in model_files(source):
        place = target / path.relative_to(source)
        if path.name == "config.json" or (place.exists() and place.samefile(path)):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with replace_atomically(place) as part:
            shutil.copyfile(path, part)


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; write a file or a folder there and it becomes `path`.

    What was written is flushed to the disk before it is moved. After an error nothing of it is left, and
    `path` is as it was, as it is if nothing was written. A folder replaces nothing but an empty folder.

    Raises:
        OSError: as from writing, or `path` is a folder with files in it.
    """
    part = path.with_name(f".{secrets.token_hex(6)}.part")
    part.touch()
    mode = part.stat().st_mode  # what the user's umask gives; some libraries write files only for their owner
    part.unlink()
    try:
        yield part
        if part.is_dir():
            for file in part.rglob("*"):
                if file.is_file():
                    _flush(file)
        elif part.exists():
            part.chmod(mode)
            _flush(part)
        else:
            return
        os.replace(part, path)
        if os.name == "posix":
            _flush(path.parent)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file, text as UTF-8, that is there as a whole or as it was before."""
    with replace_atomically(path) as part:
        part.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    hint = "the download may be partial; fetch the checkpoint again"
    try:
        text = path.read_bytes()
        value = json.loads(text.decode("utf-8-sig"))
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' is missing", "a model folder needs it") from None
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}", "check its permissions") from None
    except (ValueError, RecursionError) as error:
        if text.startswith(LFS_POINTER):
            raise CheckpointError(f"'{path}' is a Git LFS pointer", FETCH_LFS) from None
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"'{path}' is not JSON: {first}", hint) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' is not a JSON object", hint)
    return value


def require_space(path: Path, size_bytes: int) -> None:
    """Refuse to begin what the disk of `path` has no room for.

    Raises:
        ConfigError: with both numbers.
    """
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    total, _, free = shutil.disk_usage(folder)
    if total and free < size_bytes:  # /proc and the like have no size
        raise ConfigError(
            f"'{path}' takes {size_bytes / 1e6:,.0f} MB, and its disk has {free / 1e6:,.0f} MB left",
            "make room, or give a path on another disk",
        )


def read_bytes(path: Path) -> bytes:
    """A file's bytes, unpacked if it is compressed by gzip or zstd.

    Raises:
        ConfigError: damaged compression; zstd without pyarrow.
        OSError: the file cannot be read.
    """
    try:
        with _opened(path) as file:
            return file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{str(path)!r} is damaged: {error}", "fetch or write the file again") from None


def read_jsonl(
    source: Path | bytes, name: str = "", *, skips_torn_line: bool = False
) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines, a file or its bytes, plain or compressed by gzip or zstd.

    Only "\\n" ends a line: U+2028, form feeds and the like are part of a string. Blank lines are skipped.
    `name` is what errors call the source, the path if not given. `skips_torn_line` leaves out a last line
    without its line end that is not JSON: what a writer that was killed leaves.

    Raises:
        ConfigError: a line is not a JSON object, with its number; damaged compression; zstd without pyarrow.
        OSError: the file cannot be read.
    """
    name = name or str(source if isinstance(source, Path) else "the input")
    with _opened(source) as file:
        lines = enumerate(file, 1)
        while True:
            try:
                number, line = next(lines)
            except StopIteration:
                return
            except (EOFError, gzip.BadGzipFile) as error:
                raise ConfigError(f"{name!r} is damaged: {error}", "fetch or write the file again") from None
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            row = _object(line)
            if row is None and skips_torn_line and not line.endswith(b"\n"):
                return
            if row is None:
                raise ConfigError(f"{name}:{number} is not a JSON object", "each line is one JSON object")
            yield row


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file by JSON lines, compressed if its name ends in .gz or .zst; equal rows give equal bytes.

    Raises:
        ConfigError: .zst without pyarrow.
    """
    with replace_atomically(path) as part, part.open("wb") as raw, _compressed(raw, path.suffix) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")


def unix_newlines(text: str) -> str:
    """The text with "\\n" where it had "\\r\\n"."""
    return text.replace("\r\n", "\n")


def newline_of(text: str) -> Literal["\n", "\r\n"]:
    """The line end that most lines of a text have."""
    return "\r\n" if 2 * text.count("\r\n") > text.count("\n") else "\n"


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # ValueError: no JSON, no UTF-8, or an absurdly long number
        return None
    return row if isinstance(row, dict) else None


@contextmanager
def _opened(source: Path | bytes) -> Iterator[IO[bytes]]:
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as raw:
        start = raw.read(4)
        raw.seek(0)
        if start.startswith(_GZIP):
            with gzip.open(raw) as file:
                yield file  # type: ignore[misc]  # reads bytes, as IO[bytes] does
        elif start == _ZSTD:
            yield io.BytesIO(_unpacked(raw))
        else:
            yield raw


def _unpacked(raw: IO[bytes]) -> bytes:
    pyarrow = _pyarrow()
    try:
        with pyarrow.CompressedInputStream(raw, "zstd") as file:
            data: bytes = file.read()
    except OSError as error:
        raise ConfigError(f"the zstd file is damaged: {error}", "fetch or write the file again") from None
    return data


@contextmanager
def _compressed(raw: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    if suffix == ".gz":
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
            yield file  # type: ignore[misc]  # as above
    elif suffix == ".zst":
        with _pyarrow().CompressedOutputStream(raw, "zstd") as file:
            yield file
    else:
        yield raw


def _pyarrow() -> Any:
    try:
        import pyarrow  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError(".zst files need pyarrow", "parquet") from None
    return pyarrow


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
