"""`starcoder attribution`: which parts of a text occur verbatim in known source files."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from starcoder.cli.flags import Section
from starcoder.cli.options import OutputOptions
from starcoder.errors import ConfigError

if TYPE_CHECKING:
    from starcoder.prepare.attribution import Span

HELP = "Find which parts of a text occur verbatim in known source files."


def build(
    data: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    ignore_indentation: Annotated[bool, Parameter(negative=())] = False,
    printed: Annotated[OutputOptions, Section("Output")] = OutputOptions(),
) -> None:
    """Write the index of a data set or a folder of source files; secrets are masked first.

    The index is a folder about twice as large as the texts. It never leaves this
    machine, and `find` and `serve --attribution` read it without a network.

    $ starcoder attribution build data/mine
    $ starcoder attribution build ~/code/service --output ~/service.index

    Args:
        data: Folder that `prepare` wrote, Parquet or JSONL files, or source files.
        output: Folder of the index; by default `attribution` in the folder of the data.
        ignore_indentation: Match lines whatever their indentation is.
    """
    from starcoder.prepare import attribution
    from starcoder.prepare.attribution_data import documents_of

    printed.start_logging()
    folder = output or (data if data.is_dir() else data.parent) / "attribution"
    counts = attribution.build(documents_of(data), folder, ignore_indentation=ignore_indentation)
    if printed.json:
        print(json.dumps({"output": str(folder), **asdict(counts)}))
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
    min_characters: int | None = None,
    printed: Annotated[OutputOptions, Section("Output")] = OutputOptions(),
) -> None:
    """Show which spans of a file occur verbatim in the index, and where.

    Prints a line for each span: FILE:LINE:COLUMN, its length in characters, and the
    first sources that contain it, with their licenses.

    $ starcoder attribution find src/app.py --index data/mine/attribution
    $ git diff --cached | starcoder attribution find - --index data/mine/attribution

    Args:
        text: A file, or - for stdin.
        index: Folder that `attribution build` wrote.
        min_characters: Minimum length of a match in characters; 50 by default.
    """
    from starcoder.prepare.attribution import MIN_CHARACTERS, Index

    printed.start_logging()
    least = MIN_CHARACTERS if min_characters is None else min_characters
    if least < 1:
        raise ConfigError(f"min_characters is {least}; expected at least 1")
    content = _content(text)
    spans = Index(index).find(content, min_characters=least)
    if printed.json:
        print(json.dumps({"characters": len(content), "spans": [asdict(span) for span in spans]}))
        return
    for span in spans:
        print(_line("<stdin>" if text == "-" else text, content, span))
    if not spans:
        print(f"no match of {least} characters or more in the index", file=sys.stderr)


SUBVERBS = (build, find)


def _content(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {name!r}: {error.strerror}", "name a file, or - for stdin") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name!r} is not UTF-8 text", "name a source file") from None


def _line(name: str, content: str, span: "Span") -> str:
    line = content.count("\n", 0, span.start) + 1
    column = span.start - (content.rfind("\n", 0, span.start) + 1) + 1
    sources = ", ".join(
        f"{'/'.join(filter(None, (source.repository, source.path)))}:{source.line} ({source.license})"
        for source in span.sources
    )
    others = span.num_sources - len(span.sources)
    more = f" and {others} more" if others else ""
    return f"{name}:{line}:{column}: {span.end - span.start} characters: {sources}{more}"
