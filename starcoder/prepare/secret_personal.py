"""Personal data: e-mail addresses, names behind author tags, public IP addresses."""

import ipaddress
import re
from collections.abc import Iterator
from zlib import crc32

from starcoder.prepare.secret_rules import Finding

_LOCAL = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}\Z", re.ASCII)
_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?\.)+"
    r"(?:[a-z]{2}|[A-Z]{2}|(?i:com|org|net|edu|gov|mil|int|info|biz|name|dev|app|tech|xyz|online|cloud|email"
    r"|site|store|pro|agency|academy|digital|systems|software|network|science|world|group|company|tel))(?![\w-])",
    re.ASCII,
)
# Reserved for documentation and tests by RFC 2606 and 6761, and accounts of no person.
_NO_DOMAIN = re.compile(r"(?i)(?:.*\.)?(?:example(?:\.\w+)?|[\w.-]+\.(?:test|invalid|localhost|local))")
_NO_PERSON = frozenset({"git", "hg", "svn", "noreply", "no-reply", "user", "username"})
_FILES = frozenset({"py", "js", "ts", "rb", "go", "hh", "kt", "hs", "cs"})

# Behind each word: what ends the tag, and a name of two to four words.
_NAME = re.compile(
    r"(?:__\s?=\s?[\"']|s?\s?:|s?(?<=@author)|s?(?<=@authors)|(?<=[nd] by))[ \t]{0,20}(?:[DM][rs]s?\. )?"
    r"(?P<secret>[^\W\d_a-z][\w'\u2019-]+"
    r"(?: (?:[^\W\d_a-z]\.|[^\W\d_a-z][\w'\u2019-]+|van|von|de|der|di|da|la)){1,3})"
)
_NAME_WORDS = ("author", "written by", "created by", "contributed by", "maintainer")

# What comes before is looked at afterwards: patterns that begin with a set are searched much faster.
_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w-]|\.\w)")
_IPV6 = re.compile(r"[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,32}(?![\w:.])")
_BEFORE = re.compile(r"[\w.:-]\Z")
_NO_ADDRESS = re.compile(r"(?i)(?:version|ver|release|oid|section|rfc|[<>=~!]=|[a-z]/)[\s:=\"'(]{0,4}\Z")
# Well-known resolvers and the textbook's address: they tell of nobody.
_PUBLIC = frozenset(
    {"1.1.1.1", "1.0.0.1", "8.8.8.8", "8.8.4.4", "9.9.9.9", "149.112.112.112", "208.67.222.222"}
    | {"208.67.220.220", "1.2.3.4", "4.3.2.1", "5.6.7.8", *(".".join(4 * [str(n)]) for n in range(2, 256))}
)
# The private addresses that the family was trained on in the place of others.
# Source: bigcode-dataset pii/ner/pii_redaction/replacements.json.
_IPV4_INSTEAD = ("172.16.31.10", "172.16.58.3", "172.16.17.32", "192.168.127.12", "192.168.3.11")
_IPV6_INSTEAD = (
    "fd00:c2b6:b24b:be67:2827:688d:e6a1:6a3b",
    "fd00:a516:7c1b:17cd:6d81:2137:bd2a:2c5b",
    "fc00:e968:6179::de52:7100",
    "fc00:db20:35b:7399::5",
    "fdf8:f53e:61e4::18",
)


def find_personal(text: str, lower: str) -> Iterator[Finding]:
    """Addresses and names; `lower` is the text in lower case."""
    yield from _emails(text)
    for word in _NAME_WORDS:
        start = lower.find(word)
        while start >= 0:
            match = _NAME.match(text, start + len(word))
            if match:
                yield Finding("name", *match.span("secret"), "<NAME>")
            start = lower.find(word, start + len(word))
    yield from _addresses(text, _IPV4, _IPV4_INSTEAD)
    if text.count(":") > 2:
        yield from _addresses(text, _IPV6, _IPV6_INSTEAD)


def _emails(text: str) -> Iterator[Finding]:
    at = text.find("@", 1)
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1) if text[at - 1].isalnum() or text[at - 1] in "_-+" else None
        local = _LOCAL.search(text, max(0, at - 64), at) if domain else None
        if domain and local and _is_person(local[0].lower(), domain[0].lower()):
            yield Finding("email", local.start(), domain.end(), "<EMAIL>")
        at = text.find("@", at + 1)


def _is_person(local: str, domain: str) -> bool:
    if local in _NO_PERSON or _NO_DOMAIN.fullmatch(domain):
        return False
    return domain.rpartition(".")[2] not in _FILES


def _addresses(text: str, pattern: re.Pattern[str], instead: tuple[str, ...]) -> Iterator[Finding]:
    for match in pattern.finditer(text):
        start = match.start()
        if _BEFORE.search(text, max(0, start - 1), start) or not _is_public(match[0]):
            continue
        if not _NO_ADDRESS.search(text, max(0, start - 16), start):
            yield Finding("ip", *match.span(), instead[crc32(match[0].encode()) % len(instead)])


def _is_public(text: str) -> bool:
    """Whether the address is one of a machine on the internet, and no version number or network."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return (
            address.is_global
            and not address.is_multicast
            and text not in _PUBLIC
            and not text.endswith((".0", ".255"))
        )
    return address.is_global and not address.is_multicast and sum(map(bool, text.split(":"))) >= 4
