"""What secrets look like: randomness, placeholders; rules for keys and passwords in their own syntax."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_PLACEHOLDER = re.compile(
    r"example|placeholder|change_?me|your[_-]?|x{4}|\*{3}|dummy|sample|redacted|\.\.\.|0{8}|12345678|abcdef"
    r"|^[<{$%\[(]|[>}]$|\{\}|\$\{|\{\{|%s|%\(|^(none|null|true|false|undefined|todo)$|^enc[\[(]|^!vault",
    re.IGNORECASE,
)
_PIECES = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_VOWELS = frozenset("aeiouyAEIOUY")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Finding:
    """One secret: where it is, in characters of the original text, and never what it is."""

    kind: str
    start: int
    end: int
    replacement: str
    rule: str = ""  # the rule's name; the kind if empty
    is_bare: bool = False  # without quotes, where a mask may not be syntax

    @property
    def is_secret(self) -> bool:
        """A key or password, and not personal data."""
        return self.replacement in ("<KEY>", "<PASSWORD>")


def looks_random(value: str) -> bool:
    """Whether letters and digits of the value make no words: entropy, and few runs with a word's vowels."""
    alphanumerics = sum(one.isalnum() for one in value)
    if alphanumerics < 8 or entropy(value) < 2.8:
        return False
    in_words = sum(
        len(piece)
        for piece in _PIECES.findall(value)
        if len(piece) > 3 and piece.isalpha() and 0.2 <= sum(c in _VOWELS for c in piece) / len(piece) <= 0.67
    )
    return in_words <= 0.5 * alphanumerics


def is_unmistakable(value: str) -> bool:
    """Whether no name, word, version or host could be written so: long, mixed and random."""
    return (
        len(value) >= 12
        and re.search(r"[._:/-]", value.strip("._:/-")) is None
        and any(map(str.isdigit, value))
        and any(map(str.isalpha, value))
        and looks_random(value)
        and entropy(value) >= 3
    )


def entropy(value: str) -> float:
    """Bits a character, by the value's own frequencies."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)


def is_placeholder(value: str) -> bool:
    """Whether a person is meant to put something else there."""
    return _PLACEHOLDER.search(value) is not None


def _is_real(value: str) -> bool:
    return not is_placeholder(value)


def _always(_: str) -> bool:
    return True


def _is_random(value: str) -> bool:
    return not is_placeholder(value) and looks_random(value)


def _is_connection_password(value: str) -> bool:
    words = ("pass", "passwd", "password", "pwd", "pw", "secret", "token", "port", "user", "host")
    return (
        not is_placeholder(value)
        and value.lower() not in words
        and not re.fullmatch(r"[A-Z]+_[A-Z_]+", value)
    )


def _is_mixed(value: str) -> bool:
    kinds = (any(map(str.isdigit, value)), any(map(str.islower, value)), any(map(str.isupper, value)))
    return not is_placeholder(value) and all(kinds) and looks_random(value) and entropy(value) >= 3.8


def _is_login(value: str) -> bool:
    return (
        not is_placeholder(value)
        and len(value) >= 4
        and value.lower() not in ("pass", "password", "passwd", "secret")
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """`words`, one of which is in every match, in lower case, and the pattern of the secret."""

    kind: str
    words: tuple[str, ...]
    pattern: re.Pattern[str]
    accepts: Callable[[str], bool] = _is_real
    replacement: str = "<KEY>"
    is_bare: bool = False

    def find(self, text: str, lower: str) -> Iterator[Finding]:
        """Matches, whose secret is the group of that name or the whole."""
        if not any(word in lower for word in self.words):
            return
        group = "secret" if "secret" in self.pattern.groupindex else 0
        for match in self.pattern.finditer(text):
            if match[group] and self.accepts(match[group]):
                yield Finding(self.kind, *match.span(group), self.replacement, is_bare=self.is_bare)


def _command(words: str, pattern: str) -> Rule:
    """A password on a command line: REST stands for what is between, on one continued line."""
    pattern = pattern.replace(" REST", r"(?:[^\n\\;|]|\\\n){0,300}?[ \t]")
    return Rule("password", tuple(words.split()), re.compile(pattern), _is_login, "<PASSWORD>", True)


# Between the lines of a key: line ends, quotes, joints of string literals, comment signs, indentation.
_JOINT = r"(?:\\[rn]|[\s\"'`,;#>|*]|[\"']\s{0,40}\+)"
RULES: tuple[Rule, ...] = (
    Rule(
        "private_key",
        ("private key",),
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
            rf"(?>{_JOINT}*)(?:(?:Proc-Type|DEK-Info|Version|Comment|Hash|Charset): [^\n\\]{{0,100}}"
            rf"(?>{_JOINT}*))*"
            rf"(?P<secret>[A-Za-z0-9+/=]{{20,}}(?:(?>{_JOINT}*)[A-Za-z0-9+/=]{{20,}})*"
            rf"(?:(?>{_JOINT}*)[A-Za-z0-9+/=]{{1,76}}(?=(?>{_JOINT}*)(?:=[A-Za-z0-9+/]{{4}}(?>{_JOINT}*))?-----END))?)"
        ),
        _always,
    ),
    Rule(
        "private_key",
        ("ls0tls1crudjti",),
        re.compile(r"LS0tLS1CRUdJTi[A-Za-z0-9+/]{40,}={0,2}"),
        _always,
    ),
    Rule(
        "jwt",
        ("eyj",),
        re.compile(
            r"(?<![A-Za-z0-9_])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]{16,})?"
            r"(?![A-Za-z0-9_])"
        ),
        _always,
    ),
    Rule(
        "authorization",
        ("bearer ", "basic ", "authorization"),
        re.compile(
            r"(?:[Bb]earer|BEARER|[Bb]asic|[Tt]oken|[Aa]uthorization[\"']?\s?[:=])\s{1,2}[\"']?"
            r"(?P<secret>[A-Za-z0-9+/_.~-]{16,}={0,2})"
        ),
        _is_random,
    ),
    Rule(
        "connection",
        ("://",),
        re.compile(
            r"://[^\s:/@\"'<>]{0,64}:(?P<secret>[^\s/\"'<>{}$%*][^\s/\"'<>{}]{2,255})"
            r"@(?=[A-Za-z0-9_.\[{$-])(?![^\s/\"'<>]*@)"
        ),
        _is_connection_password,
        "<PASSWORD>",
    ),
    Rule(
        "connection",
        ("://",),
        re.compile(r"://(?P<secret>[A-Za-z0-9_-]{20,255})@(?=[A-Za-z0-9_.-]+)(?![\w.-]*sentry)"),
        _is_random,
        "<PASSWORD>",
    ),
    Rule(
        "password_hash",
        ("$1$", "$5$", "$6$", "$y$", "$2a$", "$2b$", "$2y$", "$apr1$", "$argon2"),
        re.compile(r"\$(?:1|5|6|y|2[aby]|apr1|argon2(?:id?|d))\$[A-Za-z0-9./+$=,]{20,200}"),
        _always,
        "<PASSWORD>",
    ),
    Rule(
        "aws",
        ("akia", "asia"),
        re.compile(
            r"(?<![A-Z0-9])A[KS]IA[A-Z0-9<>]{1,16}[\s\S]{1,200}?(?<![A-Za-z0-9/+=])"
            r"(?P<secret>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
        ),
        _is_random,
    ),
    Rule(
        "password",
        ("variable",),
        re.compile(
            r"variable\s+\"[\w-]*(?i:password|passwd|passphrase|secret|token|api_?key|_key"
            r"|_pass)[\w-]*\"\s*\{"
            r"[^{}]{0,400}?\bdefault\s*=\s*\"(?P<secret>[^\"\n$]{4,4096})\""
        ),
        _is_login,
        "<PASSWORD>",
    ),
    Rule(
        "password",
        ("login ",),
        re.compile(r"\blogin\s+\S{1,80}\s+(?:password|passwd)\s+(?P<secret>\S{4,200})"),
        _is_login,
        "<PASSWORD>",
        True,
    ),
    Rule(
        "password",
        (":",),
        re.compile(r"^[\w.*-]+:(?:\d{2,5}|\*):[\w*-]+:[\w*-]+:(?P<secret>[^\s:]{6,128})$", re.MULTILINE),
        _is_login,
        "<PASSWORD>",
    ),
)
_QUOTED_TOKEN = re.compile(r"[\"'](?P<secret>[A-Za-z0-9+/_=-]{20,128})[\"']")
_CALL = re.compile(
    r"(?i:(?P<strong>client|connection|twilio|algoliasearch)|connect|login|auth|authenticate|credentials?|account|signer"
    r"|sdk|api)\([^()\n]{0,200}\Z"
)


def find_arguments(text: str) -> Iterator[Finding]:
    """Keys that a call takes as they are: Client("AC...", "..."), S3Connection(...)."""
    for match in _QUOTED_TOKEN.finditer(text):
        value = match["secret"]
        is_hex = re.fullmatch(r"[0-9a-f]{32,64}", value) is not None
        if not is_hex and not _is_mixed(value):
            continue
        call = _CALL.search(text, max(0, match.start() - 240), match.start())
        if call and (not is_hex or (call["strong"] and _is_random(value))):
            yield Finding("argument", *match.span("secret"), "<KEY>")


COMMANDS: tuple[Rule, ...] = (
    _command("curl wget http", r"\b(?:curl|wget|http|https)\b REST(?:-u|--user|-a|--auth|--proxy-user)"
        r"(?:[ =]|\b)[\"']?[\w.@\\-]+:(?P<secret>[^\s\"'$<>]{3,200})"),
    _command("mysql mariadb mysqldump mysqladmin", r"\b(?:mysql\w*|mariadb\w*)\b REST-p"
        r"(?P<secret>[^\s\"'$<>=-][^\s\"'$<>]{3,100})"),
    _command("login sshpass redis-cli mongo ldap sqlcmd sqlplus az helm svn", r"\b(?:docker|podman"
        r"|buildah|skopeo|crane|oc|az|helm|nerdctl)\b(?:[^\n\\;|]|\\\n){0,80}?\blogin\b REST(?:-p"
        r"|--password)[ =](?P<secret>[^\s\"'$<>-][^\s\"'$<>]{3,200})"),
    _command("sshpass", r"\bsshpass REST?-p[ ]?[\"']?(?P<secret>[^\s\"'$<>-][^\s\"'$<>]{2,100})"),
    _command("redis-cli", r"\bredis-cli\b REST(?:-a|--pass)[ =][\"']?"
        r"(?P<secret>[^\s\"'$<>-][^\s\"'$<>]{3,200})"),
    _command("mongo", r"\bmongo\w*\b REST-p[ =]?[\"']?(?P<secret>[^\s\"'$<>-][^\s\"'$<>]{3,100})"),
    _command("ldap", r"\bldap(?:search|modify|add|whoami|passwd)\b REST-w[ ]?[\"']?"
        r"(?P<secret>[^\s\"'$<>-][^\s\"'$<>]{3,100})"),
    _command("sqlcmd bcp", r"\b(?:sqlcmd|bcp|osql)\b REST-P[ ]?[\"']?"
        r"(?P<secret>[^\s\"'$<>-][^\s\"'$<>]{3,100})"),
    _command("-pass", r"-pass(?:in|out|word|wd)?[ =:]{1,2}(?:pass:)?[\"']?(?P<secret>(?!env:|file:"
        r"|stdin|pass:|in\b|out\b)[^\s\"'$<>=-][^\s\"'$<>]{4,100})"),
    _command("smbclient rpcclient mount", r"\b(?:smbclient|rpcclient)\b REST(?:-U"
        r"|--user)[ =]?[\"']?[\w.\\/-]+%(?P<secret>[^\s\"'$<>]{3,100})"),
    _command("/user:", r"\bnet use REST/user:[\w.\\-]+[ ](?P<secret>[^\s\"'$<>/]{4,100})"),
)  # fmt: skip
