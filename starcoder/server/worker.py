"""The one thread that owns the engine: takes jobs, steps, and passes chunks to the event loop.

A job passes through three threads, in order: the event loop's, one that builds its prompts, and the engine's.
They meet in queues of commands forwards and in `call_soon_threadsafe`, once per step at most, backwards. A
reader that stalls delays nobody: its chunks wait in its own job, never more than its tokens, and too many end
the job.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from starcoder.engine.engine import Engine
from starcoder.engine.intake import PreparedRequest
from starcoder.errors import StarcoderError
from starcoder.request import Chunk, CompletionRequest
from starcoder.server.codec import HTTPError, Overload

if TYPE_CHECKING:
    from starcoder.server.metrics import Metrics

log = logging.getLogger(__name__)

T = TypeVar("T")

_Command = Callable[[], None]

# Chunks of one job that nobody has read: beyond that its client is gone in all but name.
MAX_UNREAD = 8192

# Of a request's text: beyond that its prompt is built in a thread that others do not wait for.
_MANY_CHARACTERS = 65_536


class Job:
    """The requests of one HTTP exchange. Await `accepted`, then `take` until it gives nothing."""

    def __init__(self, requests: Sequence[CompletionRequest], *, is_stream: bool):
        self.requests, self.is_stream = requests, is_stream
        self.is_cancelled = False  # set by the event loop; read by the engine's thread before it accepts
        self._unread: list[tuple[int, Chunk]] = []
        self._has_news = asyncio.Event()
        self._error: StarcoderError | None = None
        self._is_accepted = self._is_done = False

    async def accepted(self) -> None:
        """Wait until the engine has accepted all requests.

        Raises:
            StarcoderError: it refused one; none of them runs then.
        """
        while not (self._is_accepted or self._error):
            self._has_news.clear()
            await self._has_news.wait()
        if self._error:
            raise self._error

    async def take(self, most: int | None = None) -> list[tuple[int, Chunk]]:
        """New chunks, at most so many, each with the position of its request; [] after the last.

        Raises:
            StarcoderError: the engine has died, or the job was ended from outside.
        """
        while not (self._unread or self._is_done or self._error):
            self._has_news.clear()
            await self._has_news.wait()
        if self._error:
            raise self._error
        most = len(self._unread) if most is None else most
        taken, self._unread = self._unread[:most], self._unread[most:]
        return taken

    @property
    def num_unread(self) -> int:
        return len(self._unread)

    def receive(
        self,
        chunks: Sequence[tuple[int, Chunk]] = (),
        *,
        is_done: bool = False,
        error: StarcoderError | None = None,
    ) -> None:
        """Called on the event loop with what the worker has for the job."""
        self._is_accepted = True
        self._unread += chunks
        self._is_done |= is_done
        self._error = self._error or error
        self._has_news.set()


@dataclass(eq=False, slots=True)
class _Running:
    """The engine's side of a job."""

    job: Job
    positions: dict[str, int] = field(default_factory=dict)  # engine's id -> position in the job
    num_samples: int = 0  # that have not ended
    pending: list[tuple[int, Chunk]] = field(default_factory=list)  # chunks not passed on yet
    lengths: Counter[tuple[int, int]] = field(default_factory=Counter)  # tokens by position and sample
    was_cancelled: bool = False


class Worker:
    """Runs an engine in its own thread. Made, started and closed on the event loop."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_jobs: int,
        stall_s: float = 300.0,
        metrics: "Metrics",
    ):
        self._engine = engine
        self._max_jobs, self._stall_s, self._metrics = max_jobs, stall_s, metrics
        self._inbox: SimpleQueue[_Command] = SimpleQueue()
        self._jobs: set[Job] = set()  # the event loop's
        self._calls: set[asyncio.Future[object]] = set()  # the event loop's, too
        self._by_id: dict[str, _Running] = {}  # the thread's, by the engine's ids
        self._running: dict[Job, _Running] = {}
        self._step_began: float | None = None
        self._is_closing = False
        self._failure: BaseException | None = None
        self._builder = ThreadPoolExecutor(1, "prompts")  # one: jobs keep their order
        self._slow_builder = ThreadPoolExecutor(2, "large-prompts")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End what runs and the thread with it."""
        self._is_closing = True
        self._inbox.put(lambda: None)
        for builder in (self._builder, self._slow_builder):
            builder.shutdown(wait=False, cancel_futures=True)
        while self._thread.is_alive() and self.trouble is None:
            await asyncio.sleep(0.01)

    @property
    def num_jobs(self) -> int:
        """Jobs that have not ended."""
        return len(self._jobs)

    @property
    def engine(self) -> Engine:
        """For reading numbers only."""
        return self._engine

    @property
    def trouble(self) -> str | None:
        """Why no request can be served any more; None while the engine is healthy."""
        if self._failure is not None:
            return f"the engine has died: {type(self._failure).__name__}"
        began = self._step_began
        if began is not None and time.monotonic() - began > self._stall_s:
            return f"the engine stalls: one step takes more than {self._stall_s:.0f} s"
        return None

    def submit(self, requests: Sequence[CompletionRequest], *, is_stream: bool) -> Job:
        """Pass requests to the engine; `Job.accepted` has its decision.

        Raises:
            Overload: too many jobs have not ended.
            HTTPError: the engine is dead.
        """
        if self.trouble is not None:
            raise HTTPError(self.trouble, status=503, kind="healthcheck")
        if len(self._jobs) >= self._max_jobs:
            raise Overload("the server is overloaded", "try again in a moment")
        job = Job(requests, is_stream=is_stream)
        if not requests:
            job.receive(is_done=True)
            return job
        self._jobs.add(job)
        builder = self._slow_builder if any(map(_is_slow, requests)) else self._builder
        builder.submit(self._prepare, job)
        return job

    def cancel(self, job: Job) -> None:
        """End a job; its blocks are free within a step. A job that has ended is no error."""
        if job in self._jobs:
            job.is_cancelled = True
            self._inbox.put(lambda: self._end(job))

    def end_all(self, reason: str) -> None:
        """End every job with an error, and what the engine does for it."""
        for job in list(self._jobs):
            self.cancel(job)
            self._deliver(job, (), True, HTTPError(reason, status=503, kind="overloaded"))

    async def call(self, ask: Callable[[Engine], T]) -> T:
        """The result of `ask`, run between two steps. It must be quick.

        Raises:
            StarcoderError: what `ask` raises.
            HTTPError: the engine is dead.
        """
        if self.trouble is not None:
            raise HTTPError(self.trouble, status=503, kind="healthcheck")
        assert self._loop is not None, "started"
        loop, answer = self._loop, self._loop.create_future()

        def command() -> None:
            try:
                found = ask(self._engine)
            except StarcoderError as error:
                loop.call_soon_threadsafe(_settle, answer, None, error)
            else:
                loop.call_soon_threadsafe(_settle, answer, found, None)

        self._calls.add(answer)
        self._inbox.put(command)
        try:
            result: T = await answer
        finally:
            self._calls.discard(answer)
        return result

    def _run(self) -> None:
        try:
            while not self._is_closing:
                self._handle_commands()
                self._step_began = time.monotonic()
                self._route(self._engine.step())
                self._step_began = None
            self._fail(HTTPError("the server is shutting down", status=503, kind="overloaded"))
        except BaseException as error:  # whatever it is, /health must report it
            log.exception("the engine has died")
            self._failure = error
            self._fail(HTTPError("the engine has died", "the server restarts", status=503, kind="generation"))

    def _handle_commands(self) -> None:
        if self._engine.is_idle:
            self._inbox.get()()
        while True:
            try:
                command = self._inbox.get_nowait()
            except Empty:
                return
            command()

    def _prepare(self, job: Job) -> None:
        """Build the prompts of a job, on their own thread, and send it on to the engine's."""
        try:
            prepared = [self._engine.prepare(request, fit=True) for request in job.requests]
        except Exception as error:
            self._refuse(job, error)
        else:
            self._inbox.put(lambda: self._accept(job, prepared))

    def _accept(self, job: Job, prepared: Sequence[PreparedRequest]) -> None:
        running = _Running(job, was_cancelled=job.is_cancelled)
        if job.is_cancelled:
            self._send(job, error=_cancelled(by_client=True))
            return
        try:
            for position, one in enumerate(prepared):
                engine_id = self._engine.enqueue(one)
                running.positions[engine_id] = position
                running.num_samples += one.request.sampling.n
                self._by_id[engine_id] = running
        except Exception as error:
            self._drop(running)
            self._refuse(job, error)
            return
        self._running[job] = running
        if job.is_stream:
            self._send(job)

    def _refuse(self, job: Job, error: Exception) -> None:
        if not isinstance(error, StarcoderError):  # a bug; the other requests must survive it
            log.error("a request could not be added", exc_info=error)
            error = HTTPError("internal error", status=500, kind="generation")
        self._send(job, error=error)

    def _end(self, job: Job) -> None:
        running = self._running.get(job)
        if running is not None:
            running.was_cancelled = True
            for engine_id in running.positions:
                self._engine.abort(engine_id)

    def _drop(self, running: _Running) -> None:
        """Abort what a refused job has in the engine, and remove it."""
        for engine_id in running.positions:
            del self._by_id[engine_id]
            self._engine.abort(engine_id)

    def _route(self, chunks: Sequence[Chunk]) -> None:
        touched: dict[_Running, None] = {}
        for chunk in chunks:
            running = self._by_id.get(chunk.request_id)
            if running is None:
                continue  # of a job that was refused
            position = running.positions[chunk.request_id]
            running.lengths[position, chunk.index] += len(chunk.tokens)
            if chunk.finish_reason is not None:
                running.num_samples -= 1
                self._count(running, position, chunk)
            running.pending.append((position, chunk))
            touched[running] = None
        for running in touched:
            self._pass_on(running)

    def _count(self, running: _Running, position: int, chunk: Chunk) -> None:
        num_tokens = running.lengths[position, chunk.index]
        self._metrics.observe(running.job.requests[position], chunk, num_tokens)
        if chunk.finish_reason == "abort" and not running.was_cancelled:
            self._metrics.count_superseded()

    def _pass_on(self, running: _Running) -> None:
        is_done = not running.num_samples
        if is_done:
            del self._running[running.job]
            for engine_id in running.positions:
                del self._by_id[engine_id]
        if not (is_done or running.job.is_stream):
            return  # nobody reads a part
        error = None
        if any(chunk.finish_reason == "abort" for _, chunk in running.pending):
            error = _cancelled(running.was_cancelled)
        broken = next((chunk for _, chunk in running.pending if chunk.finish_reason == "error"), None)
        if broken is not None and broken.error:
            error = HTTPError(broken.error, status=500, kind="generation")
        elif broken is not None:
            error = HTTPError(
                "the answer cannot follow its grammar any further",
                "send a simpler grammar or schema",
                status=422,
            )
        chunks, running.pending = running.pending, []
        self._send(running.job, chunks, is_done=is_done, error=error)
        if running.job.num_unread > MAX_UNREAD:
            self._end(running.job)

    def _send(
        self,
        job: Job,
        chunks: Sequence[tuple[int, Chunk]] = (),
        *,
        is_done: bool = False,
        error: StarcoderError | None = None,
    ) -> None:
        assert self._loop is not None, "started"
        self._loop.call_soon_threadsafe(self._deliver, job, chunks, is_done, error)

    def _deliver(
        self, job: Job, chunks: Sequence[tuple[int, Chunk]], is_done: bool, error: StarcoderError | None
    ) -> None:
        """On the event loop."""
        if is_done or error:
            self._jobs.discard(job)
        job.receive(chunks, is_done=is_done, error=error)

    def _fail(self, error: StarcoderError) -> None:
        """Fail every job, those that wait in the queue included."""
        assert self._loop is not None, "started"
        self._loop.call_soon_threadsafe(self._fail_all, error)

    def _fail_all(self, error: StarcoderError) -> None:
        for job in list(self._jobs):
            self._deliver(job, (), True, error)
        for call in self._calls:
            _settle(call, None, error)


def _settle(future: "asyncio.Future[T]", found: T, error: StarcoderError | None) -> None:
    if future.done():
        return
    if error:
        future.set_exception(error)
    else:
        future.set_result(found)


def _is_slow(request: CompletionRequest) -> bool:
    """Whether others should not wait until the request is prepared."""
    num_characters = len(request.prefix) + len(request.suffix or "")
    num_characters += sum(len(extra.text) for extra in request.extras)
    return request.sampling.grammar is not None or num_characters > _MANY_CHARACTERS


def _cancelled(by_client: bool) -> StarcoderError:
    if by_client:
        return HTTPError("the client has gone", status=499, kind="incomplete_generation")
    return HTTPError(
        "a newer request of the same session replaced it", status=409, kind="incomplete_generation"
    )
