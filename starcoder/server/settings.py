"""How the server behaves: addresses, limits, who may ask. No torch, no web framework."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from starcoder.errors import ConfigError

Compat = Literal["lenient", "tgi-strict"]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, kept as its digest, and how many requests a minute it may make."""

    digest: bytes
    requests_per_minute: int | None = None

    @classmethod
    def of(cls, text: str, requests_per_minute: int | None = None) -> "ApiKey":
        return cls(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), requests_per_minute)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """One place for every default of the server."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 listens on every network of this machine."""
    port: int = 8080
    """Port to listen on; 0 chooses a free one."""
    max_queue: int = 64
    """Maximum number of requests that wait; further ones are answered with 429."""
    max_sequences: int = 64  # the engine's, which is added to `max_queue`
    max_body_bytes: int = 4_000_000
    """Maximum size of a request's body."""
    default_max_tokens: int = 256
    """Maximum number of tokens to generate where a request gives none."""
    keys: tuple[ApiKey, ...] = ()  # none: no authentication
    allow_host: tuple[str, ...] = ()
    """Another host name of this server besides localhost; may be given several times."""
    allow_origin: tuple[str, ...] = ()
    """Web origin whose pages may send requests, or *; may be given several times."""
    compat: Compat = "lenient"
    """tgi-strict has the limits and messages of Text Generation Inference."""
    closed_objects: bool = True
    """Allow the arguments of tool calls only the properties that a tool lists, where it says nothing else."""
    trust_prompts: bool = False
    """Pass raw prompts with sentinel tokens to the model as they are, instead of parsing them."""
    drain_s: int = 60
    """Seconds that running requests have to finish after a signal to stop."""
    stall_s: float = 300.0
    """Seconds after which a step that does not end means that the engine hangs."""
    write_s: float = 60.0
    """Seconds after which a client that reads nothing is disconnected."""
    headers_s: float = 15.0
    """Seconds that a client has to send the headers of a request."""
    body_s: float = 60.0
    """Seconds that a client has to send the body of a request."""
    max_connections: int = 2048
    """Maximum number of open connections; at most what the process may open."""

    def __post_init__(self) -> None:
        for name in ("max_queue", "max_sequences", "max_body_bytes", "default_max_tokens", "max_connections"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("stall_s", "write_s", "headers_s", "body_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected more than 0")
        if self.drain_s < 0:
            raise ConfigError(f"drain_s is {self.drain_s}; expected 0 or more")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; expected 0 (any that is free) to 65535")


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Keys of a file: one a line, optionally followed by its requests per minute; `#` begins a comment.

    Raises:
        ConfigError: not readable, a malformed line, or no key at all.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the API keys in {str(path)!r}: {error}", "give a text file with one key a line"
        ) from None
    keys = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) > 2 or (len(words) == 2 and not (words[1].isdecimal() and int(words[1]))):
            raise ConfigError(
                f"line {number} of {str(path)!r} is not a key and its requests per minute",
                "a line is `KEY` or `KEY 60`",
            )
        keys.append(ApiKey.of(words[0], int(words[1]) if len(words) == 2 else None))
    if not keys:
        raise ConfigError(f"{str(path)!r} holds no API key", "write one key a line, or leave the file out")
    return tuple(keys)
