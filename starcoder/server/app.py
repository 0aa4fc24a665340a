"""The routes: which path speaks which dialect, and who answers where several share one."""

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from starcoder import __version__
from starcoder.errors import StarcoderError
from starcoder.server import chat, llamacpp, ollama, openai, overlap, tabby, tgi
from starcoder.server.codec import Body, ErrorFormat, Exchange, HTTPError, Json, ServerInfo
from starcoder.server.guard import Guard
from starcoder.server.metrics import Metrics
from starcoder.server.settings import ServerSettings
from starcoder.server.transport import answer, error_response, json_response, read_json
from starcoder.server.worker import Worker

log = logging.getLogger(__name__)

Reader = Callable[[object, ServerInfo], Exchange]
Handler = Callable[[Request], Awaitable[Response]]

_LLAMACPP_PATHS = ("/infill", "/completion", "/completions", "/detokenize", "/props")


def errors_of(path: str) -> ErrorFormat:
    """The error format of a path."""
    if path.startswith("/v1/"):
        return openai.ERRORS
    if path.startswith("/api/"):
        return ollama.ERRORS
    return llamacpp.ERRORS if path in _LLAMACPP_PATHS else tgi.ERRORS


def build(info: ServerInfo, settings: ServerSettings, worker: Worker, metrics: Metrics) -> FastAPI:
    """The application. Its life starts the worker and ends it."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await worker.close()

    app = FastAPI(
        title="starcoder",
        version=__version__,
        description="Code completion in the dialects of OpenAI, TGI, llama.cpp, Ollama and Tabby.",
        docs_url=None,  # FastAPI's page loads scripts from elsewhere
        redoc_url=None,
        lifespan=life,
        # What goes through here is nobody else's business, whatever the environment says.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    routes = _Routes(app, info, settings, worker, metrics)
    routes.add_completions()
    routes.add_texts()
    routes.add_descriptions()
    _add_errors(app)
    app.add_middleware(Guard, settings=settings, refuse=_refuse)
    return app


async def _refuse(scope: Scope, receive: Receive, send: Send, error: StarcoderError) -> None:
    await error_response(error, errors_of(scope["path"]))(scope, receive, send)


def _add_errors(app: FastAPI) -> None:
    """Every failure is answered in the dialect of its path."""

    async def format_error(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = HTTPError(str(error.detail), status=error.status_code, kind="not_found")
        assert isinstance(error, StarcoderError), "what this handles"
        return error_response(error, errors_of(request.url.path))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    async def broken(request: Request, error: Exception) -> Response:
        return error_response(
            HTTPError("internal error", status=500, kind="generation"), errors_of(request.url.path)
        )

    app.add_exception_handler(StarcoderError, format_error)
    app.add_exception_handler(HTTPException, format_error)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, broken)


class _Routes:
    """Adds the routes of one application."""

    def __init__(
        self, app: FastAPI, info: ServerInfo, settings: ServerSettings, worker: Worker, metrics: Metrics
    ):
        self._app, self._info, self._settings = app, info, settings
        self._worker, self._metrics = worker, metrics
        self._bodies: dict[type[Body], None] = {}

    def add_completions(self) -> None:
        """Routes that generate text."""
        add = self._complete
        add("/v1/completions", _read_v1, openai.CompletionBody)
        add("/v1/fim/completions", openai.read_fim, openai.CompletionBody)
        add("/v1/chat/completions", chat.read, chat.ChatBody)
        add("/", _read_any, tgi.GenerateBody)
        add("/generate", lambda data, info: tgi.read_generate(data, info, is_stream=False), tgi.GenerateBody)
        add(
            "/generate_stream",
            lambda data, info: tgi.read_generate(data, info, is_stream=True),
            tgi.GenerateBody,
        )
        add("/invocations", _read_any, tgi.GenerateBody)
        add("/models/{org}/{name}", _read_any, tgi.GenerateBody)
        add("/infill", llamacpp.read_infill, llamacpp.InfillBody)
        add("/completion", llamacpp.read_completion, llamacpp.InfillBody)
        add("/completions", llamacpp.read_completion, llamacpp.InfillBody)
        add("/api/generate", ollama.read_generate, ollama.OllamaGenerateBody)
        add("/api/chat", ollama.read_chat, ollama.OllamaChatBody)

    def add_texts(self) -> None:
        """Routes that only look at prompts and tokens."""
        info = self._info

        async def fim_render(request: Request) -> Response:
            data = await read_json(request)
            return json_response(await self._render(data))

        async def tokenize(request: Request) -> Response:
            data = await read_json(request)
            is_tgi = isinstance(data, dict) and "inputs" in data
            try:
                return json_response((tgi if is_tgi else llamacpp).tokenize(data, info))
            except StarcoderError as error:
                return error_response(error, tgi.ERRORS if is_tgi else llamacpp.ERRORS)

        async def detokenize(request: Request) -> Response:
            return json_response(llamacpp.detokenize(await read_json(request), info))

        async def events(request: Request) -> Response:
            self._metrics.count_event(tabby.read_event(await read_json(request)))
            return Response(status_code=200)

        async def show(request: Request) -> Response:
            await read_json(request)
            return json_response(ollama.show(info))

        async def find_overlap(request: Request) -> Response:
            data = await read_json(request)
            return json_response(await asyncio.to_thread(overlap.overlap, data, info.attribution))

        self._add("/overlap", find_overlap, overlap.OverlapBody)
        self._add("/v1/fim/render", fim_render, openai.CompletionBody)
        self._add("/tokenize", tokenize, llamacpp.TokenizeBody)
        self._add("/detokenize", detokenize, llamacpp.DetokenizeBody)
        self._add("/v1/events", events, tabby.EventBody)
        self._add("/api/show", show, ollama.ShowBody)

    def add_descriptions(self) -> None:
        """What describes the server and its model."""
        info, settings = self._info, self._settings
        max_requests = settings.max_queue + settings.max_sequences

        def add(path: str, document: Callable[[], Json]) -> None:
            async def handler(request: Request) -> Response:
                return json_response(document())

            self._app.add_api_route(path, handler, methods=["GET"], response_class=Response)

        async def health(request: Request) -> Response:
            self._require_health()
            return json_response({"status": "ok"})

        async def named_model(name: str) -> Response:
            if name not in (info.model, *info.aliases):
                raise HTTPError(f"there is no model {name!r}", f"this server has {info.model!r}", status=404)
            return json_response(openai.model(info, name))

        async def numbers(request: Request) -> Response:
            return PlainTextResponse(self._metrics.text(), media_type="text/plain; version=0.0.4")

        async def health_of_tabby(request: Request) -> Response:
            self._require_health()
            return json_response(tabby.health(info))

        for path in ("/health", "/ping"):
            self._app.add_api_route(path, health, methods=["GET"], response_class=Response)
        for method in ("GET", "POST"):  # apart: an operation's id may come once
            self._app.add_api_route("/v1/health", health_of_tabby, methods=[method], response_class=Response)
        for method in ("GET", "HEAD"):
            self._app.add_api_route("/", self._front_page, methods=[method], response_class=Response)
        self._app.add_api_route("/metrics", numbers, methods=["GET"], response_class=Response)
        self._app.add_api_route("/docs", self._docs, methods=["GET"], response_class=Response)
        add("/v1/models", lambda: openai.models(info))
        self._app.add_api_route(
            "/v1/models/{name:path}", named_model, methods=["GET"], response_class=Response
        )
        add("/info", lambda: tgi.info(info, max_requests))
        add("/props", lambda: llamacpp.props(info, settings.max_sequences))
        add("/api/version", lambda: {"version": __version__})
        add("/api/tags", lambda: ollama.tags(info))
        add("/api/ps", lambda: ollama.tags(info))
        add("/api-doc/openapi.json", lambda: self._app.openapi())
        self._app.openapi = self._openapi  # type: ignore[method-assign]  # FastAPI's way to extend it

    def _complete(self, path: str, read: Reader, body: type[Body]) -> None:
        """A route that completes: `read` makes the exchange of its JSON."""

        async def handler(request: Request) -> Response:
            with self._metrics.counting() as stats:
                data = await read_json(request)
                exchange = read(data, self._info)
                if _wants_attribution(data):
                    exchange = overlap.attributed(exchange, self._info.attribution)
                stats.is_stream = exchange.is_stream
                return await answer(
                    request,
                    exchange,
                    self._worker,
                    write_s=self._settings.write_s,
                )

        self._add(path, handler, body)

    def _add(self, path: str, handler: Handler, body: type[Body]) -> None:
        self._bodies[body] = None
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        self._app.add_api_route(
            path,
            handler,
            methods=["POST"],
            response_class=Response,
            name=path.strip("/").replace("/", "_") or "root",
            openapi_extra={
                "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
            },
        )

    def _openapi(self) -> dict[str, Any]:
        """FastAPI's document with the schemas of the bodies, which we read ourselves."""
        if self._app.openapi_schema is None:
            document = FastAPI.openapi(self._app)
            _, definitions = models_json_schema(
                [(body, "validation") for body in self._bodies], ref_template="#/components/schemas/{model}"
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        assert self._app.openapi_schema is not None
        return self._app.openapi_schema

    async def _render(self, data: object) -> Json:
        """Text, ids, budget and cache hit of the first prompt of a `/v1/completions` body, Tabby's included.

        Raises:
            StarcoderError: what the completion would be refused for.
        """
        info = self._info
        exchange = _read_v1(data, info)
        if not exchange.requests:
            raise HTTPError("there is no prompt to render")
        prepared = self._worker.engine.prepare(exchange.requests[0], fit=True)
        prompt, max_tokens = prepared.prompt, prepared.request.sampling.max_tokens
        return {
            "text": info.tokenizer.decode(prompt.tokens),
            "tokens": list(prompt.tokens),
            "layout": prompt.layout,
            "prompt_tokens": len(prompt.tokens),
            "cached_tokens": await self._worker.call(lambda engine: engine.cached_tokens(prompt.tokens)),
            "max_tokens": max_tokens,
            "context_length": info.context_length,
            "budget": info.context_length - max_tokens,
            "dropped_characters": asdict(prompt.dropped),
        }

    async def _front_page(self, request: Request) -> Response:
        """A page for browsers, and for others the sentence by which clients of Ollama know it."""
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse("Ollama is running")
        return _page("playground.html")

    async def _docs(self, request: Request) -> Response:
        return _page("docs.html")

    def _require_health(self) -> None:
        if self._worker.trouble is not None:
            raise HTTPError(self._worker.trouble, status=503, kind="healthcheck")


def _wants_attribution(data: object) -> bool:
    """Whether a completion's body, or its nested `parameters`, asks for attribution."""
    if not isinstance(data, dict):
        return False
    parameters = data.get("parameters")
    nested = parameters.get("attribution") if isinstance(parameters, dict) else None
    return data.get("attribution") is True or nested is True


def _page(name: str) -> Response:
    """A page of ours, allowed to run its own script and to ask this server, and nothing else at all."""
    text = (resources.files("starcoder.server") / name).read_text("utf-8")

    def own(tag: str) -> str:
        parts = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    policy = f"default-src 'none'; script-src {own('script')}; style-src {own('style')}; connect-src 'self'"
    policy += "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return HTMLResponse(text, headers=headers)


def _read_v1(data: object, info: ServerInfo) -> Exchange:
    """`/v1/completions` is Tabby's as well as OpenAI's."""
    if isinstance(data, dict) and "segments" in data:
        return tabby.read_completion(data, info)
    return openai.read_completion(data, info)


def _read_any(data: object, info: ServerInfo) -> Exchange:
    """TGI's `inputs`, a chat's `messages`, or a `prompt`."""
    if isinstance(data, dict) and "inputs" not in data:
        if "messages" in data:
            return chat.read(data, info)
        if "prompt" in data:
            return openai.read_completion(data, info)
    return tgi.read_generate(data, info, is_compat=True)
