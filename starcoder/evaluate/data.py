"""Where the problems of a task come from: a file that is given, one that ships, or a checked download.

Files are JSON lines (`.jsonl`, `.jsonl.gz`), a JSON list, or parquet where pyarrow is installed. Downloads
are kept, and one whose checksum is known is refused when it differs.
"""

import gzip
import hashlib
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path

from starcoder.errors import ConfigError, MissingExtraError
from starcoder.evaluate.problems import Row
from starcoder.files import read_jsonl, write_whole

_CACHE = ".cache/starcoder/evaluate"  # in the home folder
_TIMEOUT_S = 60
_FORMATS = (".jsonl", ".jsonl.gz", ".json", ".parquet")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A file of problems: `url` of a file, or `hub` with the `pattern` of a file in that data set."""

    url: str = ""
    hub: str = ""
    pattern: str = "*"
    sha256: str = ""  # of the file; "" where no copy was at hand to pin it: results then still name theirs
    license: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """The rows of a file, and which file it was."""

    rows: tuple[Row, ...]
    sha256: str
    origin: str


def read(path: Path) -> Data:
    """The rows of a local file.

    Raises:
        ConfigError: no such file, or not rows of JSON.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read {str(path)!r}: {error.strerror}", "--dataset takes the path of a file of problems"
        ) from None
    return Data(rows=_rows(raw, path.name), sha256=hashlib.sha256(raw).hexdigest(), origin=str(path))


def fetch(source: Source, cache: Path | None = None) -> Data:
    """The rows of a source, from the cache of earlier downloads if it is there.

    Raises:
        ConfigError: no network, no such file, or its checksum is not the known one.
    """
    data = read(_from_hub(source) if source.hub else _download(source, cache or Path.home() / _CACHE))
    if source.sha256 and data.sha256 != source.sha256:
        raise ConfigError(
            f"{data.origin!r} has sha256 {data.sha256[:16]}..., expected {source.sha256[:16]}...",
            "delete it to download it again, or pass the file you trust with --dataset",
        )
    return Data(rows=data.rows, sha256=data.sha256, origin=source.url or f"hub: {source.hub}")


def _download(source: Source, cache: Path) -> Path:
    place = cache / hashlib.sha256(source.url.encode()).hexdigest()[:12] / source.url.rpartition("/")[2]
    if place.exists():
        return place
    try:
        with urllib.request.urlopen(source.url, timeout=_TIMEOUT_S) as answer:
            raw = answer.read()
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise ConfigError(
            f"cannot download {source.url}: {error}", "download it elsewhere and pass it with --dataset FILE"
        ) from None
    place.parent.mkdir(parents=True, exist_ok=True)
    write_whole(place, raw)
    return place


def _from_hub(source: Source) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        names = HfApi().list_repo_files(source.hub, repo_type="dataset")
        found = sorted(name for name in names if name.endswith(_FORMATS) and fnmatch(name, source.pattern))
        if not found:
            raise ConfigError(
                f"data set {source.hub!r} has no file {source.pattern!r}", "pass a file with --dataset"
            )
        return Path(hf_hub_download(source.hub, found[0], repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"cannot download data set {source.hub!r}: {reason}",
            "download it elsewhere and pass it with --dataset FILE",
        ) from None


def _rows(raw: bytes, name: str) -> tuple[Row, ...]:
    try:
        if name.endswith(".parquet"):
            return _parquet(raw)
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        rows = json.loads(raw) if raw.lstrip().startswith(b"[") else list(read_jsonl(raw, name))
    except (ValueError, OSError, EOFError) as error:
        raise ConfigError(
            f"{name!r} is not a file of problems: {error}",
            "it takes JSON lines, also gzipped, or a JSON list",
        ) from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{name!r} has no problems in it", "each line is one JSON object")
    return tuple(rows)


def _parquet(raw: bytes) -> tuple[Row, ...]:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("this data set is a Parquet file, which pyarrow reads", "parquet") from None
    return tuple(parquet.read_table(BytesIO(raw)).to_pylist())
