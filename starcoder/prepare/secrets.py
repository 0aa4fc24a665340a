"""Finds secrets and personal data in source text and puts the family's placeholders in their place.

Rules for well-known formats, for assignments to telling names, for personal data. Each rule names words
without which it cannot match, so that most texts are searched for words alone. Limits: names of people are
found behind author tags only (copyright lines stay: licenses demand them); passwords of plain words and
secrets without a telling name or format are not told from other text.
"""

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from starcoder.errors import ConfigError, MissingExtraError
from starcoder.prepare.secret_assignments import find_assigned
from starcoder.prepare.secret_personal import find_personal
from starcoder.prepare.secret_rules import RULES, Finding

if TYPE_CHECKING:
    from typing import Protocol

    class _Detector(Protocol):
        def analyze_string(self, line: str) -> Iterator[str]: ...


__all__ = ["KINDS", "Finding", "Masked", "SecretSettings", "find", "mask"]

KINDS = tuple(
    sorted(
        {rule.kind for rule in RULES} | {"assignment", "detect_secrets", "email", "ip", "name", "password"}
    )
)

# Detectors of detect-secrets that know a format; those that guess by entropy or keyword mask too much code.
_DETECTORS = (
    "AWSKeyDetector",
    "ArtifactoryDetector",
    "AzureStorageKeyDetector",
    "BasicAuthDetector",
    "CloudantDetector",
    "DiscordBotTokenDetector",
    "GitHubTokenDetector",
    "GitLabTokenDetector",
    "IbmCloudIamDetector",
    "IbmCosHmacDetector",
    "JwtTokenDetector",
    "MailchimpDetector",
    "NpmDetector",
    "OpenAIDetector",
    "PypiTokenDetector",
    "SendGridDetector",
    "SlackDetector",
    "SoftlayerDetector",
    "SquareOAuthDetector",
    "StripeDetector",
    "TelegramBotTokenDetector",
    "TwilioKeyDetector",
)

_REPEATED = 8  # characters from which on other occurrences of a secret are masked as well


@dataclass(frozen=True, kw_only=True, slots=True)
class SecretSettings:
    """What is looked for. Validated when made: `ConfigError` names the field."""

    leave_secrets: frozenset[str] = frozenset()
    """Kind of secret not to mask, such as email or ip; may be given several times."""
    detect_secrets: bool = False
    """Search with detect-secrets as well, from the extra `prepare`; much slower."""

    def __post_init__(self) -> None:
        for kind in sorted(self.leave_secrets - set(KINDS)):
            raise ConfigError(f"leave_secrets has {kind!r}; expected kinds among {', '.join(KINDS)}")


@dataclass(frozen=True, slots=True)
class Masked:
    """A text without its secrets. `found` counts what was masked, by kind; safe to print."""

    text: str
    found: Mapping[str, int]


def find(text: str, settings: SecretSettings = SecretSettings()) -> tuple[Finding, ...]:
    """Every secret, in order, without overlaps.

    Raises:
        ConfigError: detect-secrets is asked for and not installed.
    """
    lower = _lower(text)
    found = [finding for rule in RULES for finding in rule.find(text, lower)]
    found += find_assigned(text, lower)
    found += find_personal(text, lower)
    if settings.detect_secrets:
        found += _find_by_detect_secrets(text)
    wanted = [finding for finding in found if finding.kind not in settings.leave_secrets]
    return tuple(_merged([*wanted, *_repeated(text, wanted)]))


def mask(text: str, settings: SecretSettings = SecretSettings()) -> Masked:
    """The text with a placeholder for every secret. Masking a masked text changes nothing.

    Raises:
        ConfigError: detect-secrets is asked for and not installed.
    """
    parts, end = [], 0
    findings = find(text, settings)
    for finding in findings:
        parts += [text[end : finding.start], finding.replacement]
        end = finding.end
    parts.append(text[end:])
    counts = Counter(finding.kind for finding in findings)
    return Masked("".join(parts), dict(sorted(counts.items())))


def _lower(text: str) -> str:
    """Lower case with every character where it was."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    return "".join(one.lower() if len(one.lower()) == 1 else one for one in text)


def _repeated(text: str, found: Iterable[Finding]) -> Iterator[Finding]:
    """Other places of the same secrets, where no rule would know them."""
    for finding in {text[f.start : f.end]: f for f in found if f.is_secret}.items():
        secret, first = finding
        if len(secret) < _REPEATED:
            continue
        start = text.find(secret)
        while start >= 0:
            yield Finding(first.kind, start, start + len(secret), first.replacement)
            start = text.find(secret, start + len(secret))


def _merged(found: list[Finding]) -> Iterator[Finding]:
    """Overlapping findings as one that covers them all, named after the first."""
    last: Finding | None = None
    for finding in sorted(found, key=lambda f: (f.start, -f.end)):
        if last is None or finding.start >= last.end:
            if last is not None:
                yield last
            last = finding
        elif finding.end > last.end:
            last = Finding(last.kind, last.start, finding.end, last.replacement)
    if last is not None:
        yield last


def _find_by_detect_secrets(text: str) -> Iterator[Finding]:
    start = 0
    for line in text.splitlines(keepends=True):
        for detector in _detectors():
            for secret in detector.analyze_string(line):
                place = line.find(secret)
                if secret and place >= 0 and not secret.startswith("<"):
                    place += start
                    yield Finding("detect_secrets", place, place + len(secret), "<KEY>")
        start += len(line)


@cache
def _detectors() -> "tuple[_Detector, ...]":
    try:
        util = importlib.import_module("detect_secrets.core.plugins.util")
    except ImportError as error:
        raise MissingExtraError(
            f"detect-secrets needs {error.name}, which is not installed", "prepare"
        ) from None
    classes = {one.__name__: one for one in util.get_mapping_from_secret_type_to_class().values()}
    return tuple(classes[name]() for name in _DETECTORS if name in classes)
