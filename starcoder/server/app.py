"""The routes: which path speaks which dialect, and who answers where several share one."""

import base64
import hashlib
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib import resources
from itertools import product
from typing import Any

from fastapi import FastAPI, Request
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from starcoder import __version__
from starcoder.errors import StarcoderError
from starcoder.request import CompletionRequest
from starcoder.server import (
    anthropic,
    chat,
    gemini,
    llamacpp,
    ollama,
    openai,
    overlap,
    responses,
    tabby,
    tgi,
)
from starcoder.server.codec import Body, ErrorFormat, Exchange, HTTPError, Json, ServerInfo
from starcoder.server.guard import Guard
from starcoder.server.metrics import Metrics
from starcoder.server.settings import ServerSettings
from starcoder.server.transport import (
    SMALL_BYTES,
    Lanes,
    answer,
    error_response,
    json_response,
    large_json_response,
    parse_json,
    read_body,
)
from starcoder.server.worker import Worker

log = logging.getLogger(__name__)

Reader = Callable[[object, ServerInfo], Exchange]
Handler = Callable[[Request], Awaitable[Response]]

_GEMINI_VERSIONS = ("v1beta", "v1")  # its clients of different ages use either
_GEMINI_METHODS = {"generateContent": False, "streamGenerateContent": True}  # whether it streams
_VARIED_TEMPERATURE = 0.8  # of further answers to the same request
_LLAMACPP_PATHS = ("/infill", "/completion", "/completions", "/detokenize", "/props")


def errors_of(path: str) -> ErrorFormat:
    """The error format of a path."""
    if path.startswith("/v1/messages"):
        return anthropic.ERRORS
    if path.startswith("/v1beta/") or (path.startswith("/v1/models/") and ":" in path):
        return gemini.ERRORS
    if path.startswith("/v1/"):
        return openai.ERRORS
    if path.startswith("/api/"):
        return ollama.ERRORS
    return llamacpp.ERRORS if path in _LLAMACPP_PATHS else tgi.ERRORS


def build(info: ServerInfo, settings: ServerSettings, worker: Worker, metrics: Metrics) -> FastAPI:
    """The application. Its life starts the worker and ends it."""
    lanes = Lanes()

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        lanes.close()
        await worker.close()

    app = FastAPI(
        title="starcoder",
        version=__version__,
        description="Code completion in the dialects of many servers.",
        docs_url=None,  # FastAPI's page loads scripts from elsewhere
        redoc_url=None,
        lifespan=life,
        # Prompts pass through here: nothing is exported, whatever the environment says.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    routes = _Routes(app, info, settings, worker, metrics, lanes)
    routes.add_completions()
    routes.add_lookups()
    routes.add_descriptions()
    _add_errors(app)
    app.add_middleware(Guard, settings=settings, refuse=_refuse)
    return app


async def _refuse(scope: Scope, receive: Receive, send: Send, error: StarcoderError) -> None:
    await error_response(error, errors_of(scope["path"]))(scope, receive, send)


def _add_errors(app: FastAPI) -> None:
    """Every failure is answered in the dialect of its path."""

    async def refused(request: Request, error: Exception) -> Response:
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

    app.add_exception_handler(StarcoderError, refused)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, broken)


class _Routes:
    """Adds the routes of one application."""

    def __init__(
        self,
        app: FastAPI,
        info: ServerInfo,
        settings: ServerSettings,
        worker: Worker,
        metrics: Metrics,
        lanes: Lanes,
    ):
        self._app, self._info, self._settings = app, info, settings
        self._worker, self._metrics, self._lanes = worker, metrics, lanes
        self._bodies: dict[type[Body], None] = {}
        self._asked: Counter[bytes] = Counter()  # bodies of requests that are being answered

    def add_completions(self) -> None:
        """Routes that generate text. Those that may hold a chat are always read in a thread."""
        add = self._add_completion
        add("/v1/completions", _read_v1, openai.CompletionBody)
        add("/v1/fim/completions", openai.read_fim, openai.CompletionBody)
        add("/v1/chat/completions", chat.read, chat.ChatBody, is_slow=True)
        add("/v1/responses", responses.read, responses.ResponsesBody, is_slow=True)
        add("/v1/messages", anthropic.read, anthropic.MessagesBody, is_slow=True)
        for version, (method, is_stream) in product(_GEMINI_VERSIONS, _GEMINI_METHODS.items()):
            read = partial(gemini.read, is_stream=is_stream)
            add(f"/{version}/models/{{model}}:{method}", read, gemini.GeminiBody, is_slow=True)
        for path in ("/", "/invocations", "/models/{org}/{name}"):
            add(path, _read_any, tgi.GenerateBody, is_slow=True)
        add("/generate", partial(tgi.read_generate, is_stream=False), tgi.GenerateBody)
        add("/generate_stream", partial(tgi.read_generate, is_stream=True), tgi.GenerateBody)
        add("/infill", llamacpp.read_infill, llamacpp.InfillBody)
        for path in ("/completion", "/completions"):
            add(path, llamacpp.read_completion, llamacpp.InfillBody)
        add("/api/generate", ollama.read_generate, ollama.OllamaGenerateBody)
        add("/api/chat", ollama.read_chat, ollama.OllamaChatBody, is_slow=True)

    def add_lookups(self) -> None:
        """Routes that only look at prompts and tokens."""
        info = self._info

        async def fim_render(request: Request) -> Response:
            data = await self._body(request)
            exchange = await self._lanes.run(len(data), lambda: self._read(_read_v1, data))
            return json_response(await self._render(exchange))

        def tokenize(data: object) -> Response:
            dialect: Any = tgi if isinstance(data, dict) and "inputs" in data else llamacpp
            try:
                return large_json_response(dialect.tokenize(data, info))
            except StarcoderError as error:
                return error_response(error, dialect.ERRORS)

        def events(data: object) -> Response:
            self._metrics.count_event(tabby.read_event(data))
            return Response(status_code=200)

        def look(path: str, work: Callable[[object], Response], body: type[Body]) -> None:
            async def handler(request: Request) -> Response:
                data = await self._body(request)
                return await self._lanes.run(len(data), lambda: work(parse_json(data)))

            self._add(path, handler, body)

        self._add("/v1/fim/render", fim_render, openai.CompletionBody)
        look("/tokenize", tokenize, llamacpp.TokenizeBody)
        look(
            "/detokenize",
            lambda data: json_response(llamacpp.detokenize(data, info)),
            llamacpp.DetokenizeBody,
        )
        look(
            "/overlap",
            lambda data: large_json_response(overlap.overlap(data, info.attribution)),
            overlap.OverlapBody,
        )
        look(
            "/v1/messages/count_tokens",
            lambda data: json_response(anthropic.count_tokens(data, info)),
            anthropic.MessagesBody,
        )
        for version in _GEMINI_VERSIONS:
            look(
                f"/{version}/models/{{model}}:countTokens",
                lambda data: json_response(gemini.count_tokens(data, info)),
                gemini.GeminiBody,
            )
        look(
            "/apply-template",
            lambda data: json_response(llamacpp.apply_template(data, info)),
            llamacpp.TemplateBody,
        )
        for path in ("/v1/embeddings", "/api/embed", "/api/embeddings", "/embedding"):
            look(path, _no_embeddings, ollama.ShowBody)
        look("/v1/events", events, tabby.EventBody)
        look("/api/show", lambda data: json_response(ollama.show(info)), ollama.ShowBody)

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
        add("/version", lambda: {"version": __version__})
        add(
            "/slots",
            lambda: llamacpp.slots(info, settings.max_sequences, self._worker.engine.stats().num_running),
        )
        add("/lora-adapters", list)
        add("/api/version", lambda: {"version": __version__})
        add("/api/tags", lambda: ollama.tags(info))
        add("/api/ps", lambda: ollama.tags(info))
        add("/api-doc/openapi.json", lambda: self._app.openapi())
        self._app.openapi = self._openapi  # type: ignore[method-assign]  # FastAPI's way to extend it

    def _add_completion(self, path: str, read: Reader, body: type[Body], *, is_slow: bool = False) -> None:
        """A route that completes: `read` makes the exchange of its JSON."""

        async def handler(request: Request) -> Response:
            with self._metrics.counting() as stats:
                data = await self._body(request)
                with self._asking(data) as is_repeated:
                    if is_slow or len(data) > SMALL_BYTES:
                        exchange = await self._lanes.run(len(data), lambda: self._read(read, data))
                    else:
                        exchange = self._read(read, data)
                    if is_repeated:
                        exchange.requests = [_varied(one) for one in exchange.requests]
                    stats.is_stream = exchange.is_stream
                    return await answer(
                        request, exchange, self._worker, self._lanes, write_s=self._settings.write_s
                    )

        self._add(path, handler, body)

    @contextmanager
    def _asking(self, body: bytes) -> Iterator[bool]:
        """Whether the same request runs already and leaves the temperature open.

        Editors ask several times at once for several suggestions: the first is greedy, the others vary.
        """
        is_open = not any(name in body for name in (b'"temperature"', b'"seed"', b'"session"'))
        self._asked[body] += 1
        try:
            yield is_open and self._asked[body] > 1
        finally:
            self._asked[body] -= 1
            if not self._asked[body]:
                del self._asked[body]

    async def _body(self, request: Request) -> bytes:
        return await read_body(request, body_s=self._settings.body_s)

    def _read(self, read: Reader, body: bytes) -> Exchange:
        data = parse_json(body)
        exchange = read(data, self._info)
        if _wants_attribution(data):
            exchange = overlap.attributed(exchange, self._info.attribution)
        return exchange

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

    async def _render(self, exchange: Exchange) -> Json:
        """Text, ids, budget and cache hit of the first prompt of a `/v1/completions` body, Tabby's included.

        Raises:
            StarcoderError: what the completion would be refused for.
        """
        info = self._info
        if not exchange.requests:
            raise HTTPError("there is no prompt to render")
        request, size = exchange.requests[0], SMALL_BYTES + 1
        prepared = await self._lanes.run(size, lambda: self._worker.engine.prepare(request, fit=True))
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


def _no_embeddings(data: object) -> Response:
    """Raises: HTTPError: always."""
    raise HTTPError("this model makes no embeddings", "serve an embedding model for them", status=501)


def _varied(request: CompletionRequest) -> CompletionRequest:
    return replace(request, sampling=replace(request.sampling, temperature=_VARIED_TEMPERATURE))


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
