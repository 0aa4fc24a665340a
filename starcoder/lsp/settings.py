"""What the language server can be asked to do, and where that is read from.

Later sources win: the user's `starcoder.toml`, the project's, the command line, the editor's initialization
options. A project's file is written by somebody else: it cannot name a server that code would be sent to.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from os import environ
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from starcoder.errors import ConfigError

MultiLine = Literal["auto", "always", "never"]
FILE = "starcoder.toml"
_NOT_FROM_PROJECTS = frozenset(("url", "api_key"))


@dataclass(frozen=True, kw_only=True, slots=True)
class LspSettings:
    """Validated when made: `ConfigError` names the field."""

    url: str | None = None
    """Address of a running `starcoder serve`; without one, the language server starts one itself."""
    api_key: str | None = None
    """API key that the server requires."""
    model: str | None = None
    """Model that a started server runs; the bundled model by default."""
    quantize: str | None = None
    """Quantization of a started server: int8 or int4."""
    adapter: str | None = None
    """Adapter of a started server."""
    max_tokens: int = 96
    """Maximum number of tokens of a completion."""
    multi_line: MultiLine = "auto"
    """Complete several lines: always, never, or auto: on empty lines and where a block begins."""
    max_line_suffix: int = 8
    """Do not complete while more characters than this are to the right of the cursor."""
    context_characters: int = 6000
    """Characters of other files that are sent with a request; 0 sends none."""
    exclude: tuple[str, ...] = ()
    """Files that are never read or completed, as patterns of .gitignore."""
    disabled_languages: tuple[str, ...] = ()
    """Language identifiers without completions, such as markdown."""
    completion: bool = False
    """Also answer plain completion requests, for editors without inline completions."""
    completion_deadline_ms: float = 150.0
    """Answer a plain completion request within this time or leave it empty."""
    timeout_s: float = 20.0
    """Give up a request to the server after this time."""

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, value := tuple(value))
            if not _fits(value, kinds[field.name]):
                raise ConfigError(
                    f"{field.name} is {value!r}; expected {_spelled(kinds[field.name])}",
                    f"set {field.name} in {FILE}, table [lsp]",
                )
        for name, least in (("max_tokens", 1), ("max_line_suffix", 0), ("context_characters", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("completion_deadline_ms", "timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected a number above 0")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url is {self.url!r}; expected http://... or https://...")

    def updated(self, values: Mapping[str, Any], source: str) -> "LspSettings":
        """With `values` in place of the present ones; `source` is named in errors.

        Raises:
            ConfigError: a key that does not exist, or a value that does not fit it.
        """
        known = {field.name for field in fields(self)}
        for name in values:
            if name not in known:
                raise ConfigError(
                    f"{source} has the key {name!r}, which does not exist",
                    f"known keys: {', '.join(sorted(known))}",
                )
        return replace(self, **values)


def read(base: LspSettings, root: Path | None) -> tuple[LspSettings, list[str]]:
    """`base` with the user's file and then the project's on top; also what was ignored, as messages.

    Raises:
        ConfigError: a file that is not TOML, a key or value that does not fit.
    """
    user = _table(config_folder() / FILE)
    settings, ignored = base.updated(user, str(config_folder() / FILE)), []
    if root is not None:
        table = _table(root / FILE)
        for name in sorted(_NOT_FROM_PROJECTS & table.keys()):
            del table[name]
            ignored.append(f"{name} of {root / FILE} is ignored: a project cannot choose where code is sent")
        settings = settings.updated(table, str(root / FILE))
    return settings, ignored


def config_folder() -> Path:
    """The user's configuration of starcoder."""
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "starcoder"


def state_folder() -> Path:
    """Where running servers are recorded and acceptance is counted."""
    return Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "starcoder"


def _table(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text("utf-8")).get("lsp", {})
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not TOML: {error}") from None
    if not isinstance(table, dict):
        raise ConfigError(f"lsp in {str(path)!r} is not a table", "write [lsp] above the keys")
    return {name.replace("-", "_"): value for name, value in table.items()}


def _fits(value: object, kind: Any) -> bool:
    if get_origin(kind) is UnionType:
        return any(_fits(value, choice) for choice in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(isinstance(x, str) for x in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _spelled(kind: Any) -> str:
    if get_origin(kind) is UnionType:
        return " or ".join(_spelled(choice) for choice in get_args(kind))
    if get_origin(kind) is Literal:
        return ", ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a list of strings"
    return {float: "a number", int: "a whole number", bool: "true or false", type(None): "nothing"}.get(
        kind, "a string"
    )
