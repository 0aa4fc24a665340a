"""Secrets known by the name they are given to: `api_key = "..."`, `DB_PASS=...`, YAML blocks, manifests.

A value never reaches over its line's end, and what may be code, a word or a reference stays.
"""

import base64
import binascii
import re
from collections.abc import Iterator

from starcoder.prepare.secret_rules import Finding, entropy, is_placeholder, looks_random

_PASSWORDS = (
    *(
        "passw",
        "passphrase",
        "passcode",
        "pwd",
        "pass",
        "pw",
        "kennwort",
        "contrase",
        "mot_de_passe",
        "motdepasse",
    ),
    *("senha", "wachtwoord", "haslo", "heslo", "пароль", "密码", "パスワード"),
)
_KEYS = ("secret", "token", "credential", "key", "auth", "salt", "clave", "schluessel", "sid")
_SHORT = frozenset(
    {"pass", "pw", "key", "auth", "salt", "sid", "haslo", "heslo", "clave"}
)  # words of their own only
_NAME_BEFORE = re.compile(r"[\w.-]{0,60}\Z")
_TAIL = re.compile(r"[\w-]{0,24}")
# What the rest of a name says is no secret: a name, a place, a measure, something public.
_OTHER_TAIL = re.compile(
    r"[_-]?(?:name|id|ids|file|path|url|uri|type|length|len|size|count|expir\w*|ttl|age|endpoint|ref"
    r"|field|label|title"
    r"|hint|prompt|policy|reset|strength|regex|pattern|column|table|provider|manager|store|vault|class"
    r"|algorithm|alg|hash"
    r"|board|press|down|up|word|code|map|ring|pair|usage|alias|error|index|frame|arn|version|format|prefix|suffix|header"
    r"|kind|keys?|keyref|required|enabled|changed?|max|min|limit|budget|text|s_per\w*)s?(?![a-z])",
    re.IGNORECASE,
)
_OTHER_NAME = re.compile(
    r"(?:^|[_.-])(?:public|pub|primary|foreign|sort|cache|hot|idx|index|partition|natural|unique"
    r"|composite|lookup|dict"
    r"|map|group|row|col|column|order|object|item|data|json|shard|rout\w*|range|storage|i18n"
    r"|translation|event|query"
    r"|hash|digest|checksum|sha\w*|md5|fingerprint|integrity|color|design|css|csrf_?name|thumb\w*|etag"
    r"|commit|tree"
    r"|revision|bucket|s3|object|registry|max|min|num|next|prev|pad|eos|bos|unk|mask|cls|sep"
    r"|special)[_.-]?(?:key|token)?$",
    re.IGNORECASE,
)
_GAP = r"[ \t]{0,20}"
_OPERATOR = re.compile(
    r"\\?[\"'`\])]{0,3}(?:\s?:\s?[\w.\[\] |]{1,30}(?=\s?=))?(?:(?P<sign>"
    rf"{_GAP}(?:=>|:=|\?=|\|\|=|={{1,3}}|->|[:,(>])){_GAP}|[ \t]{{1,20}})"
    r"(?:[bruBRUf@]{1,2}(?=[\\\"'`]))?"
)
# {"name": "DB_PASSWORD", "value": "..."}, <add key="password" value="..."/> and YAML's two lines.
_NAMED_VALUE = re.compile(
    r"[\"']?\s{0,3},?\s{0,60}(?:-\s)?[\"']?(?i:value|default|content)[\"']?\s{0,3}[:=]\s{0,3}(?=[\"'\w])"
)
_QUOTED = re.compile(
    r"\"(?P<double>(?:[^\"\\\n]|\\[^\n]){4,8192})\"|'(?P<single>(?:[^'\\\n]|\\[^\n]){4,8192})'"
    r"|`(?P<back>[^`\\\n]{4,8192})`|\\\"(?P<escaped>[^\"\\\n]{4,8192})\\\""
)
_BARE = re.compile(r"(?P<bare>[^\s\"'`<>{}\[\],;\\]{6,8192})(?=[\s\"',;<&)\]}]|\\n|\\r|$)")
# Keys that are secrets by their name; others may be those of tables and caches.
_STRONG_KEY = re.compile(
    r"(?:api|access|auth|secret|private|app|application|service|license|account|master|encrypt\w*|sign\w*|client"
    r"|consumer|webhook|admin|deploy|openai|security)[_.-]?key$",
    re.IGNORECASE,
)
_LONG = re.compile(r"[^\s\"'`<>{}\[\],;\\]{256,}")
_BLOCK = re.compile(
    r":[ \t]*[|>][+-]?\d?[ \t]*(?:#[^\n]*)?\n(?P<lines>(?:[ \t]+[^\n]*(?:\n|$)|[ \t]*\n){1,60})"
)
_PATH = re.compile(r"[\w-]*(?:[./:][A-Za-z_][\w-]*)+|.*://.*|(?:~|\.{0,2})/.*")
_LOCATION = re.compile(r"[~.]?\.?/|[A-Za-z][A-Za-z0-9+.-]*://|#[0-9a-fA-F]{3,8}$|arn:|sha\d+[-:]|urn:")
_SPECIAL = frozenset("!@#$%^&*+=~?|")
_TELLING = re.compile(r"passw|secret|token|passphrase|key$|:$|^[-/.]", re.IGNORECASE)
_CODE = re.compile(r"[.=*+%|&^()]")
_NO_PASSWORD = re.compile(r"[A-Za-z]\w*_\w*|[\w.-]+:\d{1,5}")  # an identifier, or a port of a host
_ALGORITHM = r"sha-?\d+|md5|utf-?8|base64|[hr]s\d{3}|aes-?\d+\S*"
_NO_SECRET = re.compile(_ALGORITHM, re.IGNORECASE)
_VERSIONED = re.compile(_ALGORITHM + r"|[a-z]+[ _-]?v?\d{1,2}(?:\.\d+)*|v?\d+(?:\.\d+)+\S*", re.IGNORECASE)
_PUBLIC_KEYS = re.compile(r"pk_(?:live|test)_|ssh-(?:rsa|ed25519)|AAAA[BC]3|MI[GIM]f")
_MANIFEST = re.compile(
    r"^(?:data|stringData):[ \t]*\n(?P<lines>(?:[ \t]+[^\n]*(?:\n|$)|[ \t]*\n){1,400})", re.MULTILINE
)
_ENTRY = re.compile(
    r"^[ \t]+[\w.-]+:[ \t]*([\"']?)(?P<value>[^\s\"'|>{}#][^\s\"'{}]{3,})\1[ \t]*(?:#.*)?$", re.MULTILINE
)
_ENCODED_LINE = re.compile(r"^[ \t]+(?P<value>[A-Za-z0-9+/]{20,}={0,2})[ \t]*$", re.MULTILINE)


def find_assigned(text: str, lower: str) -> Iterator[Finding]:
    """Values that look like secrets behind names that tell of one; `lower` is the text in lower case."""
    for words, is_password in ((_PASSWORDS, True), (_KEYS, False)):
        for word in words:
            start = lower.find(word)
            while start >= 0:
                end = start + len(word)
                if word not in _SHORT or _is_word(text, start, end):
                    yield from _value_after(text, lower, start, end, word, is_password=is_password)
                long = _LONG.match(text, end)  # without this, a run of names takes time by its square
                start = lower.find(word, long.end() if long else end)
    if "kind:" in lower and "secret" in lower:
        yield from _manifests(text)


def _is_word(text: str, start: int, end: int) -> bool:
    """Whether a short word is a part of the name by itself: db_pass, dbPass, DB_KEY, `key`."""
    before = text[start - 1] if start else " "
    first, after = text[start], text[end] if end < len(text) else " "
    begins = not before.isalnum() or (first.isupper() and (before.islower() or before.isdigit()))
    # apikey and the like are written in one word as well
    begins = begins or (
        text[end - 3 : end].lower() == "key"
        and re.search(
            r"(?i)(?:api|auth|access|secret|private|app|service|license|account|master|encrypt\w*"
            r"|sign\w*)\Z",
            text[max(0, start - 12) : start],
        )
        is not None
    )
    return begins and not (after.islower() or (after.isupper() and first.isupper() and after.isalpha()))


def _value_after(
    text: str, lower: str, start: int, end: int, word: str, *, is_password: bool
) -> Iterator[Finding]:
    before = _NAME_BEFORE.search(text, max(0, start - 60), start)
    name = (before[0] if before else "") + text[start:end]
    tail = _TAIL.match(text, end)
    after = tail.end() if tail else end
    rest = text[end:after]
    is_weak = word == "key" and not _STRONG_KEY.search(name)
    if _OTHER_NAME.search(name) or (rest and _OTHER_TAIL.match(rest)):
        return
    block = _BLOCK.match(text, after)
    if block:
        yield from _lines_of(text, block.start("lines"), block.end("lines"), is_password=is_password)
        return
    operator = _OPERATOR.match(text, after)
    named = _NAMED_VALUE.match(text, after)
    for match in (named, operator):
        if match is None:
            continue
        found = _value_at(text, match.end(), match, word, is_password=is_password, is_weak=is_weak)
        if found:
            yield found
            return


def _value_at(
    text: str, at: int, operator: re.Match[str], word: str, *, is_password: bool, is_weak: bool
) -> Finding | None:
    kind, replacement = ("password", "<PASSWORD>") if is_password else ("assignment", "<KEY>")
    sign = (
        operator.groupdict().get("sign") or ":" if operator.re is _NAMED_VALUE else operator["sign"]
    ) or ""
    quoted = _QUOTED.match(text, at)
    if quoted:
        value = next(one for one in quoted.groups() if one is not None)
        is_secret = (is_password and _is_password(value)) or _is_key(value, is_weak=is_weak)
        if word == "auth":
            is_secret = _is_login(value)
        start = quoted.start() + (2 if quoted["escaped"] is not None else 1)
        return Finding(kind, start, start + len(value), replacement) if is_secret else None
    bare = _BARE.match(text, at)
    if bare is None or (not sign and not is_password):
        return None
    value = bare["bare"].rstrip(").")
    is_line = (
        sign.strip() == "="
        and text[bare.end() : bare.end() + 1] in ("", "\n", "\r")
        and not sign[:1].isspace()
    )
    is_line = is_line or text.startswith("</", bare.end())
    if sign.strip() == ":" and text[bare.end() : bare.end() + 1] in ("", "\n", "\r"):
        is_line = is_line or not re.search(r"[A-Za-z]\w{3,}[.(]", value)  # a YAML value, and no call
    is_secret = (
        _is_login(value) if word == "auth" else _is_bare_secret(value, sign, is_line=is_line, is_weak=is_weak)
    )
    if not is_secret:
        return None
    return Finding(kind, bare.start(), bare.start() + len(value), replacement, is_bare=True)


def _lines_of(text: str, start: int, end: int, *, is_password: bool) -> Iterator[Finding]:
    """The lines of a YAML block that are secrets, each for itself so that the block stays one."""
    kind, replacement = ("password", "<PASSWORD>") if is_password else ("assignment", "<KEY>")
    indent = None
    for line in re.finditer(r"^([ \t]*)(\S[^\n]*?)[ \t\r]*$", text[start:end], re.MULTILINE):
        indent = len(line[1]) if indent is None else indent
        if len(line[1]) < indent:
            return
        value = line[2]
        if _is_key(value, is_weak=False) or (is_password and _is_password(value)):
            yield Finding(kind, start + line.start(2), start + line.end(2), replacement, is_bare=True)


def _manifests(text: str) -> Iterator[Finding]:
    """Values of Kubernetes' secrets."""
    at = 0
    for part in re.split(r"(^---[^\n]*\n)", text, flags=re.MULTILINE):
        if re.search(r"^kind:[ \t]*[\"']?Secret[\"']?[ \t\r]*$", part, re.MULTILINE):
            for data in _MANIFEST.finditer(part):
                for pattern in (_ENTRY, _ENCODED_LINE):
                    for entry in pattern.finditer(data["lines"]):
                        if not is_placeholder(entry["value"]):
                            start = at + data.start("lines") + entry.start("value")
                            length = len(entry["value"])
                            yield Finding("kubernetes", start, start + length, "<KEY>", is_bare=True)
        at += len(part)


def _is_login(value: str) -> bool:
    """Whether the value is base64 of user:password, as docker and npm keep it."""
    if len(value) < 8 or is_placeholder(value):
        return False
    try:
        decoded = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return False
    return b":" in decoded and decoded.isascii() and decoded.decode("ascii").isprintable()


def _is_key(value: str, *, is_weak: bool) -> bool:
    value = value.removeprefix("django-insecure-").removeprefix("base64:")
    if len(value) < 16 or (" " in value.strip() and not _is_wide(value)):
        return False
    if _LOCATION.match(value) or _PUBLIC_KEYS.match(value) or (len(value) < 48 and is_placeholder(value)):
        return False
    if re.search(r"\$\{|\{\{|%\(|<[a-zA-Z_ -]+>", value):
        return False
    if is_weak and not (len(value) >= 32 or _is_mixed(value)):
        return False
    return looks_random(value)


def _is_wide(value: str) -> bool:
    """Whether a value with blanks is drawn from all signs, as WordPress's salts are."""
    return len(value) >= 48 and entropy(value) >= 4.8 and len(_SPECIAL & set(value)) >= 4


def _is_mixed(value: str) -> bool:
    return all(any(map(test, value)) for test in (str.isdigit, str.islower, str.isupper))


def _is_password(value: str) -> bool:
    """Six characters or more, of two kinds or digits alone, and no name, path, prompt or format."""
    if not 6 <= len(value) <= 8192 or is_placeholder(value) or _TELLING.search(value):
        return False
    if _PATH.fullmatch(value) or _NO_SECRET.fullmatch(value) or _LOCATION.match(value):
        return False
    if _NO_PASSWORD.fullmatch(value) and not looks_random(value):
        return False
    has_digit, has_letter = any(map(str.isdigit, value)), any(map(str.isalpha, value))
    special = bool(_SPECIAL & set(value)) or "\\" in value
    if " " in value:
        return len(value) <= 64 and value.count(" ") <= 4 and has_digit and special
    return (has_digit and has_letter) or value.isdigit() or (has_letter and special)


def _is_bare_secret(value: str, operator: str, *, is_line: bool, is_weak: bool) -> bool:
    """Without quotes a value may be code: it needs digits and letters, and a secret's randomness or signs."""
    if is_placeholder(value) or _TELLING.search(value) or _PATH.fullmatch(value) or _LOCATION.match(value):
        return False
    has_digit, has_letter = any(map(str.isdigit, value)), any(map(str.isalpha, value))
    if not has_letter or _VERSIONED.fullmatch(value) or _PUBLIC_KEYS.match(value):
        return False
    if is_line and not has_digit and _SPECIAL & set(value) and len(value) >= 8 and not is_weak:
        return not _CODE.search(value.replace("=", "")) or looks_random(value)
    if not has_digit:
        return len(value) >= 32 and looks_random(value) and _is_letters_token(value)
    if "(" in value and not (is_line or len(value) >= 40):
        return False
    if len(value) >= 16 and looks_random(value) and (not is_weak or _is_mixed(value)):
        return True
    if is_weak:
        return False
    is_code = not is_line and _CODE.search(value) is not None
    return (
        operator.strip() in ("=", ":", ">")
        and not is_code
        and (bool(_SPECIAL & set(value)) or (len(value) >= 8 and looks_random(value)))
    )


def _is_letters_token(value: str) -> bool:
    """A long token without digits: letters of both cases with no words in them."""
    return (
        value.isalpha()
        and any(map(str.islower, value))
        and any(map(str.isupper, value))
        and entropy(value) > 4
    )
