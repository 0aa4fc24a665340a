"""Finds secrets and personal data in source text and puts the family's placeholders in their place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Placeholder = Literal["<EMAIL>", "<NAME>", "<KEY>", "<PASSWORD>"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SecretSettings:
    """What is looked for. Validated when made: `ConfigError` names the field."""

    leave: frozenset[str] = frozenset()  # kinds that stay in the text, such as "email" or "ip"
    detect_secrets: bool = False  # detect-secrets looks as well (extra `prepare`; much slower)


@dataclass(frozen=True, slots=True)
class Finding:
    """One secret: where it stands, in characters of the original text, and never what it is."""

    kind: str
    start: int
    end: int
    replacement: str


@dataclass(frozen=True, slots=True)
class Masked:
    """A text without its secrets. `found` counts what was masked, by kind; safe to print."""

    text: str
    found: Mapping[str, int]


def find(text: str, settings: SecretSettings = SecretSettings()) -> tuple[Finding, ...]:
    """Every secret, in order, without overlaps."""
    raise NotImplementedError


def mask(text: str, settings: SecretSettings = SecretSettings()) -> Masked:
    """The text with a placeholder for every secret. Masking a masked text changes nothing.

    Raises:
        ConfigError: detect-secrets is asked for and not installed.
    """
    raise NotImplementedError
