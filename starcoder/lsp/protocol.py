"""JSON-RPC 2.0 as language clients speak it, over asyncio streams.

Notifications are handled in the order they come; a request begins before the next message is read, so that
what it reads at its start is what the editor had when it asked. pygls does the same job, but importing its
types costs 0.65 s of CPU (measured with 2.1.1 on an AVX2 EPYC), more than this whole server may take.
Source: Language Server Protocol 3.18, "Base Protocol"; https://www.jsonrpc.org/specification
"""

import asyncio
import inspect
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger(__name__)

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
INTERNAL_ERROR, REQUEST_CANCELLED = -32603, -32800
_MAX_MESSAGE_BYTES = 64_000_000

Handler = Callable[[Any], Any]
"""Takes a message's params; of a request its result or an awaitable of it."""


class Connection:
    """One client. `handlers` are the methods that it may call."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handlers: Mapping[str, Handler],
    ):
        self._reader, self._writer, self._handlers = reader, writer, handlers
        self._running: dict[str | int, asyncio.Task[None]] = {}
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._is_shut_down = False

    async def run(self) -> int:
        """Serve until the client says `exit` or is gone; the exit code that the protocol asks for."""
        try:
            while (message := await self._read()) is not None:
                if message.get("method") == "exit":
                    break
                await self._receive(message)
        except (ConnectionError, asyncio.IncompleteReadError):
            log.info("the client is gone")
        finally:
            for task in self._running.values():
                task.cancel()
            self._writer.close()
        return 0 if self._is_shut_down else 1

    def notify(self, method: str, params: Any) -> None:
        """Send a notification."""
        self._send({"method": method, "params": params})

    async def ask(self, method: str, params: Any) -> Any:
        """Send a request; the client's result, None where it refuses."""
        number = len(self._asked) + 1
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send({"id": number, "method": method, "params": params})
        return await future

    async def _read(self) -> dict[str, Any] | None:
        """The next message; None at the end."""
        while True:
            size = None
            while line := (await self._reader.readline()).strip() if not self._reader.at_eof() else b"":
                name, _, value = line.partition(b":")
                if name.strip().lower() == b"content-length" and value.strip().isdigit():
                    size = int(value)
            if size is None and self._reader.at_eof():
                return None
            if size is None or size > _MAX_MESSAGE_BYTES:
                log.warning("left out a message without a length that can be read")
                continue
            try:
                message = json.loads(await self._reader.readexactly(size))
            except (ValueError, RecursionError):
                self._refuse(None, PARSE_ERROR, "the message is not JSON")
                continue
            if isinstance(message, dict):
                return message
            self._refuse(None, INVALID_REQUEST, "the message is no object")

    async def _receive(self, message: dict[str, Any]) -> None:
        method, number, params = message.get("method"), message.get("id"), message.get("params")
        if method is None and "id" in message:
            future = self._asked.get(number) if isinstance(number, int) else None
            if future is not None and not future.done():
                future.set_result(message.get("result"))
        elif not isinstance(method, str) or not isinstance(number, str | int | None):
            self._refuse(None, INVALID_REQUEST, "method is no string, or id neither string nor number")
        elif number is None:
            self._notified(method, params)
        elif method not in self._handlers:
            self._refuse(number, METHOD_NOT_FOUND, f"{method} is not supported")
        else:
            self._running[number] = asyncio.create_task(self._answer(number, method, params))
            await asyncio.sleep(0)  # lets it begin

    def _notified(self, method: str, params: Any) -> None:
        if method == "$/cancelRequest":
            found = params.get("id") if isinstance(params, dict) else None
            if isinstance(found, str | int) and found in self._running:
                self._running[found].cancel()
        elif method in self._handlers:
            try:
                self._handlers[method](params)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                log.warning("cannot use %s: %r", method, error)

    async def _answer(self, number: str | int, method: str, params: Any) -> None:
        try:
            result = self._handlers[method](params)
            if inspect.isawaitable(result):
                result = await result
            self._is_shut_down |= method == "shutdown"
            self._send({"id": number, "result": result})
        except asyncio.CancelledError:
            self._refuse(number, REQUEST_CANCELLED, "cancelled")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("cannot answer %s", method, exc_info=True)
            self._refuse(number, INVALID_PARAMS, f"cannot use the parameters of {method}: {error!r}")
        except Exception as error:  # one request's fault is not the end of the others
            log.exception("%s failed", method)
            self._refuse(number, INTERNAL_ERROR, f"{method} failed: {error!r}")
        finally:
            self._running.pop(number, None)

    def _refuse(self, number: str | int | None, code: int, message: str) -> None:
        self._send({"id": number, "error": {"code": code, "message": message}})

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False).encode("utf-8", "replace")
        if not self._writer.is_closing():
            self._writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
