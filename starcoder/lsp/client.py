"""A minimal HTTP client of `starcoder serve` for asyncio, without dependencies.

One connection a request; a task that is cancelled closes its connection, by which the server ends the work.
HTTP/1.0 is spoken so that answers are never in chunks. Limits: no redirects, no proxies.
"""

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starcoder.errors import StarcoderError

_MAX_ANSWER_BYTES = 8_000_000


class ServerError(StarcoderError):
    """The server could not be reached, or refused a request; `status` is its HTTP status."""

    def __init__(self, message: str, hint: str = "", status: int = 0):
        super().__init__(message, hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class Client:
    """Requests to the server at `url`."""

    url: str
    api_key: str | None = None
    timeout_s: float = 20.0

    async def complete(self, body: Mapping[str, Any]) -> str | None:
        """Text of a completion; None if a newer request of the same session took its place.

        Raises:
            ServerError: the server is not there, does not answer in time, or refuses the request.
        """
        try:
            answer = await self._call("POST", "/v1/completions", body)
        except ServerError as error:
            if error.status == 409:
                return None
            raise
        try:
            return str(answer["choices"][0]["text"])
        except (KeyError, IndexError, TypeError):
            raise ServerError(f"{self.url} does not answer as a completion server") from None

    async def is_ready(self) -> bool:
        """Whether a server answers at `url`."""
        try:
            await self._call("GET", "/health", None)
        except ServerError:
            return False
        return True

    async def model(self) -> str:
        """Name of the model that the server runs.

        Raises:
            ServerError: as `complete`.
        """
        answer = await self._call("GET", "/v1/models", None)
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ServerError(f"{self.url} does not list its models") from None

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        try:
            async with asyncio.timeout(self.timeout_s):
                status, content = await self._exchange(method, path, body)
        except TimeoutError:
            raise ServerError(f"{self.url} did not answer within {self.timeout_s:g} s") from None
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise ServerError(
                f"cannot reach the server at {self.url}: {error}", "start it: starcoder serve"
            ) from None
        try:
            answer = json.loads(content) if content else None
        except ValueError:
            answer = None
        if status >= 400:
            raise ServerError(f"{self.url} refused a request: {_message(answer, status)}", status=status)
        return answer

    async def _exchange(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, bytes]:
        parts = urlsplit(self.url)
        is_secure = parts.scheme == "https"
        port = parts.port or (443 if is_secure else 80)
        content = b"" if body is None else json.dumps(body).encode()
        headers = [
            f"{method} {parts.path.rstrip('/')}{path} HTTP/1.0",
            f"Host: {parts.netloc.rpartition('@')[2]}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
            *([f"Authorization: Bearer {self.api_key}"] if self.api_key else []),
        ]
        reader, writer = await asyncio.open_connection(
            parts.hostname, port, ssl=ssl.create_default_context() if is_secure else None
        )
        try:
            writer.write("\r\n".join([*headers, "", ""]).encode("latin-1", "replace") + content)
            await writer.drain()
            status_line = await reader.readline()
            status = int(status_line.split()[1]) if len(status_line.split()) > 1 else 0
            if not 100 <= status < 600:
                raise ValueError("the answer is not HTTP")
            while (await reader.readline()).strip():
                pass
            return status, await reader.read(_MAX_ANSWER_BYTES)
        finally:
            writer.close()


def _message(answer: Any, status: int) -> str:
    found = answer.get("error", answer.get("detail")) if isinstance(answer, dict) else None
    if isinstance(found, dict):
        found = found.get("message")
    return str(found) if found else f"HTTP status {status}"
