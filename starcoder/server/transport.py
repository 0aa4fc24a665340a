"""From an HTTP request to its answer: reads JSON, submits a job, streams or collects, and follows the client.

What takes long for a large request (parsing, tokenizing, templates, grammars, a large answer) runs in
threads, so that it costs nobody but its sender. A client that goes away ends its job at once; one that reads
nothing for too long is disconnected.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from starcoder.errors import CapacityError, StarcoderError
from starcoder.request import Chunk, Completion, collect
from starcoder.server.codec import ErrorFormat, Exchange, HTTPError, Json, Overload
from starcoder.server.worker import Job, Worker

log = logging.getLogger(__name__)

T = TypeVar("T")

# Bodies up to this size are read in less time than a thread takes to start, on the event loop.
SMALL_BYTES = 16_384
# Up to this size they share a lane; larger ones wait for each other only.
MEDIUM_BYTES = 262_144
# An answer with more numbers (tokens and log-probabilities) is written in a thread.
_MANY_NUMBERS = 5_000
# Items of a list that are written by one call.
_PIECE = 1_000
# Chunks that are written to a stream at once, however many wait.
_MAX_CHUNKS = 64


class Lanes:
    """Threads for requests: one lane for large ones, so that the others never wait for these."""

    def __init__(self) -> None:
        self._medium = ThreadPoolExecutor(4, "requests")
        self._large = ThreadPoolExecutor(2, "large-requests")

    async def run(self, size_bytes: int, work: Callable[[], T]) -> T:
        """The result of `work` for a request of this size, from a thread. Raises: what `work` raises."""
        lane = self._medium if size_bytes <= MEDIUM_BYTES else self._large
        return await asyncio.get_running_loop().run_in_executor(lane, work)

    def close(self) -> None:
        """Begin nothing more."""
        for lane in (self._medium, self._large):
            lane.shutdown(wait=False, cancel_futures=True)


def json_response(document: Json, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in UTF-8. Lone surrogates that came with a request become question marks."""
    return _response(_dump(document), status, headers)


def _response(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(text.encode("utf-8", "replace"), status, headers, media_type="application/json")


def _dump(document: object) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def large_json_response(document: Json) -> Response:
    """The same for a document of any size; to be called in a thread."""
    return _response(_dump_in_pieces(document))


def _dump_in_pieces(value: object) -> str:
    """The same text, long lists in pieces: one call for all of it would stop every other thread."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_dump(key)}:{_dump_in_pieces(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list) and len(value) > _PIECE:
        pieces = [_dump(value[at : at + _PIECE])[1:-1] for at in range(0, len(value), _PIECE)]
        return f"[{','.join(pieces)}]"
    if isinstance(value, list):
        return f"[{','.join(map(_dump_in_pieces, value))}]"
    return _dump(value)


def error_response(error: StarcoderError, errors: ErrorFormat) -> Response:
    """An error in the format of a dialect."""
    headers = {}
    if isinstance(error, CapacityError):
        headers["Retry-After"] = str(error.retry_after_s if isinstance(error, Overload) else 1)
    status = errors.status(error)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (408, 413) or (isinstance(error, HTTPError) and error.kind == "framing"):
        headers["Connection"] = "close"  # the rest of the body is not read
    return json_response(errors.body(error), status, headers)


async def read_body(request: Request, *, body_s: float) -> bytes:
    """The body of a request.

    Raises:
        HTTPError: too large, or not here within `body_s` seconds.
        ClientDisconnect: the client has gone.
    """
    try:
        async with asyncio.timeout(body_s):
            return await request.body()
    except TimeoutError:
        raise HTTPError(
            f"the body was not complete after {body_s:.0f} s", "send it at once", status=408
        ) from None


def parse_json(data: bytes) -> object:
    """The JSON of a body, whatever its content type says; nested at most 200 deep.

    Raises:
        HTTPError: not JSON, with what is wrong and where.
    """
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise HTTPError(f"the body is not JSON: {error}", "send a JSON object in UTF-8") from None


async def answer(
    request: Request, exchange: Exchange, worker: Worker, lanes: Lanes, *, write_s: float
) -> Response:
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
    num_numbers = sum(len(chunk.tokens) + sum(len(one.top) for one in chunk.logprobs) for _, chunk in chunks)
    if num_numbers <= _MANY_NUMBERS:
        return _whole(exchange, chunks, _dump)
    return await lanes.run(8 * num_numbers, lambda: _whole(exchange, chunks, _dump_in_pieces))


def _whole(
    exchange: Exchange, chunks: Sequence[tuple[int, Chunk]], dump: Callable[[object], str]
) -> Response:
    samples = _samples(chunks, len(exchange.requests))
    return _response(dump(exchange.whole(samples)), headers=cost_headers(samples))


@contextmanager
def _following(receive: Receive, job: Job, worker: Worker) -> Iterator[None]:
    """Cancels the job when the client disconnects meanwhile, or when the block is left by an exception."""
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
            while taken := await self._job.take(_MAX_CHUNKS):
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
