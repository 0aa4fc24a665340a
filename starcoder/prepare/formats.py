"""Lays out notebooks, commits and issues as the family saw them, with its tags as text in the document.

Sources: bigcode-project/bigcode-dataset: preprocessing/ and the StarCoder paper (arXiv 2305.06161, section
5) for notebooks and commits; arXiv 2402.19173, section 5, for issues and the talk below pull requests.
Tags that a text itself spells get a blank inside, and such commits are left out: layout stays unforgeable.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from starcoder.layouts import (
    Cell,
    Talk,
    holds_tags,
    parse_commit,
    without_tags,
    write_commit,
    write_issue,
    write_notebook,
)

_TRAILER = re.compile(
    r"^(Signed-off-by|Co-authored-by|Reviewed-by|Acked-by|Tested-by|Cc|Change-Id): .*$", re.M
)
_MAX_OUTPUT = 2000  # characters of a cell's output that are kept
_MAX_CHANGED_LINES = 100
_MIN_MESSAGE = 10


@dataclass(frozen=True, slots=True)
class Issue:
    """An issue or pull request of an export."""

    number: str
    repository: str
    text: str = field(repr=False)


def notebook(content: str) -> str | None:
    """The cells of a notebook's JSON, in `<jupyter_*>` layout; None: it is no notebook, or an empty one.

    Cells of one kind that follow one another become one, whose output is that of the last.
    """
    document = _object(content)
    cells = document.get("cells") if isinstance(document, dict) else None
    shown: list[Cell] = []
    for is_code, group in groupby(_cells(cells), key=lambda cell: cell.get("cell_type") == "code"):
        run = list(group)
        text = without_tags("\n".join(_joined(cell.get("source")) for cell in run))
        output = without_tags("".join(_outputs(run[-1].get("outputs")))[:_MAX_OUTPUT]) if is_code else None
        shown.append(Cell(text=text, output=output))
    return write_notebook(shown) if shown else None


def commit(before: str, message: str, after: str) -> str | None:
    """A small change of one file as `<commit_before>`; None: it is too large, empty or badly described."""
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
    return write_commit(before, message, after)


def changed_text(document: str) -> str:
    """What a commit's document says that its file does not: the message and the lines that differ."""
    before, message, after = parse_commit(document) or ("", document, "")
    old, new = before.split("\n"), after.split("\n")
    differing = set(old) ^ set(new)
    return "\n".join([message, *(line for line in (*old, *new) if line in differing)])


def issues(export: str, name: str, *, has_pull_requests: bool = True) -> Iterator[Issue | None]:
    """Issues and pull requests of a JSON export; None for each that cannot be read.

    The export is a list of objects as GitHub's API gives them, or one object a line: `title`, `body`,
    `user`, `number`, `state`, `pull_request`, `merged_at`, `comments` as a list, and of pull requests `files`
    with `filename` and `patch`; those without files are the talk alone. People become username_0, and so on.
    Without `has_pull_requests`, as StarCoder was trained, pull requests are laid out like issues.
    """
    rows = _object(export)
    if rows is None:
        rows = [_object(line) for line in export.splitlines() if line.strip()]
    for row in rows if isinstance(rows, list) else [rows]:
        if not isinstance(row, dict):
            yield None
            continue
        repository = str(row.get("repository") or name)
        is_pull_request = has_pull_requests and bool(row.get("pull_request") or row.get("files"))
        text = _pull_request(row, repository) if is_pull_request else _issue(row)
        yield Issue(str(row.get("number", "")), repository, text) if text else None


def _object(text: str) -> object:
    """The JSON of a text; None: it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _issue(row: Mapping[str, object]) -> str | None:
    posts = _posts(row)
    return write_issue(Talk(posts=posts, is_closed=row.get("state") == "closed")) if posts else None


def _pull_request(row: Mapping[str, object], repository: str) -> str | None:
    """Source: arXiv 2402.19173, section 5: the proposal, its changes hunk by hunk, the talk, the end."""
    hunks = "".join(_changed_file(file) for file in _dicts(row.get("files")))
    changes = f"<pr_status>opened<repo_name>{without_tags(repository)}<pr_diff>{hunks}" if hunks else ""
    posts = _posts(row)
    if not posts:
        return None
    text = "<pr>" + "<pr_comment>".join([posts[0] + changes, *posts[1:]])
    if row.get("state") != "closed":
        return text
    return f"{text}<pr_status>closed<pr_is_merged>{bool(row.get('merged_at'))}"


def _changed_file(file: Mapping[str, object]) -> str:
    """A file of a pull request; "" without its hunks, which GitHub leaves out of large and binary ones."""
    hunks = [hunk for hunk in re.split(r"^(?=@@ )", str(file.get("patch") or ""), flags=re.M) if hunk.strip()]
    shown = "".join(f"<pr_diff_hunk>{without_tags(hunk)}" for hunk in hunks)
    return f"<pr_file>{without_tags(str(file.get('filename') or ''))}{shown}" if hunks else ""


def _posts(row: Mapping[str, object]) -> tuple[str, ...]:
    """Title and text, then the comments, with people under numbers instead of names; () without a title."""
    title, body = str(row.get("title") or "").strip(), str(row.get("body") or "").strip()
    people: dict[str, int] = {}

    def post(who: Mapping[str, object], text: str) -> str:
        number = people.setdefault(_login(who), len(people))
        return f"username_{number}: {without_tags(text.strip())}"

    if not title:
        return ()
    posts = [f"Title: {without_tags(title)}\n{post(row, body)}"]
    posts += [post(c, str(c.get("body") or "")) for c in _dicts(row.get("comments"))]
    for login in sorted((login for login in people if len(login) > 2), key=len, reverse=True):
        name, number = rf"@{re.escape(login)}\b", people[login]
        posts = [re.sub(name, f"@username_{number}", text) for text in posts]
    return tuple(posts)


def _dicts(value: object) -> list[Mapping[str, object]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _cells(cells: object) -> Iterator[Mapping[str, object]]:
    """Those that hold something."""
    return (cell for cell in _dicts(cells) if _joined(cell.get("source")).strip())


def _login(who: Mapping[str, object]) -> str:
    user = who.get("user") or who.get("author")
    return str(user.get("login", "")) if isinstance(user, dict) else str(user or "")


def _outputs(outputs: object) -> Iterator[str]:
    for output in _dicts(outputs):
        data = output.get("data")
        yield _joined(output.get("text") or (data.get("text/plain") if isinstance(data, dict) else ""))


def _joined(source: object) -> str:
    return "".join(map(str, source)) if isinstance(source, list) else str(source or "")
