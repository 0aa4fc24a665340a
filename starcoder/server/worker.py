"""The one thread that owns the engine: takes jobs in, steps, hands chunks to the event loop.

Everything but `Worker._run` and what it calls belongs to the event loop's thread; the two meet in a queue of
letters one way and in `call_soon_threadsafe`, once per step at most, the other way. A reader that stalls
delays nobody: its chunks wait in its own job, never more than its tokens, and too many end the job.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from starcoder.engine.engine import Engine
from starcoder.errors import StarcoderError
from starcoder.prompts import Vocabulary
from starcoder.request import Chunk, CompletionRequest
from starcoder.server.exchange import Overload, Refusal
from starcoder.server.fitting import fitted
from starcoder.server.job import Job

if TYPE_CHECKING:
    from starcoder.server.metrics import Metrics

log = logging.getLogger(__name__)

T = TypeVar("T")

_Letter = Callable[[], None]

# Chunks of one job that nobody has read: beyond that its client is gone in all but name.
MAX_UNREAD = 8192


@dataclass(eq=False, slots=True)
class _Open:
    """The engine's side of a job."""

    job: Job
    positions: dict[str, int] = field(default_factory=dict)  # engine's id -> position in the job
    num_samples: int = 0  # that have not ended
    kept: list[tuple[int, Chunk]] = field(default_factory=list)  # chunks not handed out yet
    lengths: Counter[tuple[int, int]] = field(default_factory=Counter)  # tokens by position and sample
    was_cancelled: bool = False


class Worker:
    """Runs an engine in its own thread. Made, started and closed on the event loop."""

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        *,
        max_jobs: int,
        stall_s: float = 300.0,
        metrics: "Metrics",
    ):
        self._engine, self._vocabulary = engine, vocabulary
        self._max_jobs, self._stall_s, self._metrics = max_jobs, stall_s, metrics
        self._letters: SimpleQueue[_Letter] = SimpleQueue()
        self._jobs: set[Job] = set()  # the event loop's
        self._calls: set[asyncio.Future[object]] = set()  # the event loop's, too
        self._open: dict[str, _Open] = {}  # the thread's, by the engine's ids
        self._openings: dict[Job, _Open] = {}
        self._step_began: float | None = None
        self._is_closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End what runs and the thread with it."""
        self._is_closing = True
        self._letters.put(lambda: None)
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
        """Why no request can be served any more; None while all is well."""
        if self._failure is not None:
            return f"the engine has died: {type(self._failure).__name__}"
        began = self._step_began
        if began is not None and time.monotonic() - began > self._stall_s:
            return f"the engine stalls: one step takes more than {self._stall_s:.0f} s"
        return None

    def submit(self, requests: Sequence[CompletionRequest], *, is_stream: bool) -> Job:
        """Pass requests to the engine; `Job.accepted` tells what it says.

        Raises:
            Overload: too many jobs have not ended.
            Refusal: the engine is dead.
        """
        if self.trouble is not None:
            raise Refusal(self.trouble, status=503, kind="healthcheck")
        if len(self._jobs) >= self._max_jobs:
            raise Overload("the server is overloaded", "try again in a moment")
        job = Job(requests, is_stream=is_stream)
        if not requests:
            job.receive(is_done=True)
            return job
        self._jobs.add(job)
        self._letters.put(lambda: self._take_in(job))
        return job

    def cancel(self, job: Job) -> None:
        """End a job; its blocks are free within a step. An ended job is no error."""
        if job in self._jobs:
            self._letters.put(lambda: self._end(job))

    async def call(self, ask: Callable[[Engine], T]) -> T:
        """What `ask` answers, run between two steps. It must be quick.

        Raises:
            StarcoderError: what `ask` raises.
            Refusal: the engine is dead.
        """
        if self.trouble is not None:
            raise Refusal(self.trouble, status=503, kind="healthcheck")
        assert self._loop is not None, "started"
        loop, answer = self._loop, self._loop.create_future()

        def letter() -> None:
            try:
                found = ask(self._engine)
            except StarcoderError as error:
                loop.call_soon_threadsafe(_settle, answer, None, error)
            else:
                loop.call_soon_threadsafe(_settle, answer, found, None)

        self._calls.add(answer)
        self._letters.put(letter)
        try:
            result: T = await answer
        finally:
            self._calls.discard(answer)
        return result

    def _run(self) -> None:
        try:
            while not self._is_closing:
                self._read_letters()
                self._step_began = time.monotonic()
                self._hand_on(self._engine.step())
                self._step_began = None
            self._give_up(Refusal("the server is shutting down", status=503, kind="overloaded"))
        except BaseException as error:  # whatever it is, /health must tell
            log.exception("the engine has died")
            self._failure = error
            self._give_up(
                Refusal("the engine has died", "the server restarts", status=503, kind="generation")
            )

    def _read_letters(self) -> None:
        if self._engine.is_idle:
            self._letters.get()()
        while True:
            try:
                letter = self._letters.get_nowait()
            except Empty:
                return
            letter()

    def _take_in(self, job: Job) -> None:
        opened = _Open(job)
        try:
            for position, request in enumerate(job.requests):
                engine_id = self._engine.add(fitted(request, self._vocabulary, self._engine.context_length))
                opened.positions[engine_id] = position
                opened.num_samples += request.sampling.n
                self._open[engine_id] = opened
        except Exception as error:
            if not isinstance(error, StarcoderError):  # ours; it must not take the other requests with it
                log.exception("a request could not be added")
                error = Refusal("internal error", status=500, kind="generation")
            self._drop(opened)
            self._send(job, error=error)
            return
        self._openings[job] = opened
        if job.is_stream:
            self._send(job)

    def _end(self, job: Job) -> None:
        opened = self._openings.get(job)
        if opened is not None:
            opened.was_cancelled = True
            for engine_id in opened.positions:
                self._engine.abort(engine_id)

    def _drop(self, opened: _Open) -> None:
        """Abort what a refused job has in the engine, and forget it."""
        for engine_id in opened.positions:
            del self._open[engine_id]
            self._engine.abort(engine_id)

    def _hand_on(self, chunks: Sequence[Chunk]) -> None:
        touched: dict[_Open, None] = {}
        for chunk in chunks:
            opened = self._open.get(chunk.request_id)
            if opened is None:
                continue  # of a job that was refused
            position = opened.positions[chunk.request_id]
            opened.lengths[position, chunk.index] += len(chunk.tokens)
            if chunk.finish_reason is not None:
                opened.num_samples -= 1
                self._count(opened, position, chunk)
            opened.kept.append((position, chunk))
            touched[opened] = None
        for opened in touched:
            self._hand_out(opened)

    def _count(self, opened: _Open, position: int, chunk: Chunk) -> None:
        num_tokens = opened.lengths[position, chunk.index]
        self._metrics.observe(opened.job.requests[position], chunk, num_tokens)
        if chunk.finish_reason == "abort" and not opened.was_cancelled:
            self._metrics.count_superseded()

    def _hand_out(self, opened: _Open) -> None:
        is_done = not opened.num_samples
        if is_done:
            del self._openings[opened.job]
            for engine_id in opened.positions:
                del self._open[engine_id]
        if not (is_done or opened.job.is_stream):
            return  # nobody looks at a part
        error = None
        if any(chunk.finish_reason == "abort" for _, chunk in opened.kept):
            error = _cancelled(opened.was_cancelled)
        kept, opened.kept = opened.kept, []
        self._send(opened.job, kept, is_done=is_done, error=error)
        if opened.job.num_unread > MAX_UNREAD:
            self._end(opened.job)

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

    def _give_up(self, error: StarcoderError) -> None:
        """Tell every job, those that wait in the queue included, that nothing more comes."""
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


def _cancelled(by_client: bool) -> StarcoderError:
    if by_client:
        return Refusal("the client has gone", status=499, kind="incomplete_generation")
    return Refusal(
        "a newer request of the same session took its place", status=409, kind="incomplete_generation"
    )
