"""How the server behaves: addresses, limits, who may ask. No torch, no web framework."""

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from starcoder.errors import ConfigError
from starcoder.server.exchange import Compat


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
    port: int = 8080
    max_queue: int = 64  # requests that wait beside those that run
    max_sequences: int = 64  # that run at the same time
    max_body_bytes: int = 4_000_000
    default_max_tokens: int = 256
    keys: tuple[ApiKey, ...] = ()  # none: everybody may ask
    allowed_hosts: tuple[str, ...] = ()  # names beside localhost that the Host header may carry
    allowed_origins: tuple[str, ...] = ()  # web pages of other origins that may ask
    compat: Compat = "lenient"
    trust_prompts: bool = False
    drain_s: int = 60  # how long requests may still run after a signal to stop
    stall_s: float = 300.0  # a step that takes longer means that the engine hangs
    write_s: float = 60.0  # a client that reads nothing for so long is gone

    def __post_init__(self) -> None:
        for name in ("max_queue", "max_sequences", "max_body_bytes", "default_max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; expected 0 (any that is free) to 65535")

    def find_key(self, given: str) -> ApiKey | None:
        """The key that was given, compared in constant time with every one."""
        digest, found = ApiKey.of(given).digest, None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def allows_host(self, header: str) -> bool:
        """Whether a request may name us so: a web page that rebinds its own name to us may not.

        Addresses cannot be rebound, and whoever has a key is no such page.
        """
        name = _host_name(header)
        if self.keys or name == "localhost" or name.endswith(".localhost"):
            return True
        if name in (self.host.lower(), *(host.lower() for host in self.allowed_hosts)):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def allows_origin(self, origin: str, host_header: str) -> bool:
        """Whether a page of `origin` may ask: our own, or one that was allowed ("*" allows all)."""
        own = origin.partition("://")[2]
        return (
            bool(own and own == host_header) or "*" in self.allowed_origins or origin in self.allowed_origins
        )


def _host_name(header: str) -> str:
    """`name` of `name:port`, `[::1]:port` without brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.rpartition(":")[0].lower() if ":" in header else header.lower()


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
