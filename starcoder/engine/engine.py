"""The engine: `add` requests, `step`, get chunks. Synchronous: whoever owns the thread owns the loop.

One step is: schedule, run, sample, hand out. It never waits and never prints.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from secrets import randbits
from typing import TYPE_CHECKING

from starcoder.engine import scheduler
from starcoder.engine.blocks import Pool
from starcoder.engine.cache import make_cache
from starcoder.engine.drafts import Drafting
from starcoder.engine.healing import Healing
from starcoder.engine.intake import Intake, PreparedRequest
from starcoder.engine.live import NOT_FINITE, NOT_FINITE_HINT, LiveRequest, LiveSample, Outbox
from starcoder.engine.native import NativeRunner
from starcoder.engine.runner import Logits, Runner
from starcoder.engine.sampling import Draw, Drawn, sample
from starcoder.engine.scheduler import Scheduler, Segment
from starcoder.engine.sessions import Ahead, Answer, SessionPlan, Sessions
from starcoder.engine.settings import EngineSettings, EngineStats
from starcoder.engine.stopping import CursorContext, Stopper
from starcoder.errors import CapacityError, CheckpointError, RequestError
from starcoder.model import Transformer
from starcoder.request import Chunk, CompletionRequest, FinishReason, Usage

if TYPE_CHECKING:
    from starcoder.tokenizer import Tokenizer


@dataclass(slots=True)
class _Counts:
    """Totals since the engine was made."""

    requests: int = 0
    repeated: int = 0
    steps: int = 0
    computed: int = 0
    generated: int = 0


@dataclass(slots=True)
class _Turn:
    """A sample that draws from the step's logits: after its last token, then after each right draft token."""

    sample: LiveSample
    row: int  # of the logits
    draft: tuple[int, ...]
    drawn: list[int]


class Engine:
    """Serves many requests with one model. Only `prepare` may be called from other threads."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: "Tokenizer",
        *,
        settings: EngineSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        settings = settings or EngineSettings()
        self._tokenizer, self._clock = tokenizer, clock
        cache = make_cache(model, settings)
        self.device = cache.device  # that the model runs on
        is_native = NativeRunner.can_run(model, cache)
        self._runner = NativeRunner(model, cache) if is_native else Runner(model, cache)
        self._pool = Pool(cache.num_blocks, cache.block_size)
        self._scheduler = Scheduler(
            self._pool,
            max_step_tokens=settings.max_step_tokens,
            max_sequences=settings.max_sequences,
            max_queue=settings.max_queue,
        )
        self._context_length = min(model.config.max_positions, cache.num_blocks * cache.block_size)
        self._sessions = Sessions(settings.max_sessions)
        self._intake = Intake(
            tokenizer,
            self._sessions,
            context_length=self._context_length,
            vocab_size=model.config.vocab_size,
        )
        self._ahead = Ahead(self._sessions, is_on=settings.prepare)
        self._drafting = Drafting(settings.drafts)
        self._outbox = Outbox()
        self._live: dict[str, LiveRequest] = {}
        self._samples: dict[scheduler.Sequence, LiveSample] = {}
        self._counts = _Counts()

    @property
    def is_idle(self) -> bool:
        """Whether `step` has nothing to do and nothing to return."""
        return not (self._live or self._outbox or self._ahead.is_wanted)

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its completion may have together."""
        return self._context_length

    def cached_tokens(self, tokens: Sequence[int]) -> int:
        """How many first tokens of this prompt would not be computed again; changes nothing."""
        return self._pool.count_cached(tokens)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_waiting=len(self._scheduler.waiting),
            num_running=len(self._scheduler.running),
            num_blocks=self._pool.num_blocks,
            num_held_blocks=self._pool.num_held,
            num_steps=self._counts.steps,
            num_preemptions=self._scheduler.num_preemptions,
            computed_tokens=self._counts.computed,
            generated_tokens=self._counts.generated,
            drafted_tokens=self._drafting.num_drafted,
            accepted_tokens=self._drafting.num_accepted,
            num_repeated=self._counts.repeated,
            num_sessions=len(self._sessions),
        )

    def prepare(self, request: CompletionRequest, *, fit: bool = False) -> PreparedRequest:
        """Check a request and build its prompt, from any thread: `enqueue` then takes no time.

        `fit` lowers `max_tokens` to what the prompt leaves of the context.

        Raises:
            RequestError: it can never be served: an empty prompt, too many tokens, or a broken grammar.
            ConfigError: it needs an extra that is not installed.
        """
        return self._intake.prepare(request, fit=fit)

    def enqueue(self, prepared: PreparedRequest) -> str:
        """Queue a request and return its id; an older request of the same session is aborted.

        While the user types what the session's last completion says, the rest of it is the answer, with its
        finish reason, and all prompt tokens count as cached.

        Raises:
            RequestError: it would not fit in the cache even alone.
            CapacityError: the queue is full now.
        """
        return self._enqueue(prepared.request, prepared.plan, prepared)

    def add(self, request: CompletionRequest) -> str:
        """`prepare` and `enqueue` in one call. Raises: RequestError, ConfigError, CapacityError."""
        self._intake.check(request, fit=False)
        return self._enqueue(request, self._sessions.plan(request), None)

    def abort(self, request_id: str) -> None:
        """End a request now; its blocks are free at once, and its last chunks come with the next `step`.

        An unknown or ended request is no error: it may have ended a moment ago.
        """
        live = self._live.get(request_id)
        if live is not None:
            self._end(live, "abort")

    def step(self) -> list[Chunk]:
        """Advance every running request and return the new chunks; [] when idle."""
        self._advance()
        return self._outbox.take_rest()

    def generate(self, requests: Sequence[CompletionRequest]) -> Iterator[Chunk]:
        """Serve these requests; the `request_id` of a chunk is its request's position in `requests`.

        No more are queued at once than the queue takes. Requests added otherwise run meanwhile; their
        chunks come from `step`. Closing the iterator aborts what is left.

        Raises:
            RequestError: a request can never be served; those before it are then aborted too.
            CheckpointError: the model produced logits that are not finite.
        """
        todo = deque(enumerate(requests))
        boxes: dict[str, deque[Chunk]] = {}
        try:
            while todo or boxes:
                while todo and not self._scheduler.is_full:
                    position, request = todo.popleft()
                    self._intake.check(request, fit=False)
                    plan = self._sessions.plan(request)
                    request_id = self._enqueue(request, plan, None, name=str(position))
                    boxes[request_id] = self._outbox.open(request_id)
                self._advance()
                for request_id, box in list(boxes.items()):
                    while box:
                        chunk = box.popleft()
                        if chunk.error:
                            raise CheckpointError(chunk.error, NOT_FINITE_HINT)
                        yield chunk
                    if request_id not in self._live:
                        self._outbox.close(request_id)
                        del boxes[request_id]
        finally:
            for request_id in boxes:
                self.abort(request_id)
                self._outbox.close(request_id)

    # A step

    def _advance(self) -> None:
        segments = self._schedule()
        if segments:
            logits = self._run(segments)
            turns = self._turns(segments)
            while turns:
                turns = self._without_failures(turns, logits)
                turns = self._hand_out(turns, self._sample(turns, logits))

    def _schedule(self) -> list[Segment]:
        self._end_overdue()
        self._begin_ahead()
        self._drafting.propose(num_running=len(self._scheduler.running))
        return self._scheduler.schedule()

    def _run(self, segments: list[Segment]) -> Logits:
        started_at = self._clock()
        for segment in segments:
            live = self._samples[segment.sequence].request
            if live.started_at is None:
                live.started_at = started_at
        copies, self._pool.copies = self._pool.copies, []
        logits = self._runner.run(segments, copies)
        self._drafting.measured(segments, self._clock() - started_at)
        self._scheduler.advance(segments)
        self._counts.steps += 1
        self._counts.computed += sum(segment.end - segment.start for segment in segments)
        return logits

    def _turns(self, segments: Sequence[Segment]) -> list[_Turn]:
        """Who draws, and from which row: the samples of one prompt share its rows at first."""
        turns: list[_Turn] = []
        row = 0
        for segment in segments:
            if not segment.is_last:
                continue
            first = self._samples[segment.sequence]
            turns.append(_Turn(first, row, segment.draft, []))
            for twin in self._fork(first.request):
                draft = segment.draft if twin.sequence.is_running else ()  # whose blocks it shares
                turns.append(_Turn(twin, row, draft, []))
            row += segment.num_rows
        return turns

    def _without_failures(self, turns: Sequence[_Turn], logits: Logits) -> list[_Turn]:
        """The turns whose logits are numbers; the others' samples end with an error."""
        finite = logits.of([turn.row for turn in turns]).are_finite()
        for turn, is_finite in zip(turns, finite, strict=True):
            if not is_finite:
                self._drafting.learn(turn.sample.sequence, turn.draft, [*turn.drawn, 0])
                self._send(turn.sample.end("error", self._clock(), NOT_FINITE), turn.sample)
        return [turn for turn, is_finite in zip(turns, finite, strict=True) if is_finite]

    def _sample(self, turns: Sequence[_Turn], logits: Logits) -> list[Drawn]:
        rows = logits.of([turn.row for turn in turns])
        draws = [turn.sample.draw for turn in turns]
        return sample(rows.values, draws, [turn.sample.sequence.tokens for turn in turns], rows.best)

    def _hand_out(self, turns: Sequence[_Turn], drawn: Sequence[Drawn]) -> list[_Turn]:
        """Send what was drawn; the turns whose draft has it too, and so can draw after it, come back."""
        again: list[_Turn] = []
        now = self._clock()
        for turn, token in zip(turns, drawn, strict=True):
            one, at = turn.sample, len(turn.drawn)
            turn.drawn.append(token.token)
            self._keep_prompt(turn, token.token)
            chunk = one.take(token, now, self._tokenizer)
            if chunk is not None:
                self._send(chunk, one)
                self._counts.generated += 1
            has_ended = chunk is not None and chunk.finish_reason is not None
            if not has_ended and turn.draft[at : at + 1] == (token.token,):
                one.sequence.num_computed += 1
                turn.row += 1
                again.append(turn)
            else:
                self._drafting.learn(one.sequence, turn.draft, turn.drawn)
        return again

    def _keep_prompt(self, turn: _Turn, token: int) -> None:
        """Where healing leaves the prompt's own tokens, keep what was computed of them for later prompts."""
        one, left = turn.sample, turn.draft[len(turn.drawn) - 1 :]
        if one.draw.healing is not None and one.draw.index == 0 and left and left[0] != token:
            tokens = [*one.sequence.tokens, *left]
            self._pool.keep_branch(one.sequence.table, tokens, len(one.sequence.tokens))

    # A request's life

    def _enqueue(
        self,
        request: CompletionRequest,
        plan: SessionPlan,
        prepared: PreparedRequest | None,
        *,
        name: str | None = None,
    ) -> str:
        """Queue a request or answer it from its session; `name` is what its chunks call it, None its id."""
        self._end_ahead()
        answer = self._sessions.typed_through(plan)
        if answer is not None:
            return self._repeat(answer, plan, name)
        return self._begin(prepared or self._intake.build(request, plan), name).id

    def _begin(self, prepared: PreparedRequest, name: str | None = None) -> LiveRequest:
        """Queue a request. Raises: RequestError, CapacityError: as `enqueue`."""
        request, params = prepared.request, prepared.request.sampling
        self._counts.requests += 1
        id_ = str(self._counts.requests)
        seed = randbits(63) if params.seed is None else params.seed
        live = LiveRequest(id_, name or id_, prepared, self._clock(), seed, params.n - 1)
        sequence = scheduler.Sequence(
            list(prepared.tokens),
            len(prepared.tokens),
            params.max_tokens + len(prepared.text_to_heal),
            rank=(-request.priority, self._counts.requests, 0),
            priority=request.priority,
            draft=prepared.boundary.draft if prepared.boundary else (),
        )
        self._scheduler.add(sequence)
        if request.session is not None:
            self._abort_session(request.session)
        self._sessions.asked(prepared.plan)
        self._live[live.id] = live
        self._join(live, sequence, 0)
        return live

    def _repeat(self, answer: Answer, plan: SessionPlan, name: str | None) -> str:
        """Answer without the model: the user typed what the session's last completion says."""
        session = plan.request.session
        assert session is not None, "only sessions have answers"
        self._counts.requests += 1
        self._counts.repeated += 1
        self._abort_session(session)
        self._sessions.asked(plan)
        typed = plan.request.prefix[len(answer.plan.request.prefix) :]
        num_tokens = answer.prompt_tokens + len(self._tokenizer.encode(typed))
        id_ = str(self._counts.requests)
        chunk = Chunk(
            request_id=name or id_,
            text=answer.text,
            tokens=tuple(self._tokenizer.encode(answer.text)),
            finish_reason=answer.finish_reason,
            stop=answer.stop,
            usage=Usage(
                prompt_tokens=num_tokens, cached_tokens=num_tokens, queue_ms=0, prefill_ms=0, decode_ms=0
            ),
            trimmed=answer.trimmed,
        )
        self._outbox.put(id_, chunk)
        self._ahead.want(session)
        return id_

    def _join(self, live: LiveRequest, sequence: scheduler.Sequence, index: int) -> LiveSample:
        request, prompt = live.prepared.request, live.prepared.prompt
        params = request.sampling
        cursor = CursorContext(
            before=request.prefix,
            after=request.suffix,
            inserted=live.prepared.plan.inserted,
            newline=prompt.newline,
            rules=request.postprocess or (),
        )
        stopper = Stopper(params, self._tokenizer.stream(), end_ids=prompt.end_ids, cursor=cursor)
        draw = Draw(params, live.seed, index, end_ids=prompt.end_ids | set(params.stop_ids))
        if params.grammar is not None:
            draw.constraint = self._intake.grammars.constraint(params.grammar)
        if live.prepared.text_to_heal:
            draw.healing = Healing(live.prepared.text_to_heal, self._tokenizer)
        joined = LiveSample(live, sequence, stopper, draw)
        live.samples.append(joined)
        self._drafting.start(sequence, draw)
        self._samples[sequence] = joined
        return joined

    def _fork(self, live: LiveRequest) -> list[LiveSample]:
        """The samples that waited for the request's prompt; they share its blocks."""
        parent = live.samples[0].sequence
        twins = []
        for index in range(1, live.num_pending_forks + 1):
            twin = self._scheduler.fork(parent, (*parent.rank[:2], index))
            twins.append(self._join(live, twin, index))
        live.num_pending_forks = 0
        return twins

    def _send(self, chunk: Chunk, one: LiveSample) -> None:
        """Hand a chunk to its reader; after a last one the sample is gone."""
        live = one.request
        is_ahead = live.id == self._ahead.running
        if not is_ahead:
            self._outbox.put(live.id, chunk)
        one.text += chunk.text
        if chunk.finish_reason is None:
            return
        if chunk.finish_reason not in ("abort", "error"):
            if is_ahead:
                self._sessions.prepared(one.answer(chunk))
            else:
                self._sessions.answered(one.answer(chunk))
                self._ahead.want(live.session)
        self._scheduler.remove(one.sequence)
        self._drafting.stop(one.sequence)
        del self._samples[one.sequence]
        live.samples.remove(one)
        if not live.samples:
            del self._live[live.id]

    def _end(self, live: LiveRequest, reason: FinishReason) -> None:
        self._fork(live)
        now = self._clock()
        for one in list(live.samples):
            self._send(one.end(reason, now), one)

    def _end_overdue(self) -> None:
        overdue = [live for live in self._live.values() if live.deadline is not None]
        now = self._clock() if overdue else 0.0
        for live in overdue:
            if live.deadline is not None and now >= live.deadline:
                self._end(live, "deadline")

    def _abort_session(self, session: str) -> None:
        for live in [live for live in self._live.values() if live.session == session]:
            self._end(live, "abort")

    def _begin_ahead(self) -> None:
        """While nothing else runs, begin what a session asks next if its user accepts the last answer."""
        if not self._ahead.is_wanted or self._live:
            return
        plan = self._ahead.plan()
        if plan is not None:
            with suppress(RequestError, CapacityError):  # such as a full context: then not
                self._ahead.running = self._begin(self._intake.build(plan.request, plan, fit=True)).id
        self._ahead.is_wanted = False  # last: meanwhile other threads may ask whether the engine is idle

    def _end_ahead(self) -> None:
        """Make way for a real request."""
        self._ahead.is_wanted = False
        self.abort(self._ahead.running)
        self._ahead.running = ""
