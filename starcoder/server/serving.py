"""Puts a server together and runs it until a signal or a failure ends it."""

import asyncio
import gc
import logging
import socket
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from starcoder.chat import ChatTemplate
from starcoder.engine.local import Model
from starcoder.errors import ConfigError, StarcoderError
from starcoder.prepare.attribution import Index
from starcoder.server import app, connections
from starcoder.server.codec import ServerInfo
from starcoder.server.connections import Config, QuietAccept
from starcoder.server.metrics import Metrics
from starcoder.server.settings import ServerSettings
from starcoder.server.worker import Worker

log = logging.getLogger(__name__)

# How Zed and Continue tell the prompt format: by the name of the model.
_NAMES = {"santacoder": "santacoder", "starcoder": "starcoder", "starcoder2": "starcoder2"}


# Time to send error events to clients whose requests outlast `drain_s`.
_ERROR_EVENTS_S = 5


class ServerFailure(StarcoderError):
    """The server had to stop on its own."""


class Server:
    """A model behind HTTP. `app` is the ASGI application, `run` serves it on the settings' address."""

    def __init__(
        self,
        model: Model,
        *,
        name: str,
        folder: Path | None = None,
        chat_template: str | None = None,
        attribution: Index | None = None,
        settings: ServerSettings | None = None,
    ):
        """`folder` is where the checkpoint's templates are.

        Raises:
            ConfigError: no such chat template.
        """
        self.settings = settings = settings or ServerSettings()
        self.info = ServerInfo(
            model=name,
            tokenizer=model.tokenizer,
            context_length=model.engine.context_length,
            aliases=_aliases(name, _NAMES.get(model.tokenizer.sentinels.style, "")),
            compat=settings.compat,
            trust_prompts=settings.trust_prompts,
            closed_objects=settings.closed_objects,
            default_max_tokens=min(settings.default_max_tokens, model.engine.context_length // 2),
            attribution=attribution,
            chat=ChatTemplate.find(chat_template, folder, model.tokenizer),
        )
        self.metrics = Metrics()
        self.worker = self.metrics.worker = Worker(
            model.engine,
            max_jobs=settings.max_queue + settings.max_sequences,
            stall_s=settings.stall_s,
            metrics=self.metrics,
        )
        self.app: FastAPI = app.build(self.info, settings, self.worker, self.metrics)
        self._socket: socket.socket | None = None
        self._uvicorn = uvicorn.Server(
            Config(
                self.app,
                log_config=None,
                access_log=False,
                lifespan="on",
                server_header=False,
                max_connections=settings.max_connections,
                timeout_graceful_shutdown=settings.drain_s + _ERROR_EVENTS_S,
            )
        )

    def bind(self) -> str:
        """Take the address, so that clients can already connect, and return its URL.

        Raises:
            ConfigError: the address is in use or not of this machine.
        """
        host, port = self.settings.host, self.settings.port
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            # With the protocol named asyncio turns Nagle's algorithm off, which costs 40 ms an answer.
            listener = socket.socket(family, kind, socket.IPPROTO_TCP)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket = listener
            listener.bind(address)
            listener.listen(1024)
        except OSError as error:
            if self._socket is not None:
                self._socket.close()
            raise ConfigError(
                f"cannot listen on {host!r}, port {port}: {error.strerror}",
                "choose another --port (0 takes one that is free) or --host",
            ) from None
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        """Serve on the bound address until SIGINT, SIGTERM or `stop`; what runs may end within `drain_s`.

        Raises:
            ServerFailure: the engine has died or hangs.
        """
        gc.freeze()  # what is loaded by now lives as long as the process: no need to look at it again
        try:
            asyncio.run(self._serve())
        finally:
            gc.unfreeze()

    def stop(self) -> None:
        """Let `run` drain and return; from any thread."""
        self._uvicorn.should_exit = True

    async def _serve(self) -> None:
        assert self._socket is not None, "bind comes first"
        asyncio.get_running_loop().set_exception_handler(QuietAccept())
        tasks = [asyncio.create_task(one) for one in (self._watch(), self._sweep(), self._drain())]
        await self._uvicorn.serve(sockets=[self._socket])
        for task in tasks:
            task.cancel()
        if self.worker.trouble is not None:
            raise ServerFailure(self.worker.trouble, "start it again; the log above may tell more")

    async def _sweep(self) -> None:
        """Close connections whose requests do not come."""
        while True:
            await asyncio.sleep(min(1.0, self.settings.headers_s / 4))
            connections.sweep(self._uvicorn.server_state.connections, headers_s=self.settings.headers_s)

    async def _drain(self) -> None:
        """After a signal to stop, end what still runs after `drain_s` with an error for its clients."""
        while not self._uvicorn.should_exit:
            await asyncio.sleep(0.1)
        await asyncio.sleep(self.settings.drain_s)
        self.worker.end_all("the server is shutting down")

    async def _watch(self) -> None:
        """Stop the server when its engine has died or hangs; supervisors then start it again."""
        while self.worker.trouble is None:
            await asyncio.sleep(0.5)
        log.error("stopping: %s", self.worker.trouble)
        await asyncio.sleep(1)  # so that /health can report it
        self.stop()


def _aliases(name: str, style: str) -> tuple[str, ...]:
    names = (name.rpartition("/")[2], style)
    return tuple(dict.fromkeys(alias for alias in names if alias and alias != name))
