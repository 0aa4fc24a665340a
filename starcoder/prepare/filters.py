"""BigCode's quality filters: a name, a default and a reason to drop a file for each.

Sources: bigcode-project/bigcode-dataset: preprocessing/filtering.py (line_max, line_mean, alphanum, xml,
html, json_yaml) and The Stack v2 (arXiv 2402.19173, section 3.1: line_count, alpha, encoded). Its comment,
star and fertility filters are not here: they choose among strangers' code, and this is one's own.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from html.parser import HTMLParser

from starcoder.errors import ConfigError

# Languages whose lines are long by nature. Source: The Stack v2, "long line filters".
_LONG_LINES = {"HTML", "JSON", "Markdown", "TeX", "Text", "XML", "reStructuredText", "RMarkdown", "XSLT"}
_DATA = ("JSON", "JSON with Comments", "JSON5", "JSONLD", "YAML", "CSV", "TSV")
_FEW_LETTERS = {"Isabelle", "Agda", "Lean", "Assembly", "Augeas", "INI", "Go Module", "Yacc", "SQL"}
_ENCODED = re.compile(
    r"[a-zA-Z0-9+/\n=]{64,}|(?:\b(?:0x|\\x)?[0-9a-fA-F]{2}(?:,|\b\s*)){8,}|(?:\\u[0-9a-fA-F]{4}){8,}"
)
_NOT_ALNUM = {code: None for code in range(128) if not chr(code).isalnum()}
_NOT_ALPHA = {code: None for code in range(128) if not chr(code).isalpha()}


NAMES = frozenset(
    {
        *("min_characters", "line_count", "line_mean", "line_max", "alphanum", "alpha"),
        *("xml", "html", "json_yaml", "encoded"),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterSettings:
    """The filters' thresholds, by their names. Validated when made: `ConfigError` names the field."""

    min_characters: int = 1
    """Minimum number of characters of a file."""
    line_count: int = 100_000
    """Maximum number of lines."""
    line_max: int = 1000
    """Maximum length of a line in characters; not for prose and markup."""
    line_mean: float = 100.0
    """Maximum mean length of the lines in characters; not for prose and markup."""
    alphanum: float = 0.25
    """Minimum share of letters and digits."""
    alpha: float = 0.25
    """Minimum share of letters; not for languages of tables and symbols."""
    encoded: float = 0.5
    """Maximum share of base64, hex or \\u data; runs of 1,024 characters of it are always too many."""
    html: float = 0.2
    """Minimum share of visible text in HTML, which also needs 100 characters of it."""
    json_yaml: int = 5000
    """Maximum number of characters of JSON and YAML; the minimum is 50."""
    xml: bool = True
    """Drop files that begin as XML."""
    skip_filter: frozenset[str] = frozenset()
    """Name of a filter not to apply, such as json_yaml; may be given several times."""

    def __post_init__(self) -> None:
        for name in sorted(self.skip_filter - NAMES):
            raise ConfigError(f"there is no filter {name!r}", f"the filters are {', '.join(sorted(NAMES))}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value < 0:
                raise ConfigError(f"{field.name} is {value}; expected 0 or more")


def reason_to_drop(content: str, language: str, settings: FilterSettings = FilterSettings()) -> str | None:
    """The name of the first filter that drops the file; None: it stays."""
    for name, drops in _FILTERS.items():
        if name not in settings.skip_filter and drops(content, language, settings):
            return name
    return None


def _line_max(content: str, language: str, settings: FilterSettings) -> bool:
    return language not in _LONG_LINES and max(map(len, content.split("\n"))) > settings.line_max


def _line_mean(content: str, language: str, settings: FilterSettings) -> bool:
    mean = len(content) / (content.count("\n") + 1)
    return language not in _LONG_LINES and mean > settings.line_mean


def _alphanum(content: str, language: str, settings: FilterSettings) -> bool:
    return len(content.translate(_NOT_ALNUM)) < settings.alphanum * len(content)


def _alpha(content: str, language: str, settings: FilterSettings) -> bool:
    return language not in _FEW_LETTERS and len(content.translate(_NOT_ALPHA)) < settings.alpha * len(content)


def _encoded(content: str, language: str, settings: FilterSettings) -> bool:
    lengths = [match.end() - match.start() for match in _ENCODED.finditer(content)]
    return max(lengths, default=0) > 1024 or sum(lengths) > settings.encoded * len(content)


def _xml(content: str, language: str, settings: FilterSettings) -> bool:
    return settings.xml and language != "XSLT" and "<?xml version=" in content[:100]


def _html(content: str, language: str, settings: FilterSettings) -> bool:
    if language != "HTML":
        return False
    visible = _VisibleText()
    visible.feed(content)
    return visible.size < max(100, settings.html * len(content))


class _VisibleText(HTMLParser):
    """Counts the characters that a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style") and self._hidden > 0

    def handle_data(self, data: str) -> None:
        self.size += 0 if self._hidden else len(" ".join(data.split()))


def _json_yaml(content: str, language: str, settings: FilterSettings) -> bool:
    return language in _DATA and not 50 <= len(content) <= settings.json_yaml


_FILTERS: dict[str, Callable[[str, str, FilterSettings], bool]] = {
    "min_characters": lambda content, _, settings: len(content.strip()) < settings.min_characters,
    "line_count": lambda content, _, settings: content.count("\n") >= settings.line_count,
    "line_mean": _line_mean,
    "line_max": _line_max,
    "alphanum": _alphanum,
    "alpha": _alpha,
    "xml": _xml,
    "html": _html,
    "json_yaml": _json_yaml,
    "encoded": _encoded,
}
