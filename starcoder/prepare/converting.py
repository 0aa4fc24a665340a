"""Lays out notebooks, commits and issues as the family saw them, with its tags as text in the document.

Sources: bigcode-project/bigcode-dataset: preprocessing/ and the StarCoder paper (arXiv 2305.06161, section
5) for notebooks and commits; arXiv 2402.19173, section 5, for issues and the talk below pull requests.
Tags that a text itself spells get a blank inside, and such commits are left out: layout stays unforgeable.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

TAGS = (
    *("jupyter_start", "jupyter_text", "jupyter_code", "jupyter_output", "empty_output", "jupyter_script"),
    *("commit_before", "commit_msg", "commit_after", "issue_start", "issue_comment", "issue_closed"),
    *("pr", "pr_status", "pr_comment", "fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "file_sep"),
    *("repo_name", "reponame", "filename", "gh_stars", "|endoftext|"),
)
_TAG = re.compile("|".join(re.escape(f"<{tag}>") for tag in TAGS))
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
    """The cells of a notebook's JSON, in `<jupyter_*>` layout; None: it is no notebook, or an empty one."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    cells = document.get("cells") if isinstance(document, dict) else None
    parts = []
    for cell in cells if isinstance(cells, list) else ():
        text = _joined(cell.get("source")) if isinstance(cell, dict) else ""
        if not text.strip():
            continue
        if cell.get("cell_type") == "code":
            output = "".join(_outputs(cell.get("outputs")))[:_MAX_OUTPUT]
            parts += ["<jupyter_code>", _plain(text), "<jupyter_output>", _plain(output) or "<empty_output>"]
        else:
            parts += ["<jupyter_text>", _plain(text)]
    return "".join(["<jupyter_start>", *parts]) if parts else None


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
    return f"<commit_before>{before}<commit_msg>{message}<commit_after>{after}"


def changed_text(document: str) -> str:
    """What a commit's document says that its file does not: the message and the lines that differ."""
    before, _, rest = document.removeprefix("<commit_before>").partition("<commit_msg>")
    message, _, after = rest.partition("<commit_after>")
    old, new = before.split("\n"), after.split("\n")
    differing = set(old) ^ set(new)
    return "\n".join([message, *(line for line in (*old, *new) if line in differing)])


def issues(export: str, name: str) -> Iterator[Issue | None]:
    """Issues and pull requests of a JSON export; None for each that cannot be read.

    The export is a list of objects as GitHub's API gives them, or one object a line: `title`, `body`,
    `user`, `number`, `state`, `pull_request`, and `comments` as a list. People become username_0, and so on.
    """
    try:
        rows = json.loads(export)
    except (ValueError, RecursionError):
        rows = [_object(line) for line in export.splitlines() if line.strip()]
    for row in rows if isinstance(rows, list) else [rows]:
        text = _issue(row) if isinstance(row, dict) else None
        repository = str(row.get("repository") or name) if isinstance(row, dict) else name
        yield Issue(str(row.get("number", "")), repository, text) if text else None


def holds_tags(*texts: str) -> bool:
    """Whether a text spells one of the family's tags."""
    return any(_TAG.search(text) for text in texts)


def _object(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _issue(row: Mapping[str, object]) -> str | None:
    title, body = str(row.get("title") or "").strip(), str(row.get("body") or "").strip()
    comments = row.get("comments")
    talk = [c for c in comments if isinstance(c, dict)] if isinstance(comments, list) else []
    people: dict[str, int] = {}

    def said(who: Mapping[str, object], text: str) -> str:
        number = people.setdefault(_login(who), len(people))
        return f"username_{number}: {_plain(text.strip())}"

    if not title:
        return None
    kind = "pr" if row.get("pull_request") else "issue"
    text = f"<{'pr' if kind == 'pr' else 'issue_start'}>Title: {_plain(title)}\n{said(row, body)}"
    text += "".join(f"<{kind}_comment>{said(c, str(c.get('body') or ''))}" for c in talk)
    logins = sorted((login for login in people if len(login) > 2), key=len, reverse=True)
    for login in logins:
        text = re.sub(rf"@{re.escape(login)}\b", f"@username_{people[login]}", text)
    if row.get("state") == "closed":
        text += "<pr_status>closed" if kind == "pr" else "<issue_closed>"
    return text


def _login(who: Mapping[str, object]) -> str:
    user = who.get("user") or who.get("author")
    return str(user.get("login", "")) if isinstance(user, dict) else str(user or "")


def _outputs(outputs: object) -> Iterator[str]:
    for output in outputs if isinstance(outputs, list) else ():
        if isinstance(output, dict):
            data = output.get("data")
            yield _joined(output.get("text") or (data.get("text/plain") if isinstance(data, dict) else ""))


def _joined(source: object) -> str:
    return "".join(map(str, source)) if isinstance(source, list) else str(source or "")


def _plain(text: str) -> str:
    """The text, with a blank inside what spells a tag."""
    return _TAG.sub(lambda match: f"< {match.group()[1:]}", text)
