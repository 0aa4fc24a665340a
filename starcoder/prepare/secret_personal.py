"""Personal data: e-mail and IP addresses, names behind author tags, phone, bank and card numbers."""

import ipaddress
import re
from collections.abc import Iterator
from zlib import crc32

from starcoder.prepare.secret_rules import Finding

_LOCAL = re.compile(r"[^\W_][\w.+'-]{0,63}\Z")
_DOMAIN = re.compile(
    r"(?:[^\W_](?:[\w-]{0,62}[^\W_])?\.)+(?P<top>xn--[A-Za-z0-9-]{2,30}|[^\W\d_]{2,24})(?![\w-]|\()"
)
# Endings that code does not have; with others an address is in quotes, brackets or behind a word for it.
_COMMON_TOPS = frozenset(
    [
        "com",
        "org",
        "net",
        "edu",
        "gov",
        "mil",
        "int",
        "info",
        "biz",
        "name",
        "dev",
        "app",
        "tech",
        "xyz",
        "online",
        "cloud",
        "email",
        "site",
        "store",
        "pro",
        "agency",
        "academy",
        "digital",
        "systems",
        "software",
        "network",
        "science",
        "world",
        "group",
        "company",
        "tel",
        "de",
        "uk",
        "fr",
        "nl",
        "it",
        "es",
        "pl",
        "ru",
        "cn",
        "jp",
        "br",
        "eu",
        "ch",
        "at",
        "au",
        "ca",
        "us",
        "se",
        "no",
        "dk",
        "fi",
        "cz",
        "be",
        "gr",
        "pt",
        "hu",
        "ro",
        "ie",
        "kr",
        "tw",
        "mx",
        "ar",
        "cl",
        "co",
        "nz",
        "za",
        "il",
        "tr",
        "ua",
        "sk",
        "bg",
        "lt",
        "lv",
        "ee",
        "io",
    ]
)
_COMMON_DOMAIN = re.compile(rf"(?i)(?:[\w-]+\.)+(?:{'|'.join(sorted(_COMMON_TOPS))})(?=\.)")
_ENCLOSED = re.compile(
    r"(?:[\"'`<(]|mailto:|e-?mail\W{1,4}|contact\W{1,3}|author\w*\W{1,4}[\w .]{0,40}|to:\s?|from:\s?"
    r"|by:?\s[\w .]{0,40})\Z",
    re.IGNORECASE,
)
# Reserved for documentation and tests by RFC 2606 and 6761, and accounts of no person.
_NO_DOMAIN = re.compile(r"(?i)(?:.*\.)?(?:example(?:\.\w+)?|[\w.-]+\.(?:test|invalid|localhost|local))")
_NO_PERSON = frozenset({"git", "hg", "svn", "noreply", "no-reply", "user", "username"})
_FILES = frozenset(
    {"py", "js", "ts", "rb", "go", "hh", "kt", "hs", "cs", "sh", "rs", "md", "pl", "so", "ps", "ml", "mm"}
)
# Rows of code: what stands before an @ of a matrix product or a decorator, and what is called behind it.
_CODE_BEFORE = re.compile(r"(?:^|[=(\[,+*/-]|\breturn)\s*\Z", re.MULTILINE)

# Behind each word: what ends the tag; then names of two to four words, in a list perhaps.
_TAG = re.compile(
    r"(?:s|\(s\))?(?:(?:__)?[ \t]?=[ \t]?(?:\[[ \t]*)?(?:\{[ \t]*name[ \t]*=[ \t]*)?[\"']"
    r"|[\"']?[ \t]?:[ \t]?(?:\[?\{?[ \t]*[\"'](?:name[\"']:[ \t]*[\"'])?)?"
    r"|(?<=@author)|(?<=@authors)|(?<=[nd] by)|(?<=-by))[ \t]{0,20}(?:[DM][rs]s?\. |Prof\. )?"
)
_PERSON = re.compile(
    r"(?P<secret>[^\W\d_a-z][\w'\u2019-]+"
    r"(?: (?:[^\W\d_a-z]\.|(?:van|von|de|der|den|di|da|la|el|bin|al|ter|ten|dos|du)\b"
    r"|[^\W\d_a-z][\w'\u2019-]+)){1,4})"
    r"|(?P<short>[\u4e00-\u9fff\u3040-\u30ff\uac00-\ud7af]{2,6}"
    r"(?:[ \u3000][\u4e00-\u9fff\u3040-\u30ff\uac00-\ud7af]{1,4})?)(?!\w)"
)
_NEXT = re.compile(
    r"(?:[ \t]*<[^<>\n]{0,80}>|[ \t]*\([^()\n]{0,80}\))?[\"'}]{0,2}[ \t]*(?:,|;|&|/|\band\b"
    r"|,[ \t]*and\b)[ \t]*(?:\{?[ \t]*(?:name[ \t]*=[ \t]*)?[\"'])?"
)
_ORGANIZATION = re.compile(
    r"\b(?:Inc|Ltd|LLC|GmbH|Corp|Corporation|Company|Co|Foundation|Project|Team|Group|Software|Systems"
    r"|Technolog\w+|Labs?"
    r"|Laborator\w+|University|Universit\w+|Institut\w*|College|School|Department|Studios?|Code"
    r"|Community|Contributors?"
    r"|Authors?|Developers?|Maintainers?|Consortium|Association|Organization|Committee|Council|Alliance|Bank|Research|Center"
    r"|Centre|Network|Networks|Solutions|Services|Microsystems|Computing|Engineering|Platform|Framework"
    r"|Library|Read|Please"
    r"|This|See|The|File|License|Copyright|Apache|Mozilla|Google|Microsoft|Facebook|Oracle|Amazon|IBM"
    r"|Intel|Python|Linux"
    r"|Visual|Studio|GNU|Your|My|New|Open|Source|Name|Full|First|Last|None|True|False|All|Rights"
    r"|Reserved)\b"
)
_NAME_WORDS: tuple[str, ...] = (
    "author",
    "written by",
    "created by",
    "contributed by",
    "maintainer",
    "signed-off-by",
    "co-authored-by",
)
_NAME_WORDS += ("reviewed-by", "acked-by", "tested-by", "reported-by", "maintained by", "developed by")

_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?"
    r"(?![A-Za-z0-9])"
)
_CARD = re.compile(r"[3-6]\d{3}([ -])\d{4}\1\d{4}\1\d{3,4}(?![\w-])|[\"'][3-6]\d{14,15}[\"']")
_SSN = re.compile(
    r"(?i)(?:\bssn\b|social.security)\D{0,30}?(?P<secret>(?!000|666|9)\d{3}[- ]\d{2}[- ]\d{4})(?!\d)"
)
_PHONE = re.compile(
    r"\+(?<![\w+.*/=-]\+)[1-9]\d{0,2}(?:[ .-]?\(0?\d{1,4}\)[ .-]?|[ .-])\d{2,4}(?:[ .-]\d{2,5}){1,4}"
    r"(?![\w.]*\w)"
)
_PHONE_TAG = re.compile(
    r"\w{0,10}[\"']?[ \t]*[:=][ \t]*[\"']?(?:tel:)?(?P<secret>(?:\+|\(|0)[\d() .-]{8,18}\d)(?!\w)"
)
_HOME = re.compile(
    r"(?:/home/|/Users/|[A-Z]:\\{1,2}Users\\{1,2})(?P<secret>[A-Za-z][\w.-]{2,31})(?=[/\\\"'\s:])"
)
_NO_HOME = re.compile(
    r"(?i)user\w*|name|root|ubuntu|runner|vagrant|git|app|node|ec2-user|circleci|travis|jenkins|default"
    r"|public|shared|admin\w*"
    r"|guest|docker|debian|centos|pi|me|you\w*|test\w*|dev|build\w*|python|www|web|deploy|postgres"
    r"|codespace|gitpod|vscode"
    r"|conda|jovyan|linuxbrew|appuser|someone|somebody|foo|bar|alice|bob|joe|john|jdoe|johndoe|janedoe"
    r"|all|nobody|ftp|data|service"
)
_CLOUD_HOST = re.compile(r"\bec2-(?P<secret>\d{1,3}-\d{1,3}-\d{1,3}-\d{1,3})(?=[.-])")

# What comes before is looked at afterwards: patterns that begin with a set are searched much faster.
_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w-]|\.\w)")
_IPV6 = re.compile(r"[0-9A-Fa-f]{1,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,32}(?![\w:.])")
_BEFORE = re.compile(r"[\w.:-]\Z")
_NO_ADDRESS = re.compile(
    r"(?i)(?:(?<![a-z])(?:\w{0,20}version|ver|release|oid|section|rfc|v)(?:__|_\w+)?|[<>=~!^]=|[~^]|[a-z]/"
    r"|<\w*version\w*>|^#{1,6}|^\[)[\s:=\"'(\[v]{0,6}\Z",
    re.MULTILINE,
)
_OID = re.compile(r"(?:0|1|2)\.\d{1,2}\.\d+\.\d+")
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


KINDS = ("card", "email", "home", "iban", "ip", "name", "phone", "ssn")


def find_personal(text: str, lower: str) -> Iterator[Finding]:
    """Addresses, names and numbers of persons; `lower` is the text in lower case."""
    yield from _emails(text)
    for word in _NAME_WORDS:
        start = lower.find(word)
        while start >= 0:
            yield from _names(text, start + len(word))
            start = lower.find(word, start + len(word))
    yield from _addresses(text, _IPV4, _IPV4_INSTEAD)
    if text.count(":") > 2:
        yield from _addresses(text, _IPV6, _IPV6_INSTEAD)
    yield from _numbers(text, lower)


def _names(text: str, at: int) -> Iterator[Finding]:
    """The persons behind a tag, all of a list."""
    tag = _TAG.match(text, at)
    at = tag.end() if tag else -1
    for _ in range(20):
        match = _PERSON.match(text, at) if at >= 0 else None
        if match is None:
            return
        group = "secret" if match["secret"] else "short"
        if not _ORGANIZATION.search(match[group]):
            yield Finding("name", *match.span(group), "<NAME>")
        more = _NEXT.match(text, match.end())
        at = more.end() if more else -1


def _numbers(text: str, lower: str) -> Iterator[Finding]:
    for match in _IBAN.finditer(text):
        if _is_iban(match[0]):
            yield Finding("iban", *match.span(), "<IBAN>")
    for match in _CARD.finditer(text):
        is_whole = not re.search(r"[\w.-]\Z", text[max(0, match.start() - 1) : match.start()])
        if is_whole and _is_card(match[0]):
            quote = match[0][0] in "\"'"
            yield Finding("card", match.start() + quote, match.end() - quote, "<CARD>")
    if "ssn" in lower or "social" in lower:
        for match in _SSN.finditer(text):
            yield Finding("ssn", *match.span("secret"), "<SSN>")
    yield from (Finding("phone", *span, "<PHONE>") for span in _phones(text, lower))
    if "/home/" in lower or "/users/" in lower or "\\users" in lower:
        for match in _HOME.finditer(text):
            if not _NO_HOME.fullmatch(match["secret"]):
                yield Finding("home", *match.span("secret"), "user")
    if "ec2-" in lower:
        for match in _CLOUD_HOST.finditer(text):
            if _is_public(match["secret"].replace("-", ".")):
                yield Finding("ip", *match.span("secret"), _IPV4_INSTEAD[0].replace(".", "-"))


def _phones(text: str, lower: str) -> Iterator[tuple[int, int]]:
    spans = [match.span() for match in _PHONE.finditer(text)]
    for word in ("phone", "tel", "mobile", "fax", "whatsapp"):
        start = lower.find(word)
        while start >= 0:
            tagged = _PHONE_TAG.match(text, start + len(word))
            spans += [tagged.span("secret")] if tagged else []
            start = lower.find(word, start + len(word))
    for start, end in spans:
        is_made_up = re.search(r"555[ .-]?01|0{5}|1234", text[start:end])
        if 8 <= sum(map(str.isdigit, text[start:end])) <= 15 and not is_made_up:
            yield start, end


def _is_iban(text: str) -> bool:
    """Source: ISO 13616, the check digits."""
    text = text.replace(" ", "")
    if not 15 <= len(text) <= 34 or not any(map(str.isdigit, text[4:])):
        return False
    return int("".join(str(int(one, 36)) for one in text[4:] + text[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    """Source: ISO/IEC 7812, the Luhn check."""
    digits = [int(one) for one in text if one.isdigit()]
    if len(set(digits)) < 4 or "".join(map(str, digits)) in _TEST_CARDS:
        return False
    doubled = [sum(divmod(2 * one, 10)) if n % 2 else one for n, one in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


# Numbers that payment services publish for tests.
_TEST_CARDS = frozenset(
    {"4111111111111111", "4242424242424242", "5555555555554444", "378282246310005", "4012888888881881"}
)


def _emails(text: str) -> Iterator[Finding]:
    at = text.find("@", 1)
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1) if text[at - 1].isalnum() or text[at - 1] in "_-+" else None
        local = _LOCAL.search(text, max(0, at - 64), at) if domain else None
        if domain and local and _is_email(text, local, domain):
            yield Finding("email", local.start(), domain.end(), "<EMAIL>")
        elif domain and local and (known := _COMMON_DOMAIN.match(domain[0])):
            # A file's ending or a sentence's next word came behind the address.
            whole = _DOMAIN.match(text, at + 1, at + 1 + known.end())
            if whole and _is_email(text, local, whole):
                yield Finding("email", local.start(), whole.end(), "<EMAIL>")
        at = text.find("@", at + 1)


def _is_email(text: str, local: re.Match[str], domain: re.Match[str]) -> bool:
    if not _is_person(local[0].lower(), domain[0].lower()):
        return False
    before = text[max(0, local.start() - 60) : local.start()]
    if re.search(r"://[^\s\"'<>]*\Z", before):
        return False  # of a URL's user and password
    top = domain["top"].lower()
    if top in _COMMON_TOPS and "." not in domain[0][: -len(top) - 1] and len(domain[0]) < 7:
        return _ENCLOSED.search(before) is not None or not _CODE_BEFORE.search(before)
    if top in _COMMON_TOPS:
        return True
    after = text[domain.end() : domain.end() + 1]
    is_enclosed = _ENCLOSED.search(before) is not None or after in (">", '"', "'")
    return is_enclosed and not (_CODE_BEFORE.search(before) and after not in (">", '"', "'"))


def _is_person(local: str, domain: str) -> bool:
    if local in _NO_PERSON or _NO_DOMAIN.fullmatch(domain):
        return False
    return domain.rpartition(".")[2] not in _FILES


def _addresses(text: str, pattern: re.Pattern[str], instead: tuple[str, ...]) -> Iterator[Finding]:
    for match in pattern.finditer(text):
        start = match.start()
        if _BEFORE.search(text, max(0, start - 1), start) or not _is_public(match[0]):
            continue
        before = text[max(0, start - 24) : start]
        if _NO_ADDRESS.search(before) or (pattern is _IPV4 and _is_version(text, match)):
            continue
        yield Finding("ip", *match.span(), instead[crc32(match[0].encode()) % len(instead)])


def _is_version(text: str, match: re.Match[str]) -> bool:
    """Whether the four numbers are a version or an object identifier, by their size and what is around."""
    if _OID.fullmatch(match[0]) and text[match.start() - 1 : match.start()] in "\"'":
        return True
    alone = text[: match.start()].strip() == "" and text[match.end() :].strip() == ""
    after = text[match.end() : match.end() + 20]
    return (
        alone
        or re.match(r"</\w*version|[\])]?\s{0,3}[-(]\s{0,2}\d{4}-\d\d", after, re.IGNORECASE) is not None
    )


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
    return address.is_global and not address.is_multicast and sum(map(bool, text.split(":"))) >= 3
