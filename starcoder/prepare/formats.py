"""Lay out notebooks and commits as the family saw them, with its tags as text in the document.

Sources: bigcode-project/bigcode-dataset: preprocessing/; StarCoder paper (arXiv 2305.06161, section 5).
Tags that a text itself spells get a space inside, and such commits are left out: layout stays unforgeable.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from starcoder.layouts import Cell, holds_tags, parse_commit, without_tags, write_commit, write_notebook

_TRAILER = re.compile(
    r"^(Signed-off-by|Co-authored-by|Reviewed-by|Acked-by|Tested-by|Cc|Change-Id): .*$", re.M
)
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-_])")
_BOT = re.compile(
    r"\[bot\]|[-_]bot\b|\b(dependabot|renovate|greenkeeper|pre-commit-ci|github-actions|codecov|allcontributors"
    r"|mergify|bors|imgbot|weblate|transifex)\b",
    re.IGNORECASE,
)
_MERGE = re.compile(r"Merge (branch|pull request|remote|tag|commit|[\w/.-]+ into )|Merged in ", re.IGNORECASE)
# What GitHub's editor proposes, versions, and words without content.
_SAYS_NOTHING = re.compile(
    r"(update|create|delete|add|rename|edit|modify|change)[sd]? [`'\"]?[\w./-]+[`'\"]?\.?"
    r"|add files via upload|bump .*|v?\d+(\.\d+)+.*|(release|version) v?\d.*|wip\b.*"
    r"|initial commit|fixup!.*|squash!.*|\W*"
    r"|(minor |small |quick )?(fix|update|change|typo|cleanup|clean up|tweak)(e?s)?",
    re.IGNORECASE,
)
_MAX_OUTPUT = 2000  # characters of a cell's output that are kept
_MAX_CHANGED_LINES = 100
_MIN_MESSAGE = 10
_WINDOW = 30  # lines of the file before and behind a change


@dataclass(frozen=True, slots=True)
class Notebook:
    """What a notebook holds, without pictures and metadata."""

    cells: tuple[Cell, ...]
    language: str  # that a cell of format 3 names; "" if none does

    @property
    def text(self) -> str:
        """The cells in `<jupyter_*>` layout."""
        return write_notebook(self.cells)

    @property
    def script(self) -> str:
        """The code alone, with the text as comments."""
        parts = []
        for cell in self.cells:
            is_text = cell.output is None
            parts.append(
                "\n".join(f"# {line}".rstrip() for line in cell.text.split("\n")) if is_text else cell.text
            )
        return "\n\n".join(parts) + "\n"


def read_notebook(content: str) -> Notebook | None:
    """The notebook of a file, of format 3 or 4; None: it is none, or has no cells with text.

    Cells of one kind that follow one another are joined, code up to a cell that printed something. Of outputs
    the text stays, of errors their message; terminal colors and overwritten progress bars go.
    """
    document = _object(content)
    if not isinstance(document, dict):
        return None
    sheets = _dicts(document.get("worksheets")) or [document]
    raw = [cell for sheet in sheets for cell in _dicts(sheet.get("cells")) if _source(cell).strip()]
    cells: list[Cell] = []
    for cell in raw:
        text = without_tags(_source(cell))
        is_code = cell.get("cell_type") == "code"
        output = without_tags("".join(_outputs(cell.get("outputs")))[:_MAX_OUTPUT]) if is_code else None
        last = cells[-1] if cells else None
        if last is not None and (last.output is None) is not is_code and not last.output:
            cells[-1] = Cell(text=f"{last.text}\n{text}", output=output)
        else:
            cells.append(Cell(text=text, output=output))
    named = (str(cell["language"]) for cell in raw if isinstance(cell.get("language"), str))
    return Notebook(tuple(cells), next(named, "")) if cells else None


def commit(before: str, message: str, after: str) -> str | None:
    """A small change of one file as `<commit_before>`; None: it is too large, empty or badly described.

    Of the file the changed lines are shown with up to 30 lines before and behind.
    """
    message = _TRAILER.sub("", message).strip()
    if len(message) < _MIN_MESSAGE or before == after or holds_tags(before, message, after):
        return None
    old, new = before.split("\n"), after.split("\n")
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    end = 0
    while end < min(len(old), len(new)) - same and old[-1 - end] == new[-1 - end]:
        end += 1
    if max(len(old), len(new)) - same - end > _MAX_CHANGED_LINES:
        return None
    start, left = max(0, same - _WINDOW), max(0, end - _WINDOW)
    return write_commit(
        "\n".join(old[start : len(old) - left]), message, "\n".join(new[start : len(new) - left])
    )


def why_not_a_commit(author: str, message: str) -> str | None:
    """Why a commit teaches nothing, by its author and message; None: it may."""
    first = message.strip().partition("\n")[0].strip()
    if is_bot(author):
        return "commit of a bot"
    if _MERGE.match(first):
        return "merge commit"
    return "commit with a message that says nothing" if _SAYS_NOTHING.fullmatch(first) else None


def is_bot(name: str) -> bool:
    """Whether a login, or an author's name and address, is that of a program."""
    return _BOT.search(name) is not None


def changed_text(document: str) -> str:
    """What a commit's document says that its file does not: the message and the lines that differ."""
    before, message, after = parse_commit(document) or ("", document, "")
    old, new = before.split("\n"), after.split("\n")
    differing = set(old) ^ set(new)
    return "\n".join([message, *(line for line in (*old, *new) if line in differing)])


def _object(text: str) -> object:
    """The JSON of a text; None: it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _dicts(value: object) -> list[Mapping[str, object]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _source(cell: Mapping[str, object]) -> str:
    """A cell's text; that of a heading of format 3 as Markdown."""
    text = _joined(cell.get("source") if "source" in cell else cell.get("input"))
    level = cell.get("level")
    return f"{'#' * level} {text}" if cell.get("cell_type") == "heading" and isinstance(level, int) else text


def _outputs(outputs: object) -> Iterator[str]:
    for output in _dicts(outputs):
        data = output.get("data")
        plain = data.get("text/plain") if isinstance(data, dict) else ""
        if output.get("output_type") in ("error", "pyerr"):
            plain = f"{output.get('ename') or 'error'}: {output.get('evalue') or ''}\n"
        text = _ANSI.sub("", _joined(output.get("text") or plain))
        # What a terminal shows of a line that was written over.
        yield re.sub(r"[^\n]*\r(?=[^\n\r])", "", text.replace("\r\n", "\n")).replace("\r", "")


def _joined(source: object) -> str:
    return "".join(map(str, source)) if isinstance(source, list) else str(source or "")
