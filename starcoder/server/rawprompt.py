"""A raw prompt with sentinels, as clients write it, taken apart into prefix, suffix and files.

So that it can be planned anew: many clients put the sentinels in a wrong place or cut one off. Understood
are both infilling orders, SPM with the suffix first, a lost first sentinel, and the repository layouts of
StarCoder and Starcoder2. Anything else (commits, issues, notebooks) is left alone.
"""

import re

from starcoder.request import CompletionRequest, ContextFile

_FIM = re.compile(r"<fim[-_](prefix|middle|suffix)>")
_TAG = re.compile(r"<(reponame|repo_name|filename|gh_stars)>")
_SENTINEL = re.compile(
    r"<fim[-_](?:prefix|middle|suffix|pad)>|<(?:file_sep|reponame|repo_name|filename|gh_stars)>"
    r"|<\|endoftext\|>|<(?:issue|jupyter|commit)_\w+>|<(?:empty_output|jupyter_script)>|<\|(?:end|im_end|im_start)\|>"
)
# What templates of other servers put after the middle sentinel.
_TRAILER = re.compile(r"(?<=middle>)\s*(?:<\|endoftext\|>|<\|end_of_text\|>)\s*\Z")
_PATH = re.compile(r"[^\s<>\"'(){}=,;]{1,200}\.\w{1,12}|[^\s<>\"'(){}=,;]*/[^\s<>\"'(){}=,;]{1,200}")


def has_sentinels(text: str) -> bool:
    """Whether the text spells a special token of the family."""
    return _SENTINEL.search(text) is not None


def parse(text: str) -> CompletionRequest | None:
    """The request that a raw prompt stands for; None where it has no sentinels or they tell nothing known.

    Only text fields are set. Source: serving facts 6.2 (layouts) and 6.4 (how clients get them wrong).
    """
    if not has_sentinels(text):
        return None
    text = _TRAILER.sub("", text)
    pieces = _FIM.split(text)
    names = pieces[1::2]
    if not names:
        request = _left_to_right(text)
    elif len(set(names)) == len(names) and "middle" in names and len(names) > 1:
        request = _infill(dict(zip(names, pieces[2::2], strict=True)), pieces[0])
    else:
        return None
    files = [text for extra in request.extras for text in (extra.path, extra.text)]
    shown = (request.prefix, request.suffix or "", request.path or "", request.repo or "", *files)
    return None if any(map(has_sentinels, shown)) else request


def _left_to_right(text: str) -> CompletionRequest:
    """The last file of a repository is the one to go on with."""
    before, *files = text.split("<file_sep>")
    if files:
        repo = before.removeprefix("<repo_name>").strip() or None
        path, prefix = _take_line(files.pop())
    else:
        repo, path, prefix = _take_tags(before)
    return CompletionRequest(prefix=prefix, path=path, repo=repo, extras=_extras(files))


def _infill(after: dict[str, str], head: str) -> CompletionRequest:
    """`after` is the text behind each sentinel, `head` the text before the first."""
    if "prefix" not in after:  # cut off at the front: what is there is the end of the prefix
        head, after = "", after | {"prefix": head}
    repo, path, prefix = _take_tags(after["prefix"] + after["middle"])
    before, *files = head.split("<file_sep>")
    if before.startswith("<repo_name>"):
        repo = before.removeprefix("<repo_name>").strip() or None
    elif before:  # StarCoder's tags, or mere text, in front of the sentinel
        outer_repo, outer_path, rest = _take_tags(before)
        repo, path, prefix = repo or outer_repo, path or outer_path, rest + prefix
    if path is None and files:
        # The present file follows the last separator; some clients write its path before the sentinel.
        path, rest = _take_line(f"{files[-1]}\n")
        if path is not None and not rest.strip():
            files.pop()
        else:
            path, prefix = _take_line(prefix)
    return CompletionRequest(
        prefix=prefix, suffix=after.get("suffix", ""), path=path, repo=repo, extras=_extras(files)
    )


def _take_tags(text: str) -> tuple[str | None, str | None, str]:
    """Repository, path and rest of StarCoder's `<reponame>R<filename>P<gh_stars>S\\nCODE`."""
    if not _TAG.match(text):
        return None, None, text
    line, _, rest = text.partition("\n")
    parts = _TAG.split(line)
    values = dict(zip(parts[1::2], parts[2::2], strict=True))
    return values.get("reponame") or values.get("repo_name"), values.get("filename"), rest


def _take_line(text: str) -> tuple[str | None, str]:
    """The path in the first line of a Starcoder2 file, if it looks like one."""
    line, newline, rest = text.partition("\n")
    if newline and _PATH.fullmatch(line.strip()):
        return line.strip(), rest
    return None, text


def _extras(files: list[str]) -> tuple[ContextFile, ...]:
    named = (_take_line(text) for text in files if text.strip())
    return tuple(ContextFile(path=path or "", text=text) for path, text in named)
