"""Checks before the routes: Host and Origin, API keys, rates, sizes. Plain ASGI: streams pass untouched."""

import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from starcoder.errors import StarcoderError
from starcoder.server.codec import HTTPError, Overload
from starcoder.server.settings import ApiKey, ServerSettings

# Never behind a key: health, descriptions and metrics. Source: TGI keeps the same open (serving facts 1.1).
OPEN_PATHS = frozenset(
    {"/health", "/ping", "/info", "/metrics", "/docs", "/openapi.json", "/api-doc/openapi.json"}
    | {"/v1/models", "/v1/health", "/api/version", "/version", "/api/tags", "/api/ps", "/props"}
)


class Guard:
    """ASGI middleware; what it refuses is answered by `refuse`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServerSettings,
        refuse: Callable[[Scope, Receive, Send, StarcoderError], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._app, self._settings, self._refuse, self._clock = app, settings, refuse, clock
        self._buckets: dict[bytes, tuple[float, float]] = {}  # key -> (requests left, when that was so)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["method"] == "HEAD":  # uvicorn sends no body after HEAD
            scope = {**scope, "method": "GET"}
        try:
            if "transfer-encoding" in headers and "content-length" in headers:
                raise HTTPError(
                    "the request has both Content-Length and Transfer-Encoding", "send one", kind="framing"
                )
            origin = self._check_origin(headers)
            if origin is not None:
                send = _with_cors(send, origin)
                if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                    await send({"type": "http.response.start", "status": 204, "headers": []})
                    await send({"type": "http.response.body", "body": b""})
                    return
            self._check_key(scope, headers)
            receive = self._limited(headers, receive)
        except StarcoderError as error:
            await self._refuse(scope, receive, send, error)
            return
        await self._app(scope, receive, send)

    def _check_origin(self, headers: Headers) -> str | None:
        """The allowed foreign origin to answer to, if any. Raises: HTTPError: a foreign page or name."""
        host = headers.get("host", "")
        if host and not allows_host(self._settings, host):
            raise HTTPError(
                f"the Host header names {host!r}, which is not this server",
                "start the server with --allow-host if that is its name",
                status=403,
                kind="forbidden",
            )
        origin = headers.get("origin")
        if origin is None:
            return None
        if not allows_origin(self._settings, origin, host):
            raise HTTPError(
                f"pages of {origin!r} may not use this server",
                "start the server with --allow-origin to let them",
                status=403,
                kind="forbidden",
            )
        return origin

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        """Raises: HTTPError: no key or a wrong one. Overload: the key's rate is used up."""
        path, is_get = scope["path"], scope["method"] == "GET"
        is_open = path in OPEN_PATHS or (is_get and (path == "/" or path.startswith("/v1/models/")))
        if not self._settings.keys or is_open:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = headers.get("x-api-key", "") or headers.get("x-goog-api-key", "")
        key = find_key(self._settings.keys, given.strip())
        if key is None:
            raise HTTPError(
                "the API key is missing or wrong",
                "send the header `Authorization: Bearer KEY`",
                status=401,
                kind="unauthorized",
            )
        self._count(key)

    def _count(self, key: ApiKey) -> None:
        """A bucket that holds a minute's requests and refills all the time. Raises: Overload: it is empty."""
        if key.requests_per_minute is None:
            return
        now, most = self._clock(), float(key.requests_per_minute)
        left, since = self._buckets.get(key.digest, (most, now))
        left = min(most, left + (now - since) * most / 60)
        if left < 1:
            self._buckets[key.digest] = left, now
            wait_s = int((1 - left) * 60 / most) + 1
            raise Overload(
                f"this key may make {key.requests_per_minute} requests a minute",
                f"try again in {wait_s} s",
                retry_after_s=wait_s,
            )
        self._buckets[key.digest] = left - 1, now

    def _limited(self, headers: Headers, receive: Receive) -> Receive:
        """A `receive` that counts. Raises: HTTPError: the body is announced too large."""
        most, seen = self._settings.max_body_bytes, 0
        announced = headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > most:
            raise _too_large(most)

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise _too_large(most)
            return message

        return counted


def find_key(keys: Sequence[ApiKey], given: str) -> ApiKey | None:
    """The key that was given, compared in constant time with every one."""
    digest, found = ApiKey.of(given).digest, None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


def allows_host(settings: ServerSettings, header: str) -> bool:
    """Whether a request may address the server so: a web page that rebinds its own name to it may not.

    Addresses cannot be rebound.
    """
    name = _host_name(header).removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    if name in (settings.host.lower(), *(host.lower() for host in settings.allow_host)):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def allows_origin(settings: ServerSettings, origin: str, host_header: str) -> bool:
    """Whether a page of `origin` may ask: our own, or one that was allowed ("*" allows all)."""
    own = origin.partition("://")[2]
    is_own = bool(own and own == host_header)
    return is_own or "*" in settings.allow_origin or origin in settings.allow_origin


def _host_name(header: str) -> str:
    """`name` of `name:port`, `[::1]:port` without brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.rpartition(":")[0].lower() if ":" in header else header.lower()


def _too_large(most: int) -> HTTPError:
    return HTTPError(
        f"the body is larger than {most} bytes", "send less context", status=413, kind="validation"
    )


def _with_cors(send: Send, origin: str) -> Send:
    async def allowed(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message.get("headers", []),
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-allow-headers", b"authorization, content-type, x-api-key"),
                (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
                (b"vary", b"origin"),
            ]
        await send(message)

    return allowed
