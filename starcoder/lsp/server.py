"""The language server: documents and requests of one editor, completions from the shared server.

A request is answered only for the version of the document that it was made for, and only if no newer one
came: editors such as Neovim never cancel. What is typed along a completion is answered from it.
Source: Language Server Protocol 3.18.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote, urlsplit

from starcoder import __version__
from starcoder.errors import ConfigError
from starcoder.lsp import settings as config
from starcoder.lsp.client import Client, ServerError
from starcoder.lsp.context import Project, gather
from starcoder.lsp.documents import Change, Document, Documents, Encoding, Position
from starcoder.lsp.process import SharedServer
from starcoder.lsp.protocol import Connection, Handler
from starcoder.lsp.settings import LspSettings
from starcoder.lsp.statistics import Statistics

log = logging.getLogger(__name__)

_BEFORE, _AFTER = 60_000, 20_000  # characters around the cursor that are sent; the server cuts to its context
_BLOCK_BEGINS = (":", "{", "(", "[", "=>", "->", " do", " then", "=", ",")
_ERROR, _WARNING = 1, 2  # MessageType
_INVOKED = 1  # InlineCompletionTriggerKind
_SNIPPET, _PLAIN_TEXT = 15, 1  # CompletionItemKind, InsertTextFormat
_DEFAULT_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class _Answer:
    """A completion that was shown, and the text around it."""

    id: str
    before: str
    after: str
    text: str

    def rest(self, before: str, after: str) -> str | None:
        """What is left to show once part of it was typed; None if something else was."""
        typed = before[len(self.before) :] if before.startswith(self.before) else None
        if typed is None or after != self.after or not self.text.startswith(typed):
            return None
        return self.text[len(typed) :] or None


class CompletionServer:
    """One editor's documents, settings and completions."""

    def __init__(self, base: LspSettings):
        self.base, self.settings = base, base
        self.connection: Connection | None = None
        self.documents, self.project = Documents(), Project(None)
        self.statistics = Statistics(config.state_folder() / "completions.json")
        self.is_enabled = True
        self._options: Mapping[str, Any] = {}
        self._answers: dict[str, _Answer] = {}
        self._newest: dict[str, int] = {}
        self._shared: SharedServer | None = None
        self._url: asyncio.Task[str] | None = None
        self._reported: set[str] = set()
        self._session = uuid.uuid4().hex[:8]
        self.encoding: Encoding = "utf-16"
        self._root: Path | None = None
        self._has_progress = False

    def configure(self, root: Path | None, options: Any) -> None:
        """Read the settings for a project again; what is wrong with them is shown, and the rest holds."""
        self._options = options if isinstance(options, Mapping) else self._options
        try:
            self.settings, ignored = config.read(self.base, root)
            for message in ignored:
                self.report(message, _WARNING)
            self.settings = self.settings.updated(self._options, "the editor's settings")
        except ConfigError as error:
            self.report(f"{error.message}. {error.hint or ''}".rstrip())
        self.project = Project(root, self.settings.exclude)

    def report(self, message: str, kind: int = _ERROR) -> None:
        """Show a message to the user, each one once."""
        if message not in self._reported:
            self._reported.add(message)
            self._notify("window/showMessage", {"type": kind, "message": f"StarCoder: {message}"})

    def toggle(self, *_: object) -> bool:
        """Switch completions off or on; whether they are on."""
        self.is_enabled = not self.is_enabled
        return self.is_enabled

    def _notify(self, method: str, params: Any) -> None:
        if self.connection is not None:
            self.connection.notify(method, params)

    async def client(self) -> Client:
        """The server's client; starts the server where none runs.

        Raises:
            ServerError: it does not start.
        """
        if self.settings.url is not None:
            return Client(self.settings.url, self.settings.api_key, self.settings.timeout_s)
        if self._url is None or (self._url.done() and self._url.exception() is not None):
            self._url = asyncio.create_task(self._start())
        # Requests that were superseded are cancelled; the start they wait for is everybody's.
        return Client(await asyncio.shield(self._url), self.settings.api_key, self.settings.timeout_s)

    async def _start(self) -> str:
        chosen = self.settings
        if chosen.model is None and chosen.quantize is None and chosen.adapter is None:
            try:
                await Client(_DEFAULT_URL, chosen.api_key, timeout_s=1.0).model()
                return _DEFAULT_URL  # one that the user started
            except ServerError:
                pass
        token = await self._begin_progress("StarCoder: loading the model")
        try:
            self._shared = self._shared or SharedServer.of(chosen)
            return await self._shared.address()
        finally:
            if token is not None:
                self._notify("$/progress", {"token": token, "value": {"kind": "end"}})

    async def _begin_progress(self, title: str) -> str | None:
        if self.connection is None or not self._has_progress:
            return None
        token = uuid.uuid4().hex
        await self.connection.ask("window/workDoneProgress/create", {"token": token})
        self._notify("$/progress", {"token": token, "value": {"kind": "begin", "title": title}})
        return token

    async def restart(self, *_: object) -> None:
        """Forget the server's address, so that the next request finds or starts one."""
        self._reported.clear()
        self._url = None

    def accepted(self, uri: object = None, number: object = None, *_: object) -> None:
        """The editor inserted the completion that was shown as `number`."""
        answer = self._answers.get(str(uri))
        if answer is not None and answer.id == number:
            document = self.documents.get(str(uri))
            self.statistics.accepted(document.language if document else "", len(answer.text))
            del self._answers[str(uri)]

    async def status(self, *_: object) -> dict[str, Any]:
        """What `starcoder.status` answers."""
        status: dict[str, Any] = {"enabled": self.is_enabled, "statistics": self.statistics.totals()}
        try:
            client = await self.client()
            return status | {"server": client.url, "model": await client.model(), "ready": True}
        except ServerError as error:
            return status | {"ready": False, "error": error.message}

    def forget(self, uri: str) -> None:
        """The editor closed a document."""
        self.documents.close(uri)
        self._answers.pop(uri, None)
        self._newest.pop(uri, None)

    def close(self) -> None:
        """The editor leaves."""
        self.statistics.save()
        if self._shared is not None:
            self._shared.release()

    async def complete(
        self, uri: str, position: Position, *, is_asked: bool, deadline_s: float | None = None
    ) -> tuple[str, str] | None:
        """Text to insert at `position` and the completion's id; None for nothing.

        `is_asked` is a user's own wish, for which cursor and language do not matter.
        """
        document = self.documents.get(uri)
        if document is None or not self._is_wanted(document, is_asked=is_asked):
            return None
        number = self._newest[uri] = self._newest.get(uri, 0) + 1
        version, offset = document.version, document.offset(position, self.encoding)
        before, after = document.text[:offset], document.text[offset:]
        if not is_asked and len(_line_right(after).strip()) > self.settings.max_line_suffix:
            return None
        answer = self._answers.get(uri)
        rest = None if answer is None else answer.rest(before, after)
        if answer is not None and rest is not None:
            return rest, answer.id
        try:
            async with asyncio.timeout(deadline_s):
                client = await self.client()
                text = await client.complete(self._body(document, offset, is_asked=is_asked))
        except TimeoutError:
            return None
        except ServerError as error:
            self._url = None
            self.report(error.message + (f". {error.hint}" if error.hint else ""))
            return None
        if text is None or self._newest.get(uri) != number or document.version != version:
            return None
        text = _with_line_ends(text, document.text)
        if not text.strip():
            return None
        answer = self._answers[uri] = _Answer(uuid.uuid4().hex, before, after, text)
        self.statistics.shown(document.language)
        return text, answer.id

    async def fill(self, uri: str, start: Position, end: Position) -> None:
        """Replace the text from `start` to `end` by a completion, as one edit."""
        document = self.documents.get(uri)
        if document is None or not self._is_wanted(document, is_asked=True):
            return
        version = document.version
        first, last = document.offset(start, self.encoding), document.offset(end, self.encoding)
        try:
            text = await (await self.client()).complete(
                self._body(document, first, is_asked=True, end=max(first, last))
            )
        except ServerError as error:
            self.report(error.message)
            return
        if text and document.version == version and self.connection is not None:
            span = {"start": _place(start), "end": _place(end)}
            edit = {"range": span, "newText": _with_line_ends(text, document.text)}
            versioned = {"textDocument": {"uri": uri, "version": version}, "edits": [edit]}
            await self.connection.ask("workspace/applyEdit", {"edit": {"documentChanges": [versioned]}})

    def _is_wanted(self, document: Document, *, is_asked: bool) -> bool:
        if "\0" in document.text[:_BEFORE] or not self.project.may_read(document.path):
            return False
        return is_asked or (self.is_enabled and document.language not in self.settings.disabled_languages)

    def _body(
        self, document: Document, offset: int, *, is_asked: bool, end: int | None = None
    ) -> dict[str, Any]:
        before = document.text[max(0, offset - _BEFORE) : offset]
        after = document.text[end or offset : (end or offset) + _AFTER]
        body: dict[str, Any] = {
            "prompt": before,
            "suffix": after,
            "path": self.project.relative(document.path) or document.uri.rpartition("/")[2],
            "extras": gather(
                document, offset, self.documents, self.project, self.settings.context_characters
            ),
            "max_tokens": self.settings.max_tokens,
            "temperature": 0,
            "postprocess": True,
        }
        if end is None:
            body |= {"session": f"lsp {self._session} {document.uri}"}
            body |= {"stop_at": "block" if self._is_multi_line(before, after) else "line"}
        return body

    def _is_multi_line(self, before: str, after: str) -> bool:
        if self.settings.multi_line != "auto":
            return self.settings.multi_line == "always"
        line = before.rpartition("\n")[2].strip()
        return not _line_right(after).strip() and (not line or line.endswith(_BLOCK_BEGINS))

    # What follows answers the messages of the protocol, by plain values as JSON has them.

    def handlers(self) -> dict[str, Handler]:
        """The methods that an editor may call."""
        return {
            "initialize": self.initialize,
            "initialized": lambda params: self.configure(self._root, self._options),
            "shutdown": lambda params: self.close(),
            "workspace/didChangeConfiguration": self._changed_settings,
            "textDocument/didOpen": self._opened,
            "textDocument/didChange": self._changed,
            "textDocument/didClose": lambda params: self.forget(params["textDocument"]["uri"]),
            "textDocument/inlineCompletion": self._inline_completion,
            "textDocument/completion": self._plain_completion,
            "textDocument/codeAction": self._code_actions,
            "workspace/executeCommand": self._execute,
        }

    def initialize(self, params: Any) -> dict[str, Any]:
        """What this server can do, and the position encoding: the first of the editor's that is known."""
        capabilities = params.get("capabilities") or {}
        offered = (capabilities.get("general") or {}).get("positionEncodings") or ()
        self.encoding = next((x for x in offered if x in get_args(Encoding)), "utf-16")
        self._has_progress = bool((capabilities.get("window") or {}).get("workDoneProgress"))
        folders = params.get("workspaceFolders") or [{"uri": params.get("rootUri")}]
        self._root, self._options = _path(folders[0]["uri"]), params.get("initializationOptions") or {}
        return {
            "serverInfo": {"name": "starcoder", "version": __version__},
            "capabilities": {
                "positionEncoding": self.encoding,
                "textDocumentSync": {"openClose": True, "change": 2},
                "inlineCompletionProvider": {},
                "completionProvider": {},
                "codeActionProvider": True,
                "executeCommandProvider": {"commands": sorted(self._commands())},
            },
        }

    def _changed_settings(self, params: Any) -> None:
        settings = params.get("settings")
        self.configure(self._root, settings.get("starcoder") if isinstance(settings, dict) else None)

    def _opened(self, params: Any) -> None:
        item = params["textDocument"]
        document = Document(str(item["uri"]), str(item["text"]), int(item["version"]), item["languageId"])
        self.documents.open(document)

    def _changed(self, params: Any) -> None:
        document = self.documents.get(params["textDocument"]["uri"])
        if document is not None:
            changes = [
                Change(change["text"], *(_position(change["range"][end]) for end in ("start", "end")))
                if change.get("range")
                else Change(change["text"])
                for change in params["contentChanges"]
            ]
            document.apply(changes, params["textDocument"]["version"], self.encoding)

    async def _inline_completion(self, params: Any) -> dict[str, Any] | None:
        uri, place = params["textDocument"]["uri"], params["position"]
        is_asked = (params.get("context") or {}).get("triggerKind") == _INVOKED
        found = await self.complete(uri, _position(place), is_asked=is_asked)
        if found is None:
            return None
        text, number = found
        # The empty range at the cursor is what Neovim draws as ghost text.
        item = {"insertText": text, "range": {"start": place, "end": place}}
        return {"items": [item | {"command": _accepted(uri, number)}]}

    async def _plain_completion(self, params: Any) -> dict[str, Any]:
        empty = {"isIncomplete": self.settings.completion, "items": []}
        if not self.settings.completion:
            return empty
        uri, position = params["textDocument"]["uri"], _position(params["position"])
        deadline_s = self.settings.completion_deadline_ms / 1000
        found = await self.complete(uri, position, is_asked=False, deadline_s=deadline_s)
        document = self.documents.get(uri)
        if found is None or document is None:
            return empty
        text, number = found
        word = _word_left(document.text[: document.offset(position, self.encoding)])
        shown = (word + text).lstrip()
        label, *more = shown.split("\n")
        item = {
            "label": label.rstrip("\r") + ("…" if more else ""),
            "kind": _SNIPPET,
            "detail": "StarCoder",
            "documentation": {"kind": "markdown", "value": f"```{document.language}\n{shown}\n```"},
            "filterText": word or label,  # menus hide items that do not begin with what is typed
            "sortText": "\0",
            "insertText": word + text,
            "insertTextFormat": _PLAIN_TEXT,
            "command": _accepted(uri, number),
        }
        return {"isIncomplete": True, "items": [item]}

    def _code_actions(self, params: Any) -> list[dict[str, Any]]:
        uri, span = params["textDocument"]["uri"], params["range"]
        title = "complete here" if span["start"] == span["end"] else "fill the selection"
        arguments = [uri, span["start"], span["end"]]
        command = {"title": title, "command": "starcoder.fill", "arguments": arguments}
        return [{"title": f"StarCoder: {title}", "command": command}]

    def _commands(self) -> dict[str, Callable[..., Any]]:
        return {
            "starcoder.accepted": self.accepted,
            "starcoder.fill": self._fill,
            "starcoder.restart": self.restart,
            "starcoder.status": self.status,
            "starcoder.toggle": self.toggle,
        }

    def _execute(self, params: Any) -> Any:
        return self._commands()[params["command"]](*params.get("arguments") or ())

    async def _fill(self, uri: str, start: Any, end: Any) -> None:
        await self.fill(uri, _position(start), _position(end))


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, base: LspSettings) -> int:
    """Serve one editor until it leaves; the exit code."""
    own = CompletionServer(base)
    own.connection = Connection(reader, writer, own.handlers())
    try:
        return await own.connection.run()
    finally:
        own.close()


def _accepted(uri: str, number: str) -> dict[str, Any]:
    return {"title": "accepted", "command": "starcoder.accepted", "arguments": [uri, number]}


def _position(value: Any) -> Position:
    return Position(int(value["line"]), int(value["character"]))


def _place(position: Position) -> dict[str, int]:
    return {"line": position.line, "character": position.character}


def _path(uri: str | None) -> Path | None:
    parts = urlsplit(uri or "")
    return Path(unquote(parts.path)) if parts.scheme == "file" and parts.path else None


def _line_right(after: str) -> str:
    return after.partition("\n")[0].rstrip("\r")


def _word_left(before: str) -> str:
    start = len(before)
    while start and (before[start - 1].isalnum() or before[start - 1] == "_"):
        start -= 1
    return before[start:]


def _with_line_ends(text: str, document: str) -> str:
    """`text` with the line ends that the document has."""
    return text.replace("\r\n", "\n").replace("\n", "\r\n") if "\r\n" in document else text
