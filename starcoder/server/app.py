"""The routes: which path speaks which dialect, and who answers where several share one."""

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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
from starcoder.server import chat, llamacpp, ollama, openai, overlap, render, tabby, tgi
from starcoder.server.answering import answer, error_response, json_response, read_json
from starcoder.server.exchange import Errors, Exchange, Facts, Json, Refusal
from starcoder.server.fields import Body
from starcoder.server.guard import Guard
from starcoder.server.metrics import Metrics
from starcoder.server.settings import ServerSettings
from starcoder.server.worker import Worker

log = logging.getLogger(__name__)

Reader = Callable[[object, Facts], Exchange]
Handler = Callable[[Request], Awaitable[Response]]

_LLAMACPP_PATHS = ("/infill", "/completion", "/completions", "/detokenize", "/props")


def errors_of(path: str) -> Errors:
    """The words in which errors of a path are told."""
    if path.startswith("/v1/"):
        return openai.ERRORS
    if path.startswith("/api/"):
        return ollama.ERRORS
    return llamacpp.ERRORS if path in _LLAMACPP_PATHS else tgi.ERRORS


def build(facts: Facts, settings: ServerSettings, worker: Worker, metrics: Metrics) -> FastAPI:
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
    routes = _Routes(app, facts, settings, worker, metrics)
    routes.add_completions()
    routes.add_texts()
    routes.add_descriptions()
    _add_errors(app)
    app.add_middleware(Guard, settings=settings, refuse=_refuse)
    return app


async def _refuse(scope: Scope, receive: Receive, send: Send, error: StarcoderError) -> None:
    await error_response(error, errors_of(scope["path"]))(scope, receive, send)


def _add_errors(app: FastAPI) -> None:
    """Every failure is told in the dialect of its path."""

    async def told(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = Refusal(str(error.detail), status=error.status_code, kind="not_found")
        assert isinstance(error, StarcoderError), "what this handles"
        return error_response(error, errors_of(request.url.path))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    async def broken(request: Request, error: Exception) -> Response:
        return error_response(
            Refusal("internal error", status=500, kind="generation"), errors_of(request.url.path)
        )

    app.add_exception_handler(StarcoderError, told)
    app.add_exception_handler(HTTPException, told)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, broken)


class _Routes:
    """Adds the routes of one application."""

    def __init__(
        self, app: FastAPI, facts: Facts, settings: ServerSettings, worker: Worker, metrics: Metrics
    ):
        self._app, self._facts, self._settings = app, facts, settings
        self._worker, self._metrics = worker, metrics
        self._bodies: dict[type[Body], None] = {}

    def add_completions(self) -> None:
        """What makes the model write."""
        ask = self._ask
        ask("/v1/completions", _read_v1, openai.CompletionBody)
        ask("/v1/fim/completions", openai.read_fim, openai.CompletionBody)
        ask("/v1/chat/completions", chat.read, chat.ChatBody)
        ask("/", _read_any, tgi.GenerateBody)
        ask(
            "/generate", lambda data, facts: tgi.read_generate(data, facts, is_stream=False), tgi.GenerateBody
        )
        ask(
            "/generate_stream",
            lambda data, facts: tgi.read_generate(data, facts, is_stream=True),
            tgi.GenerateBody,
        )
        ask("/invocations", _read_any, tgi.GenerateBody)
        ask("/models/{org}/{name}", _read_any, tgi.GenerateBody)
        ask("/infill", llamacpp.read_infill, llamacpp.InfillBody)
        ask("/completion", llamacpp.read_completion, llamacpp.InfillBody)
        ask("/completions", llamacpp.read_completion, llamacpp.InfillBody)
        ask("/api/generate", ollama.read_generate, ollama.OllamaGenerateBody)
        ask("/api/chat", ollama.read_chat, ollama.OllamaChatBody)

    def add_texts(self) -> None:
        """What looks at prompts and tokens without writing."""
        facts = self._facts

        async def fim_render(request: Request) -> Response:
            data = await read_json(request)
            return json_response(await render.render(data, facts, self._worker))

        async def tokenize(request: Request) -> Response:
            data = await read_json(request)
            is_tgi = isinstance(data, dict) and "inputs" in data
            try:
                return json_response((tgi if is_tgi else llamacpp).tokenize(data, facts))
            except StarcoderError as error:
                return error_response(error, tgi.ERRORS if is_tgi else llamacpp.ERRORS)

        async def detokenize(request: Request) -> Response:
            return json_response(llamacpp.detokenize(await read_json(request), facts))

        async def events(request: Request) -> Response:
            self._metrics.count_event(tabby.read_event(await read_json(request)))
            return Response(status_code=200)

        async def show(request: Request) -> Response:
            await read_json(request)
            return json_response(ollama.show(facts))

        async def find_overlap(request: Request) -> Response:
            data = await read_json(request)
            return json_response(await asyncio.to_thread(overlap.overlap, data, facts.attribution))

        self._add("/overlap", find_overlap, overlap.OverlapBody)
        self._add("/v1/fim/render", fim_render, openai.CompletionBody)
        self._add("/tokenize", tokenize, llamacpp.TokenizeBody)
        self._add("/detokenize", detokenize, llamacpp.DetokenizeBody)
        self._add("/v1/events", events, tabby.EventBody)
        self._add("/api/show", show, ollama.ShowBody)

    def add_descriptions(self) -> None:
        """What tells of the server and its model."""
        facts, settings = self._facts, self._settings
        max_requests = settings.max_queue + settings.max_sequences

        def tell(path: str, document: Callable[[], Json]) -> None:
            async def handler(request: Request) -> Response:
                return json_response(document())

            self._app.add_api_route(path, handler, methods=["GET"], response_class=Response)

        async def health(request: Request) -> Response:
            self._require_health()
            return json_response({"status": "ok"})

        async def named_model(name: str) -> Response:
            if name not in (facts.model, *facts.aliases):
                raise Refusal(f"there is no model {name!r}", f"this server has {facts.model!r}", status=404)
            return json_response(openai.model(facts, name))

        async def numbers(request: Request) -> Response:
            return PlainTextResponse(self._metrics.text(), media_type="text/plain; version=0.0.4")

        async def health_of_tabby(request: Request) -> Response:
            self._require_health()
            return json_response(tabby.health(facts))

        for path in ("/health", "/ping"):
            self._app.add_api_route(path, health, methods=["GET"], response_class=Response)
        for method in ("GET", "POST"):  # apart: an operation's id may come once
            self._app.add_api_route("/v1/health", health_of_tabby, methods=[method], response_class=Response)
        for method in ("GET", "HEAD"):
            self._app.add_api_route("/", self._front_page, methods=[method], response_class=Response)
        self._app.add_api_route("/metrics", numbers, methods=["GET"], response_class=Response)
        self._app.add_api_route("/docs", self._docs, methods=["GET"], response_class=Response)
        tell("/v1/models", lambda: openai.models(facts))
        self._app.add_api_route(
            "/v1/models/{name:path}", named_model, methods=["GET"], response_class=Response
        )
        tell("/info", lambda: tgi.info(facts, max_requests))
        tell("/props", lambda: llamacpp.props(facts, settings.max_sequences))
        tell("/api/version", lambda: {"version": __version__})
        tell("/api/tags", lambda: ollama.tags(facts))
        tell("/api/ps", lambda: ollama.tags(facts))
        tell("/api-doc/openapi.json", lambda: self._app.openapi())
        self._app.openapi = self._openapi  # type: ignore[method-assign]  # FastAPI's way to extend it

    def _ask(self, path: str, read: Reader, body: type[Body]) -> None:
        """A route that completes: `read` makes the exchange of its JSON."""

        async def handler(request: Request) -> Response:
            with self._metrics.counting() as seen:
                data = await read_json(request)
                exchange = read(data, self._facts)
                if overlap.wants_attribution(data):
                    exchange = overlap.attributed(exchange, self._facts.attribution)
                seen.is_stream = exchange.is_stream
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

    async def _front_page(self, request: Request) -> Response:
        """A page for browsers, and for others the sentence by which clients of Ollama know it."""
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse("Ollama is running")
        return _page("playground.html")

    async def _docs(self, request: Request) -> Response:
        return _page("docs.html")

    def _require_health(self) -> None:
        if self._worker.trouble is not None:
            raise Refusal(self._worker.trouble, status=503, kind="healthcheck")


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


def _read_v1(data: object, facts: Facts) -> Exchange:
    """`/v1/completions` is Tabby's as well as OpenAI's."""
    if isinstance(data, dict) and "segments" in data:
        return tabby.read_completion(data, facts)
    return openai.read_completion(data, facts)


def _read_any(data: object, facts: Facts) -> Exchange:
    """TGI's `inputs`, a chat's `messages`, or a `prompt`."""
    if isinstance(data, dict) and "inputs" not in data:
        if "messages" in data:
            return chat.read(data, facts)
        if "prompt" in data:
            return openai.read_completion(data, facts)
    return tgi.read_generate(data, facts, is_compat=True)
