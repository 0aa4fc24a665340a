"""HTTP connections that cannot be held open: a deadline for a request's headers, and a limit on their number.

Beyond the limit the connection that has waited longest for its next request makes way, so that half-open ones
never keep others out. Limits: a body has its own deadline, in `transport.read_body`.
"""

import asyncio
import errno
import logging
import time
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

# File descriptors that are left for files, sockets of the process and connections about to be refused.
_RESERVED_FILES = 24
_LOG_EVERY_S = 10.0


class Connection(H11Protocol):
    """One connection. `sweep` closes those that wait too long."""

    waiting_since = 0.0  # for a request to be complete up to its headers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.waiting_since = time.monotonic()
        assert isinstance(self.config, Config), "made by `serving`"
        if len(self.connections) > self.config.max_connections:
            oldest = min(_waiting(self.connections), key=lambda one: one.waiting_since)
            oldest.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.waiting_since = time.monotonic()

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete


class Config(uvicorn.Config):
    """uvicorn's configuration, with `Connection` and its limit."""

    def __init__(self, app: Any, *, max_connections: int, **options: Any):
        super().__init__(app, http=Connection, **options)
        self.max_connections = _possible(max_connections)


def _waiting(connections: set[Any]) -> list[Connection]:
    return [one for one in connections if isinstance(one, Connection) and one.is_waiting]


def sweep(connections: set[Any], *, headers_s: float) -> None:
    """Close the connections whose next request has not begun for `headers_s` seconds."""
    overdue = time.monotonic() - headers_s
    for connection in _waiting(connections):
        if connection.waiting_since < overdue:
            connection.transport.abort()


def _possible(wanted: int) -> int:
    """The limit, lowered to what the process may open besides what is open already."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted
    opened = Path("/dev/fd")
    num_open = len(list(opened.iterdir())) if opened.is_dir() else _RESERVED_FILES
    return max(1, min(wanted, limit - num_open - _RESERVED_FILES))


class QuietAccept:
    """An exception handler for asyncio: running out of file descriptors is one line now and then."""

    def __init__(self) -> None:
        self._logged_at = -_LOG_EVERY_S

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            loop.default_exception_handler(context)
            return
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            log.error("out of file descriptors: connections wait; raise the limit (ulimit -n)")
