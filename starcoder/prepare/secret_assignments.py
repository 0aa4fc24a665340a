"""Secrets known by the name they are given to: `api_key = "..."`, `PASSWORD=...`, `<token>...</token>`."""

import re
from collections.abc import Iterator

from starcoder.prepare.secret_rules import Finding, is_placeholder, looks_random

_PASSWORDS = ("password", "passwd", "passphrase", "pwd", "passcode")
_KEYS = (
    "secret",
    "token",
    "credential",
    *(
        f"{word}{joint}key"
        for word in (
            "api",
            "access",
            "account",
            "auth",
            "private",
            "encryption",
            "signing",
            "client",
            "master",
        )
        for joint in ("_", "", "-")
    ),
)
# What may stand between the telling word and the value: the rest of the name, a type, an operator.
_OPERATOR = (
    r"[\w-]{0,24}\\?[\"'\])]{0,2}(?:\s?:\s?[\w.\[\] |]{1,30}(?=\s?=))?"
    r"(?:\s{0,20}(?:=>|:=|={1,3}|[:,(>])\s{0,20}|\s{1,20})"
)
_QUOTED = re.compile(
    _OPERATOR + r"[bruBRUf@]{0,2}\\?(?P<quote>[\"'`])(?P<secret>[^\"'`\s\\]{4,256})\\?(?P=quote)"
)
_BARE = re.compile(
    r"[\w-]{0,24}[\"']?(?P<operator>\s{0,20}[:=]\s{0,20}|\s|>)"
    r"(?P<secret>[^\s\"'`<>(){}\[\],;\\]{6,256})(?=[\s\"',;<&)]|\\n|$)"
)
_KEY_CHARACTERS = re.compile(r"[A-Za-z0-9+/=_.:~!@#$%^*-]+")
_PATH = re.compile(r"[\w-]*(?:[./:][A-Za-z_][\w-]*)+|.*://.*|(?:~|\.{0,2})/.*")
_LOCATION = re.compile(r"[~.]?\.?/|[A-Za-z][A-Za-z0-9+.-]*://")
_SPECIAL = frozenset("!@#$%^&*+=~?|")
_TELLING = re.compile(r"passw|secret|token|passphrase|key$|:$|^[-/.]", re.IGNORECASE)
_CODE = re.compile(r"[.=*+%|&^]")
_NO_PASSWORD = re.compile(r"[A-Za-z]\w*_\w*|[\w.-]+:\d{1,5}")  # an identifier, or a port of a host
_ALGORITHM = r"sha-?\d+|md5|utf-?8|base64"
_NO_SECRET = re.compile(_ALGORITHM, re.IGNORECASE)
_VERSIONED = re.compile(_ALGORITHM + r"|[a-z]+[ _-]?v?\d{1,2}(?:\.\d+)*", re.IGNORECASE)


def find_assigned(text: str, lower: str) -> Iterator[Finding]:
    """Values that look like secrets behind names that tell of one; `lower` is the text in lower case."""
    for words, is_password in ((_PASSWORDS, True), (_KEYS, False)):
        for word in words:
            start = lower.find(word)
            while start >= 0:
                end = start + len(word)
                yield from _value_after(text, end, is_password=is_password)
                start = lower.find(word, end)


def _value_after(text: str, place: int, *, is_password: bool) -> Iterator[Finding]:
    match = _QUOTED.match(text, place)
    is_quoted = match is not None
    match = match or _BARE.match(text, place)
    if match is None:
        return
    value = match["secret"]
    if is_quoted:
        is_secret = _is_password(value) if is_password else _is_key(value)
    else:
        after = text[match.end() : match.end() + 2]
        is_line = after == "</" or (match["operator"] == "=" and after[:1] in ("", "\n", "\r"))
        is_secret = _is_bare_secret(value, match["operator"], is_line=is_line)
    is_secret = is_secret or (is_password and is_quoted and _is_key(value))
    if is_secret:
        kind, replacement = ("password", "<PASSWORD>") if is_password else ("assignment", "<KEY>")
        yield Finding(kind, *match.span("secret"), replacement)


def _is_key(value: str) -> bool:
    return (
        len(value) >= 16
        and _KEY_CHARACTERS.fullmatch(value) is not None
        and not is_placeholder(value)
        and _LOCATION.match(value) is None
        and looks_random(value)
    )


def _is_password(value: str) -> bool:
    """Six characters or more, of two kinds or digits alone, and no name, path, prompt or format."""
    if not 6 <= len(value) <= 128 or is_placeholder(value) or _TELLING.search(value):
        return False
    if _PATH.fullmatch(value) or _NO_SECRET.fullmatch(value):
        return False
    if _NO_PASSWORD.fullmatch(value) and not looks_random(value):
        return False
    has_digit, has_letter = any(map(str.isdigit, value)), any(map(str.isalpha, value))
    return (has_digit and has_letter) or value.isdigit() or (has_letter and bool(_SPECIAL & set(value)))


def _is_bare_secret(value: str, operator: str, *, is_line: bool) -> bool:
    """Without quotes a value may be code: it needs digits and letters, and a secret's randomness or signs."""
    if is_placeholder(value) or _TELLING.search(value) or _PATH.fullmatch(value):
        return False
    has_digit, has_letter = any(map(str.isdigit, value)), any(map(str.isalpha, value))
    if not (has_digit and has_letter) or _VERSIONED.fullmatch(value):
        return False
    if len(value) >= 16 and _KEY_CHARACTERS.fullmatch(value) and looks_random(value):
        return True
    is_code = not is_line and _CODE.search(value) is not None
    return (
        operator in ("=", ":", ": ", " = ", ">")
        and not is_code
        and (bool(_SPECIAL & set(value)) or (len(value) >= 8 and looks_random(value)))
    )
