"""Rules for secrets of a known format: keys of services, private keys, tokens, passwords in URLs.

Formats are those that the services document or that their own push protection looks for.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_EDGE, _END = r"(?<![A-Za-z0-9_])", r"(?![A-Za-z0-9_])"
_PLACEHOLDER = re.compile(
    r"example|placeholder|change_?me|your[_-]?|x{4}|\*{3}|dummy|sample|redacted|\.\.\.|0{8}|12345678|abcdef"
    r"|^[<{$%\[(]|[>}]$|\{\}|\$\{|\{\{|%s|%\(|^(none|null|true|false|undefined|todo)$",
    re.IGNORECASE,
)
_PIECES = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_VOWELS = frozenset("aeiouyAEIOUY")


@dataclass(frozen=True, slots=True)
class Finding:
    """One secret: where it stands, in characters of the original text, and never what it is."""

    kind: str
    start: int
    end: int
    replacement: str

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


def entropy(value: str) -> float:
    """Bits a character, by the value's own frequencies."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)


def is_placeholder(value: str) -> bool:
    """Whether a person is meant to put something else there."""
    return _PLACEHOLDER.search(value) is not None


def _is_real(value: str) -> bool:
    return not is_placeholder(value)


def _is_random(value: str) -> bool:
    return not is_placeholder(value) and looks_random(value)


def _always(value: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Rule:
    """A format: `words`, one of which is in every match, in lower case, and the pattern of the secret."""

    kind: str
    words: tuple[str, ...]
    pattern: re.Pattern[str]
    accepts: Callable[[str], bool] = _is_real
    replacement: str = "<KEY>"

    def find(self, text: str, lower: str) -> Iterator[Finding]:
        """Matches, whose secret is the group of that name or the whole."""
        if not any(word in lower for word in self.words):
            return
        group = "secret" if "secret" in self.pattern.groupindex else 0
        for match in self.pattern.finditer(text):
            if self.accepts(match[group]):
                yield Finding(self.kind, *match.span(group), self.replacement)


def _rule(kind: str, words: str, pattern: str, accepts: Callable[[str], bool] = _is_real) -> Rule:
    return Rule(kind, tuple(words.split()), re.compile(_EDGE + pattern + _END), accepts)


RULES: tuple[Rule, ...] = (
    Rule(
        "private_key",
        ("private key",),
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
            r"(?:\\[rn]|\s|[\"'+,])*(?P<secret>(?:[^-]|-(?!----)){32,20000}?)"
            r"(?=(?:\\[rn]|\s|[\"'+,])*(?:-----END|\Z))"
        ),
        _always,
    ),
    _rule("aws", "akia asia", r"A(?:KI|SI)A[A-Z0-9]{16}"),
    _rule("github", "ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{36,255}"),
    _rule("github", "github_pat_", r"github_pat_[A-Za-z0-9_]{50,255}"),
    _rule("gitlab", "glpat- glptt- gldt- glrt- glsoat-", r"gl(?:pat|ptt|dt|rt|soat)-[A-Za-z0-9_-]{20,80}"),
    _rule("slack", "xox xapp-", r"(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10,250}"),
    _rule("slack", "hooks.slack.com", r"hooks\.slack\.com/services/(?P<secret>T\w+/B\w+/\w{16,})"),
    _rule(
        "discord", "discord", r"discord(?:app)?\.com/api/webhooks/(?P<secret>\d{17,20}/[A-Za-z0-9_-]{60,80})"
    ),
    _rule(
        "discord",
        "discord bot",
        r"[MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38}",
        _is_random,
    ),
    _rule("stripe", "_live_ _test_", r"[srp]k_(?:live|test)_[A-Za-z0-9]{16,250}"),
    _rule("stripe", "whsec_", r"whsec_[A-Za-z0-9+/]{24,}={0,2}"),
    _rule("google", "aiza", r"AIza[A-Za-z0-9_-]{35}"),
    _rule("google", "gocspx-", r"GOCSPX-[A-Za-z0-9_-]{24,32}"),
    _rule("google", "ya29.", r"ya29\.[A-Za-z0-9_-]{20,}"),
    _rule("openai", "sk-", r"sk-(?:[a-z]+[0-9]*-){0,3}[A-Za-z0-9_-]{20,200}", _is_random),
    _rule("hugging_face", "hf_", r"hf_[A-Za-z0-9]{30,40}", _is_random),
    _rule("package_index", "npm_", r"npm_[A-Za-z0-9]{36}"),
    _rule("package_index", "pypi-", r"pypi-[A-Za-z0-9_-]{50,250}"),
    _rule("sendgrid", "sg.", r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}"),
    # The edge comes second: a pattern that begins with letters is searched ten times as fast.
    Rule("twilio", ("sk",), re.compile(r"SK(?<![A-Za-z0-9_]SK)[0-9a-f]{32}" + _END)),
    Rule("twilio", ("ac",), re.compile(r"AC(?<![A-Za-z0-9_]AC)[0-9a-f]{32}" + _END)),
    _rule("mail", "key-", r"key-[0-9a-f]{32}"),
    _rule("mail", "-us", r"[0-9a-f]{32}-us[0-9]{1,2}"),
    _rule("telegram", ":aa", r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}"),
    _rule(
        "azure", "accountkey= accesskey=", r"(?:Account|SharedAccess)Key=(?P<secret>[A-Za-z0-9+/]{40,}={0,2})"
    ),
    _rule("digitalocean", "_v1_", r"do[opr]_v1_[0-9a-f]{64}"),
    _rule("shopify", "shpat_ shpca_ shppa_ shpss_", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    _rule(
        "api_key",
        "dapi dckr_pat_ hvs. hvb. sq0 lin_api_ glc_ glsa_ nrak- atatt3 gsk_ r8_ figd_ pmak- dp.pt. sbp_ "
        "age-secret-key-1 .atlasv1. eaacedeose0cba ntn_",
        r"(?:dapi[0-9a-f]{32}|dckr_pat_[A-Za-z0-9_-]{27}|hv[sb]\.[A-Za-z0-9_-]{24,}|sq0[a-z]{3}-[A-Za-z0-9_-]{22,43}"
        r"|lin_api_[A-Za-z0-9]{40}|gl(?:c|sa)_[A-Za-z0-9+/=_]{32,}|NRAK-[A-Z0-9]{27}|ATATT3[A-Za-z0-9_=-]{50,}"
        r"|gsk_[A-Za-z0-9]{48,}|r8_[A-Za-z0-9]{37}|figd_[A-Za-z0-9_-]{36,}|PMAK-[0-9a-f]{24}-[0-9a-f]{34}"
        r"|dp\.pt\.[A-Za-z0-9]{40,}|sbp_[0-9a-f]{40}|AGE-SECRET-KEY-1[A-Z0-9]{58}|ntn_[A-Za-z0-9]{40,}"
        r"|[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,}|EAACEdEose0cBA[A-Za-z0-9]+)",
    ),
    _rule("jwt", "eyj", r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]{16,})?", _always),
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
            r"://[^\s:/@\"'<>]{0,64}:(?P<secret>[^\s/\"'<>{}$%*][^\s/\"'<>{}]{2,127})"
            r"@(?=[A-Za-z0-9_.\[{$-])(?![^\s/\"'<>]*@)"
        ),
        lambda value: (
            not is_placeholder(value)
            and value.lower() not in ("pass", "passwd", "password", "pwd", "pw", "secret", "token", "port")
        ),
        "<PASSWORD>",
    ),
    Rule(
        "password_hash",
        ("$1$", "$5$", "$6$", "$y$", "$2a$", "$2b$", "$2y$", "$apr1$", "$argon2"),
        re.compile(r"\$(?:1|5|6|y|2[aby]|apr1|argon2(?:id?|d))\$[A-Za-z0-9./+$=,]{20,200}"),
        _always,
        "<PASSWORD>",
    ),
)
