"""The server that language servers share: found, started once, and stopped with the last editor.

Every language server holds a shared lock on a file of its server's settings. A keeper process starts
`starcoder serve`, records its address, and tries the lock for itself: once it gets it no editor is left, also
where editors were killed, since the kernel drops their locks. Limits: one machine, Linux and macOS.
"""

import asyncio
import fcntl
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from starcoder.files import replace_atomically
from starcoder.lsp.client import Client, ServerError
from starcoder.lsp.settings import LspSettings, state_folder

_POLL_S = 1.0
_START_TIMEOUT_S = 600.0  # a model may have to be downloaded first
_ADDRESS = re.compile(r"^serving .* on (http://\S+)$")


@dataclass(slots=True)
class SharedServer:
    """This process's share of the server that runs with `arguments`."""

    arguments: tuple[str, ...]
    _lock: IO[str] | None = None

    @classmethod
    def of(cls, settings: LspSettings) -> "SharedServer":
        """The server of these settings."""
        options = (("model", settings.model), ("quantize", settings.quantize), ("adapter", settings.adapter))
        return cls(tuple(part for name, value in options if value for part in (f"--{name}", value)))

    @property
    def folder(self) -> Path:
        """Where this server's lock, address and log are."""
        digest = hashlib.sha256("\0".join((sys.executable, *self.arguments)).encode()).hexdigest()[:12]
        return state_folder() / "servers" / digest

    async def address(self) -> str:
        """URL of the running server, started if it is not there; this process counts as a user from now on.

        Raises:
            ServerError: it did not start; its log says why.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = await asyncio.to_thread(_locked, self.folder / "lock", fcntl.LOCK_SH)
        with (self.folder / "start").open("w") as starting:
            await asyncio.to_thread(fcntl.flock, starting, fcntl.LOCK_EX)  # one language server starts it
            url = self._recorded()
            if url is not None and await Client(url, timeout_s=2.0).is_ready():
                return url
            return await self._start()

    def release(self) -> None:
        """This process no longer needs the server."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _recorded(self) -> str | None:
        try:
            return str(json.loads((self.folder / "server.json").read_text("utf-8"))["url"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    async def _start(self) -> str:
        with suppress(FileNotFoundError):
            (self.folder / "server.json").unlink()
        keeper = subprocess.Popen(
            [sys.executable, "-m", "starcoder", "lsp", "--keep-server", str(self.folder), *self.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to the editor's process group is not for the others' server
        )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            url = self._recorded()
            if url is not None and await Client(url, timeout_s=2.0).is_ready():
                return url
            if keeper.poll() is not None:
                raise ServerError(f"the server did not start: {self._last_words()}", f"see {self.folder}/log")
            await asyncio.sleep(0.05)
        keeper.terminate()
        raise ServerError(f"the server was not ready within {_START_TIMEOUT_S:g} s", f"see {self.folder}/log")

    def _last_words(self) -> str:
        try:
            lines = (self.folder / "log").read_text("utf-8", "replace").split("\n")
        except OSError:
            return "it left no log"
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or [line for line in lines if line.strip()] or ["it left no log"])[-1]


def keep(folder: Path, arguments: Sequence[str]) -> int:
    """Run `starcoder serve` until no process holds a shared lock on `folder/lock`; its exit code."""
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "starcoder", "serve", "--port", "0", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        while server.poll() is None:
            if not (folder / "server.json").exists():
                _record(folder, server.pid)
            lock = _try_lock(folder / "lock")
            if lock is not None:
                # Held until the server is gone: an editor that starts now waits and then starts its own.
                with lock:
                    server.terminate()
                    server.wait()
                    (folder / "server.json").unlink(missing_ok=True)
                break
            time.sleep(_POLL_S if (folder / "server.json").exists() else 0.05)
    finally:
        if server.poll() is None:
            server.kill()
        (folder / "server.json").unlink(missing_ok=True)
    return server.wait()


def _record(folder: Path, pid: int) -> None:
    """Write the server's address to `server.json` once its log has it."""
    for line in (folder / "log").read_text("utf-8", "replace").split("\n"):
        match = _ADDRESS.match(line)
        if match is not None:
            with replace_atomically(folder / "server.json") as partial:
                partial.write_text(json.dumps({"url": match[1], "pid": pid}), "utf-8")


def _locked(path: Path, kind: int) -> IO[str]:
    file = path.open("a")
    fcntl.flock(file, kind)
    return file


def _try_lock(path: Path) -> IO[str] | None:
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
