"""An editor's side of the protocol, over a real `starcoder lsp`; and a completion server to script."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Editor:
    """Speaks JSON-RPC to a language server it started; answers and notifications by name."""

    def __init__(self, folder: Path, *arguments: str, options: dict[str, Any] | None = None):
        self.folder = folder
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "XDG_STATE_HOME": str(folder / ".state"),
            "XDG_CONFIG_HOME": str(folder / ".config"),
        }
        with (folder / "lsp.log").open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "starcoder", "lsp", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self.notifications: list[dict[str, Any]] = []
        self.edits: list[dict[str, Any]] = []
        self._number, self.options = 0, options
        self.versions: dict[str, int] = {}
        self.uri_opened = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, encodings: tuple[str, ...] = ("utf-16",)) -> dict[str, Any]:
        """Initialize; the server's capabilities."""
        capabilities = {"general": {"positionEncodings": list(encodings)}}
        answer = self.ask(
            "initialize",
            {
                "processId": os.getpid(),
                "rootUri": self.folder.as_uri(),
                "capabilities": capabilities,
                "initializationOptions": self.options,
            },
        )
        self.notify("initialized", {})
        return answer["result"]["capabilities"]

    def send(self, message: dict[str, Any]) -> None:
        self.send_raw(json.dumps({"jsonrpc": "2.0", **message}).encode())

    def send_raw(self, body: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.process.stdin.flush()

    def notify(self, method: str, params: Any) -> None:
        self.send({"method": method, "params": params})

    def begin(self, method: str, params: Any) -> int:
        """Send a request; its number for `wait`."""
        self._number += 1
        self._answers[self._number] = queue.Queue()
        self.send({"id": self._number, "method": method, "params": params})
        return self._number

    def wait(self, number: int, timeout_s: float = 60) -> dict[str, Any]:
        return self._answers[number].get(timeout=timeout_s)

    def ask(self, method: str, params: Any, timeout_s: float = 60) -> dict[str, Any]:
        return self.wait(self.begin(method, params), timeout_s)

    def uri(self, name: str) -> str:
        return (self.folder / name).as_uri()

    def open(self, name: str, text: str, language: str = "python") -> str:
        uri = self.uri(name)
        self.versions[uri] = 1
        item = {"uri": uri, "languageId": language, "version": 1, "text": text}
        self.notify("textDocument/didOpen", {"textDocument": item})
        return uri

    def change(self, uri: str, *changes: dict[str, Any]) -> None:
        self.versions[uri] += 1
        document = {"uri": uri, "version": self.versions[uri]}
        self.notify("textDocument/didChange", {"textDocument": document, "contentChanges": list(changes)})

    def insert(self, uri: str, line: int, character: int, text: str) -> None:
        place = {"line": line, "character": character}
        self.change(uri, {"range": {"start": place, "end": place}, "text": text})

    def begin_complete(self, uri: str, line: int, character: int, kind: int = 2) -> int:
        return self.begin(
            "textDocument/inlineCompletion",
            {
                "textDocument": {"uri": uri},
                "position": {"line": line, "character": character},
                "context": {"triggerKind": kind},
            },
        )

    def complete(self, uri: str, line: int, character: int, kind: int = 2) -> str | None:
        """The text of the first inline completion."""
        answer = self.wait(self.begin_complete(uri, line, character, kind))
        assert "error" not in answer, answer
        return answer["result"]["items"][0]["insertText"] if answer["result"] else None

    def command(self, name: str, *arguments: Any) -> Any:
        return self.ask("workspace/executeCommand", {"command": name, "arguments": list(arguments)})["result"]

    def messages(self) -> list[str]:
        """What the user was shown."""
        shown = [x for x in self.notifications if x["method"] == "window/showMessage"]
        return [x["params"]["message"] for x in shown]

    def stop(self) -> int:
        """Shut down as the protocol says; the exit code."""
        self.ask("shutdown", None)
        self.send({"method": "exit"})
        return self.process.wait(timeout=20)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()

    def _read(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        while header := stream.readline():
            size = 0
            while header.strip():
                name, _, value = header.partition(b":")
                size = int(value) if name.lower() == b"content-length" else size
                header = stream.readline()
            message = json.loads(stream.read(size))
            if "method" in message and "id" in message:
                self.edits.append(message["params"])
                self.send({"id": message["id"], "result": {"applied": True}})
            elif "method" in message:
                self.notifications.append(message)
            elif message.get("id") in self._answers:
                self._answers[message["id"]].put(message)


@contextmanager
def editor(folder: Path, *arguments: str, **options: Any) -> Iterator[Editor]:
    """An initialized editor; its server is gone afterwards."""
    opened = Editor(folder, *arguments, options=options or None)
    try:
        opened.start()
        yield opened
    finally:
        opened.close()


Answer = Callable[[dict[str, Any]], str | tuple[int, dict[str, Any]]]


class Scripted:
    """A completion server whose answers the test chooses; `bodies` are the requests that came."""

    def __init__(self, answer: Answer):
        self.bodies: list[dict[str, Any]] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                bodies.append(body)
                found = answer(body)
                status, content = found if isinstance(found, tuple) else (200, {"choices": [{"text": found}]})
                self._send(status, content)

            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": "scripted"}]})

            def _send(self, status: int, content: dict[str, Any]) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with suppress(BrokenPipeError):  # the client may give up
                    self.wfile.write(data)

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def scripted(answer: Answer) -> Iterator[Scripted]:
    server = Scripted(answer)
    try:
        yield server
    finally:
        server.close()
