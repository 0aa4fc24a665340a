"""`starcoder attribution`: which parts of a text stand verbatim in known source files."""

import json as json_format
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from starcoder.errors import ConfigError

if TYPE_CHECKING:
    from starcoder.prepare.attribution import Span

_FLAG = Parameter(show_default=False)


def build(
    data: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    json: Annotated[bool, _FLAG] = False,
) -> None:
    """Write the index of a dataset or a folder of source files; secrets are masked before.

    The index is a folder about twice as large as the texts. It never leaves this
    machine, and `find` and `serve --attribution` read it without any network.

    $ starcoder attribution build data/mine
    $ starcoder attribution build ~/code/service --output ~/service.index

    Args:
        data: A folder that `prepare` wrote, Parquet or JSONL files, or source files.
        output: Folder of the index; `attribution` in the data's folder if not given.
        json: Print one JSON document instead of text.
    """
    from starcoder.prepare import attribution
    from starcoder.prepare.attribution_data import documents_of

    folder = output or (data if data.is_dir() else data.parent) / "attribution"
    counts = attribution.build(documents_of(data), folder)
    if json:
        print(json_format.dumps({"output": str(folder), **asdict(counts)}))
        return
    print(
        f"{counts.num_documents:,} documents, {counts.num_bytes / 1e6:,.1f} MB, "
        f"{counts.num_masked:,} secrets and addresses masked, written to {folder}"
    )


def find(
    text: str,
    /,
    *,
    index: Annotated[Path, Parameter(alias="-i")],
    min_characters: int = 50,
    json: Annotated[bool, _FLAG] = False,
) -> None:
    """Show which spans of a file stand verbatim in the index, and where.

    A line for each span: FILE:LINE:COLUMN, its characters, and the first places
    that hold it with their licenses.

    $ starcoder attribution find src/app.py --index data/mine/attribution
    $ git diff --cached | starcoder attribution find - --index data/mine/attribution

    Args:
        text: A file, or - for stdin.
        index: Folder that `attribution build` wrote.
        min_characters: Spans shorter than this are not told.
        json: Print one JSON document instead of text.
    """
    from starcoder.prepare.attribution import Index

    if min_characters < 1:
        raise ConfigError(f"min_characters is {min_characters}; expected at least 1")
    content = _content(text)
    spans = Index(index).find(content, min_characters=min_characters)
    if json:
        print(json_format.dumps({"characters": len(content), "spans": [asdict(span) for span in spans]}))
        return
    for span in spans:
        print(_told("<stdin>" if text == "-" else text, content, span))
    if not spans:
        print(f"nothing of {min_characters} characters or more stands in the index", file=sys.stderr)


def _content(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {name!r}: {error.strerror}", "name a file, or - for stdin") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name!r} is not UTF-8 text", "name a source file") from None


def _told(name: str, content: str, span: "Span") -> str:
    line = content.count("\n", 0, span.start) + 1
    column = span.start - (content.rfind("\n", 0, span.start) + 1) + 1
    places = ", ".join(
        f"{'/'.join(filter(None, (source.repository, source.path)))}:{source.line} ({source.license})"
        for source in span.sources
    )
    others = span.num_sources - len(span.sources)
    more = f" and {others} more" if others else ""
    return f"{name}:{line}:{column}: {span.end - span.start} characters: {places}{more}"


HELP = "Find which parts of a text occur verbatim in known source files."
SUBVERBS = (build, find)
