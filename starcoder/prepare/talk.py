"""Lay out issues and pull requests of exports as the family saw them, with people under numbers.

Read are lists of objects, or one object a line, as GitHub's API, `gh issue list --json` and GitLab's API
write them, also under `items`, `issues`, `nodes` or `data`. Source of the layout: arXiv 2402.19173,
section 5.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from starcoder.files import unix_newlines
from starcoder.layouts import Talk, without_tags, write_issue
from starcoder.prepare.formats import is_bot

log = logging.getLogger(__name__)

_TEMPLATE = re.compile(r"<!--.*?-->|^[ \t]*[-*] \[ \][^\n]*(?:\n|\Z)", re.S | re.M)
_ADDRESS = re.compile(
    r"https?://[^/]+/(?:api/v\d/|repos/)*(?P<name>[\w.-]+(?:/[\w.-]+)+?)(?:/-)?"
    r"(?:/(?:issues|pulls?|merge_requests)/\d+)?/?"
)


@dataclass(frozen=True, slots=True)
class Issue:
    """An issue or pull request of an export."""

    number: str
    repository: str
    text: str = field(repr=False)


def issues(export: str, name: str, *, has_pull_requests: bool = True) -> Iterator[Issue | str]:
    """Issues and pull requests of a JSON export; the reason for each that is left out.

    People become username_0, username_1 and so on; what programs wrote is left out. Pull requests have their
    changes where the export has `files` with `patch`, or GitLab's `changes`. Without `has_pull_requests`, as
    StarCoder was trained, they are laid out like issues.
    """
    num_without = 0
    for row in _rows(export):
        if not isinstance(row, dict):
            yield "unreadable issue"
            continue
        if _is_bots(row):
            yield "issue of a bot"
            continue
        num_without += isinstance(row.get("comments"), int) and bool(row["comments"])
        repository = _repository(row) or name
        is_pull_request = has_pull_requests and _is_pull_request(row)
        text = _pull_request(row, repository) if is_pull_request else _issue(row)
        number = row.get("number") or row.get("iid") or ""
        yield Issue(str(number), repository, text) if text else "issue without a title or text"
    if num_without:
        log.warning("%d issues have comments that the export does not contain", num_without)


def _rows(export: str) -> list[object]:
    document = _object(export)
    if document is None:
        return [_object(line) for line in export.split("\n") if line.strip()]
    if isinstance(document, dict) and "title" not in document:
        for key in ("items", "issues", "nodes", "data"):
            if isinstance(document.get(key), list):
                document = document[key]
                break
    return document if isinstance(document, list) else [document]


def _object(text: str) -> object:
    """The JSON of a text; None: it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _repository(row: Mapping[str, object]) -> str:
    """`owner/name` where the export says it."""
    own = row.get("repository")
    if isinstance(own, dict):
        own = own.get("full_name") or own.get("nameWithOwner") or own.get("name")
    if isinstance(own, str) and own:
        return own
    references = row.get("references")
    if isinstance(references, dict) and isinstance(references.get("full"), str):
        return re.split("[#!]", references["full"])[0]
    for key in ("repository_url", "html_url", "web_url", "url"):
        match = _ADDRESS.fullmatch(value) if isinstance(value := row.get(key), str) else None
        if match:
            return match["name"]
    return ""


def _is_pull_request(row: Mapping[str, object]) -> bool:
    keys = ("pull_request", "files", "source_branch", "headRefName", "mergedAt", "changes")
    return any(row.get(key) for key in keys)


def _is_closed(row: Mapping[str, object]) -> bool:
    return str(row.get("state") or "").lower() in ("closed", "merged")


def _issue(row: Mapping[str, object]) -> str | None:
    posts = _posts(row)
    return write_issue(Talk(posts=posts, is_closed=_is_closed(row))) if posts else None


def _pull_request(row: Mapping[str, object], repository: str) -> str | None:
    """The proposal, its changes hunk by hunk, the talk, the end."""
    files = _dicts(row.get("files")) or _dicts(row.get("changes"))
    hunks = "".join(_changed_file(file) for file in files)
    changes = f"<pr_status>opened<repo_name>{without_tags(repository)}<pr_diff>{hunks}" if hunks else ""
    posts = _posts(row)
    if not posts:
        return None
    text = "<pr>" + "<pr_comment>".join([posts[0] + changes, *posts[1:]])
    if not _is_closed(row):
        return text
    is_merged = bool(row.get("merged_at") or row.get("mergedAt")) or str(row.get("state")).lower() == "merged"
    return f"{text}<pr_status>closed<pr_is_merged>{is_merged}"


def _changed_file(file: Mapping[str, object]) -> str:
    """A file of a pull request; "" without its hunks, which GitHub leaves out of large and binary ones."""
    patch = unix_newlines(str(file.get("patch") or file.get("diff") or ""))
    hunks = [hunk for hunk in re.split(r"^(?=@@ )", patch, flags=re.M) if hunk.strip()]
    shown = "".join(f"<pr_diff_hunk>{without_tags(hunk)}" for hunk in hunks)
    path = str(file.get("filename") or file.get("new_path") or file.get("path") or "")
    return f"<pr_file>{without_tags(path)}{shown}" if hunks else ""


def _posts(row: Mapping[str, object]) -> tuple[str, ...]:
    """Title and text, then the comments, with people under numbers instead of names; () without a title."""
    title = str(row.get("title") or "").strip()
    if not title:
        return ()
    people: dict[str, int] = {}

    def post(who: Mapping[str, object]) -> str:
        number = people.setdefault(_login(who), len(people))
        return f"username_{number}: {without_tags(_body(who))}"

    posts = [f"Title: {without_tags(title)}\n{post(row)}"]
    posts += [post(one) for one in _comments(row)]
    for login in sorted(filter(None, people), key=len, reverse=True):
        name, number = rf"(?<![\w.@])@{re.escape(login)}(?![\w-])", people[login]
        posts = [re.sub(name, f"@username_{number}", text) for text in posts]
    return tuple(posts)


def _comments(row: Mapping[str, object]) -> list[Mapping[str, object]]:
    """What people said: comments, notes of GitLab, reviews and the comments on lines of code."""
    found = [*_dicts(row.get("comments")), *_dicts(row.get("notes")), *_dicts(row.get("reviews"))]
    for thread in _dicts(row.get("discussions")):
        found += _dicts(thread.get("notes"))
    for one in _dicts(row.get("review_comments")):
        hunk = str(one.get("diff_hunk") or "").strip()
        about = "\n".join(filter(None, [str(one.get("path") or ""), hunk, str(one.get("body") or "")]))
        found.append({**one, "body": about})
    return [one for one in found if not one.get("system") and not _is_bots(one) and _body(one)]


def _body(row: Mapping[str, object]) -> str:
    text = unix_newlines(str(row.get("body") or row.get("description") or ""))
    return re.sub(r"\n{3,}", "\n\n", _TEMPLATE.sub("", text)).strip()


def _user(row: Mapping[str, object]) -> object:
    return row.get("user") or row.get("author")


def _login(row: Mapping[str, object]) -> str:
    user = _user(row)
    return str(user.get("login") or user.get("username") or "") if isinstance(user, dict) else str(user or "")


def _is_bots(row: Mapping[str, object]) -> bool:
    user = _user(row)
    is_named = isinstance(user, dict) and (user.get("type") == "Bot" or user.get("is_bot") is True)
    return is_named or is_bot(_login(row))


def _dicts(value: object) -> list[Mapping[str, object]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
