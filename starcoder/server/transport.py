"""From an HTTP request to its answer: reads JSON, submits a job, streams or collects, and follows the client.

A client that goes away ends its job at once; one that reads nothing for too long is sent away.
"""

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from starcoder.errors import CapacityError, StarcoderError
from starcoder.request import Chunk, Completion, collect
from starcoder.server.codec import ErrorFormat, Exchange, HTTPError, Json, Overload
from starcoder.server.worker import Job, Worker

log = logging.getLogger(__name__)


def json_response(document: Json, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in UTF-8. Lone surrogates that came with a request become question marks."""
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(data, status, headers, media_type="application/json")


def error_response(error: StarcoderError, errors: ErrorFormat) -> Response:
    """An error in the format of a dialect."""
    headers = {}
    if isinstance(error, CapacityError):
        headers["Retry-After"] = str(error.retry_after_s if isinstance(error, Overload) else 1)
    status = errors.status(error)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response(errors.body(error), status, headers)


async def read_json(request: Request) -> object:
    """The JSON of a request, whatever its content type says.

    Raises:
        HTTPError: not JSON, or too large.
        ClientDisconnect: the client has gone.
    """
    data = await request.body()
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise HTTPError(f"the body is not JSON{where}", "send a JSON object in UTF-8") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


async def answer(request: Request, exchange: Exchange, worker: Worker, *, write_s: float) -> Response:
    """Run the requests of an exchange and answer them.

    Raises:
        StarcoderError: they were refused before anything was sent.
    """
    job = worker.submit(exchange.requests, is_stream=exchange.is_stream)
    if exchange.is_stream:
        with _following(request.receive, job, worker):
            await job.accepted()
        return EventStream(exchange, job, worker, write_s=write_s)
    chunks: list[tuple[int, Chunk]] = []
    with _following(request.receive, job, worker):
        while taken := await job.take():
            chunks += taken
    samples = _samples(chunks, len(exchange.requests))
    return json_response(exchange.whole(samples), headers=cost_headers(samples))


@contextmanager
def _following(receive: Receive, job: Job, worker: Worker) -> Iterator[None]:
    """Cancels the job when the client goes meanwhile, or when the body ends early in any way."""
    follower = asyncio.ensure_future(_follow(receive, job, worker))
    try:
        yield
    except BaseException:
        worker.cancel(job)
        raise
    finally:
        follower.cancel()


async def _follow(receive: Receive, job: Job, worker: Worker) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    worker.cancel(job)


def _samples(chunks: Sequence[tuple[int, Chunk]], num_requests: int) -> list[list[Completion]]:
    """The whole samples of each request."""
    groups: list[list[Chunk]] = [[] for _ in range(num_requests)]
    for position, chunk in chunks:
        groups[position].append(chunk)
    return [next(iter(collect(group).values())) for group in groups]


def cost_headers(samples: Sequence[Sequence[Completion]]) -> dict[str, str]:
    """Counts and milliseconds, named as by TGI."""
    if not samples:
        return {}
    first = [group[0].usage for group in samples]
    num_tokens = sum(len(one.tokens) for group in samples for one in group)
    queue_ms, prefill_ms = max(u.queue_ms for u in first), max(u.prefill_ms for u in first)
    decode_ms = max(one.usage.decode_ms for group in samples for one in group)
    dropped = sum(u.dropped_characters for u in first)
    trimmed = sorted({rule for group in samples for one in group for rule in one.trimmed})
    return {
        **({"x-starcoder-trimmed": ", ".join(trimmed)} if trimmed else {}),
        **({"x-dropped-characters": str(dropped)} if dropped else {}),
        "x-prompt-tokens": str(sum(u.prompt_tokens for u in first)),
        "x-cached-tokens": str(sum(u.cached_tokens for u in first)),
        "x-generated-tokens": str(num_tokens),
        "x-queue-time": str(round(queue_ms)),
        "x-inference-time": str(round(prefill_ms + decode_ms)),
        "x-total-time": str(round(queue_ms + prefill_ms + decode_ms)),
        "x-time-per-token": str(round((prefill_ms + decode_ms) / max(1, num_tokens))),
    }


class EventStream(Response):
    """Sends the events of an exchange as they come; all that waits goes out in one write."""

    def __init__(self, exchange: Exchange, job: Job, worker: Worker, *, write_s: float):
        super().__init__(
            media_type=exchange.media_type, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        del self.headers["content-length"]
        self._exchange, self._job, self._worker, self._write_s = exchange, job, worker, write_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with _following(receive, self._job, self._worker):
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                async with asyncio.timeout(self._write_s):
                    await send(start)
                await self._write_events(send)
        except TimeoutError:
            log.warning("a client read nothing for %.0f s; its request is ended", self._write_s)
        except OSError:
            pass  # the client has gone; the job is cancelled

    async def _write_events(self, send: Send) -> None:
        exchange = self._exchange
        try:
            while taken := await self._job.take():
                events = (event for position, chunk in taken for event in exchange.events(position, chunk))
                await self._write(send, "".join(events))
            await self._write(send, exchange.end(), is_last=True)
        except StarcoderError as error:
            await self._write(send, exchange.failure(error), is_last=True)

    async def _write(self, send: Send, text: str, *, is_last: bool = False) -> None:
        if text or is_last:
            body = text.encode("utf-8", "replace")
            message = {"type": "http.response.body", "body": body, "more_body": not is_last}
            async with asyncio.timeout(self._write_s):
                await send(message)
