"""The engine: `add` requests, `step`, get chunks. Synchronous: whoever owns the thread owns the loop.

One step is: schedule, run, sample, hand out what came. It never waits and never prints.
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
from starcoder.engine.cache import Cache, bytes_per_token, default_cache_bytes
from starcoder.engine.constraint import Grammars
from starcoder.engine.drafts import Cost, Drafts
from starcoder.engine.live import LiveRequest, Sample
from starcoder.engine.native import NativeRunner
from starcoder.engine.runner import Runner
from starcoder.engine.sampling import Draw, Drawn, sample
from starcoder.engine.scheduler import Scheduler, Segment
from starcoder.engine.sessions import Answer, Plan, Sessions
from starcoder.engine.settings import EngineSettings, EngineStats
from starcoder.engine.stopping import CursorContext, Stopper
from starcoder.errors import CapacityError, ConfigError, RequestError
from starcoder.model import Transformer
from starcoder.prompts import build
from starcoder.request import Chunk, CompletionRequest, FinishReason, Usage

if TYPE_CHECKING:
    from starcoder.tokenizer import Tokenizer


class Engine:
    """Serves many requests with one model. Not for several threads at once."""

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
        weight = model.norm.weight  # never quantized: its dtype is that of keys and values
        config, size = model.config, settings.block_size
        cache_bytes = settings.cache_bytes
        if cache_bytes is None:
            cache_bytes = default_cache_bytes(config, weight.device, weight.dtype)
        num_blocks = cache_bytes // (size * bytes_per_token(config, weight.dtype))
        if not num_blocks:
            raise ConfigError(
                f"cache_bytes {cache_bytes} is less than one block", "give the cache more memory"
            )
        self._cache = Cache(config, num_blocks, size, device=weight.device, dtype=weight.dtype)
        is_native = NativeRunner.can_run(model, self._cache)
        self._runner = NativeRunner(model, self._cache) if is_native else Runner(model, self._cache)
        self._pool = Pool(num_blocks, size)
        self.device = weight.device  # that the model runs on
        self._scheduler = Scheduler(
            self._pool,
            max_step_tokens=settings.max_step_tokens,
            max_sequences=settings.max_sequences,
            max_queue=settings.max_queue,
        )
        self._vocab_size = config.vocab_size
        self._max_tokens = min(config.max_positions, num_blocks * size)
        self._live: dict[str, LiveRequest] = {}
        self._samples: dict[scheduler.Sequence, Sample] = {}
        self._sessions = Sessions(settings.max_sessions)
        self._grammars = Grammars(tokenizer)
        self._prepares, self._to_prepare = settings.prepare, ""  # the session whose next request may be begun
        self._preparing: LiveRequest | None = None  # what nobody has asked yet
        self._num_repeated = 0
        self._repeated: list[tuple[str, Chunk]] = []  # whole answers that need no model, for `_advance`
        self._outbox: list[Chunk] = []  # for the next `step`
        self._mail: dict[str, deque[Chunk]] = {}  # for requests that `generate` added
        self._speculate, self._draft_cost = settings.drafts, Cost()
        self._num_added = self._num_steps = self._num_computed = self._num_generated = 0
        self._num_drafted = self._num_accepted = 0

    @property
    def is_idle(self) -> bool:
        """Whether `step` has nothing to do and nothing to return."""
        return not (self._live or self._outbox or self._repeated or self._to_prepare)

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its completion may have together."""
        return self._max_tokens

    def cached_tokens(self, tokens: Sequence[int]) -> int:
        """How many first tokens of this prompt would not be computed again; changes nothing."""
        return self._pool.count_cached(tokens)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_waiting=len(self._scheduler.waiting),
            num_running=len(self._scheduler.running),
            num_blocks=self._pool.num_blocks,
            num_held_blocks=self._pool.num_held,
            num_steps=self._num_steps,
            num_preemptions=self._scheduler.num_preemptions,
            computed_tokens=self._num_computed,
            generated_tokens=self._num_generated,
            drafted_tokens=self._num_drafted,
            accepted_tokens=self._num_accepted,
            num_repeated=self._num_repeated,
            num_sessions=len(self._sessions),
        )

    def add(self, request: CompletionRequest) -> str:
        """Queue a request and return its id; an older request of the same session is aborted.

        While the user types what the session's last completion says, the rest of it is the answer, with its
        finish reason, and all prompt tokens count as cached.

        Raises:
            RequestError: it can never be served: an empty prompt, too many tokens, or a broken grammar.
            ConfigError: it needs an extra that is not installed.
            CapacityError: the queue is full now.
        """
        return self._add(request, None)

    def _add(self, request: CompletionRequest, name: str | None) -> str:
        """As `add`; `name` is what its chunks call the request, its id if None."""
        self._end_preparing()
        params = request.sampling
        if params.max_tokens >= self._max_tokens:
            raise RequestError(
                f"max_tokens {params.max_tokens} leaves no prompt room in a context of {self._max_tokens}",
                f"ask for fewer than {self._max_tokens} tokens, prompt included",
            )
        plan = self._sessions.plan(request)
        answer = self._sessions.typed_through(plan)
        if answer is not None:
            return self._repeat(answer, plan, name)
        return self._begin(request, plan, name).id

    def _begin(self, request: CompletionRequest, plan: Plan, name: str | None = None) -> LiveRequest:
        """Queue a request as planned. Raises: RequestError, ConfigError, CapacityError: as `add`."""
        params = request.sampling
        prompt = build(plan.request, self._tokenizer, budget=self._max_tokens - params.max_tokens)
        if not all(0 <= token < self._vocab_size for token in prompt.tokens):
            raise RequestError(
                f"the prompt has a token outside the vocabulary of {self._vocab_size}",
                "is the tokenizer of the same checkpoint as the weights?",
            )
        if params.grammar is not None:
            self._grammars.constraint(params.grammar)  # what is wrong with it must show now
        self._num_added += 1
        seed = randbits(63) if params.seed is None else params.seed
        id_ = str(self._num_added)
        live = LiveRequest(
            id_, name or id_, request, plan, prompt, self._clock(), seed, num_pending_forks=params.n - 1
        )
        sequence = scheduler.Sequence(
            list(prompt.tokens),
            len(prompt.tokens),
            params.max_tokens,
            rank=(-request.priority, self._num_added, 0),
            priority=request.priority,
        )
        self._scheduler.add(sequence)
        if request.session is not None:
            self._abort_session(request.session)
        self._sessions.asked(plan)
        self._live[live.id] = live
        self._join(live, sequence, 0)
        return live

    def _repeat(self, answer: Answer, plan: Plan, name: str | None) -> str:
        """Answer without the model: the user has typed what the session's last completion said."""
        assert plan.request.session is not None, "only sessions have answers"
        self._num_repeated += 1
        self._abort_session(plan.request.session)
        self._sessions.asked(plan)
        self._num_added += 1
        typed = plan.request.prefix[len(answer.plan.request.prefix) :]
        num_tokens = answer.prompt_tokens + len(self._tokenizer.encode(typed))
        id_ = str(self._num_added)
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
        self._repeated.append((id_, chunk))
        self._plan_ahead(plan.request.session)
        return id_

    def abort(self, request_id: str) -> None:
        """End a request now; its blocks are free at once, and its last chunks come with the next `step`.

        An unknown or ended request is no error: it may have ended a moment ago.
        """
        live = self._live.get(request_id)
        if live is not None:
            self._end(live, "abort")

    def step(self) -> list[Chunk]:
        """Advance every running request and return what came; [] when idle."""
        self._advance()
        chunks, self._outbox = self._outbox, []
        return chunks

    def generate(self, requests: Sequence[CompletionRequest]) -> Iterator[Chunk]:
        """Serve these requests; the `request_id` of a chunk is its request's position in `requests`.

        No more are queued at once than the queue takes. Requests added otherwise go on meanwhile; their
        chunks come from `step`. Closing the iterator aborts what is left.

        Raises:
            RequestError: a request can never be served; those before it are then aborted too.
        """
        todo = deque(enumerate(requests))
        under_way: list[str] = []
        try:
            while todo or under_way:
                while todo and not self._scheduler.is_full:
                    position, request = todo.popleft()
                    request_id = self._add(request, str(position))
                    under_way.append(request_id)
                    self._mail[request_id] = deque()
                self._advance()
                for request_id in list(under_way):
                    mail = self._mail[request_id]
                    while mail:
                        yield mail.popleft()
                    if request_id not in self._live:
                        under_way.remove(request_id)
                        del self._mail[request_id]
        finally:
            for request_id in under_way:
                self.abort(request_id)
                self._mail.pop(request_id, None)

    def _advance(self) -> None:
        """One step: schedule, run, sample, hand out."""
        for request_id, chunk in self._repeated:
            self._mail.get(request_id, self._outbox).append(chunk)
        self._repeated.clear()
        self._end_overdue()
        self._prepare()
        self._draft()
        segments = self._scheduler.schedule()
        if not segments:
            return
        self._mark_started(segments)
        copies, self._pool.copies = self._pool.copies, []
        started_at = self._clock()
        logits = self._runner.run(segments, copies)
        self._scheduler.advance(segments)
        turns = self._turns(segments)
        if turns:
            rows = [row for turn in turns for row in turn.rows]
            logits = logits.of(rows)
            drawn = sample(
                logits.values,
                [turn.sample.draw for turn in turns for _ in turn.rows],
                [turn.sample.sequence.tokens for turn in turns for _ in turn.rows],
                logits.best,
            )
            now, at = self._clock(), iter(drawn)
            if len(segments) == 1 and segments[0].end - segments[0].start == len(rows):
                self._draft_cost.measured(now - started_at, len(rows) - 1)
            for turn in turns:
                self._hand_out(turn, [next(at) for _ in turn.rows], now)
        self._num_steps += 1
        self._num_computed += sum(segment.end - segment.start for segment in segments)

    def _draft(self) -> None:
        """Let every sample that is decoding greedily guess how it goes on."""
        for one in self._samples.values() if self._speculate else ():
            sequence = one.sequence
            if one.drafts is not None and sequence.num_computed == len(sequence.tokens) - 1:
                room = sequence.num_prompt + sequence.max_tokens - len(sequence.tokens) - 1
                num_sequences = len(self._scheduler.running)
                guess = one.drafts.propose(sequence.tokens, room, num_sequences=num_sequences)
                sequence.draft = tuple(guess)

    def _turns(self, segments: Sequence[Segment]) -> list["_Turn"]:
        """Who samples, and from which rows of logits: the samples of one prompt share its row at first."""
        turns: list[_Turn] = []
        at = 0
        for segment in segments:
            if not segment.is_last:
                continue
            rows = range(at, at + segment.num_rows)
            at = rows.stop
            first = self._samples[segment.sequence]
            turns.append(_Turn(first, rows, segment.draft))
            for index in range(1, first.request.num_pending_forks + 1):
                rank = (*segment.sequence.rank[:2], index)
                twin = self._scheduler.fork(segment.sequence, rank)
                turns.append(_Turn(self._join(first.request, twin, index), rows, ()))
            first.request.num_pending_forks = 0
        return turns

    def _hand_out(self, turn: "_Turn", drawn: Sequence[Drawn], now: float) -> None:
        """Send what was drawn, as far as the draft it was drawn after is right."""
        one, sequence = turn.sample, turn.sample.sequence
        num_accepted = 0
        for guess, token in zip((*turn.draft, None), drawn, strict=True):
            chunk = one.take(token, now, self._tokenizer.token_text)
            self._send(chunk, one)
            self._num_generated += 1
            if chunk.finish_reason is not None or token.token != guess:
                break
            sequence.num_computed += 1
            num_accepted += 1
        sequence.draft = ()
        self._num_drafted += len(turn.draft)
        self._num_accepted += num_accepted
        if one.drafts is not None:
            one.drafts.learn([token.token for token in drawn[: num_accepted + 1]])

    def _join(self, live: LiveRequest, sequence: scheduler.Sequence, index: int) -> Sample:
        request, prompt = live.request, live.prompt
        params = request.sampling
        around = CursorContext(
            before=request.prefix,
            after=request.suffix,
            inserted=live.plan.inserted,
            newline=prompt.newline,
            rules=request.postprocess or (),
        )
        stopper = Stopper(params, self._tokenizer.stream(), end_ids=prompt.end_ids, around=around)
        draw = Draw(params, live.seed, index)
        if params.grammar is not None:
            draw.constraint = self._grammars.constraint(params.grammar)
        drafts = Drafts(self._speculate, self._draft_cost) if self._speculate and draw.is_greedy else None
        joined = Sample(live, sequence, stopper, draw, drafts)
        live.samples.append(joined)
        self._samples[sequence] = joined
        return joined

    def _mark_started(self, segments: Sequence[Segment]) -> None:
        now = self._clock()
        for segment in segments:
            live = self._samples[segment.sequence].request
            if live.started_at is None:
                live.started_at = now

    def _send(self, chunk: Chunk, one: Sample) -> None:
        """Hand a chunk to whoever waits for it; after a last one the sample is gone."""
        is_prepared = one.request is self._preparing
        if not is_prepared:
            self._mail.get(one.request.id, self._outbox).append(chunk)
        one.text += chunk.text
        if chunk.finish_reason is None:
            return
        if chunk.finish_reason != "abort":
            answer = one.answer(chunk)
            if is_prepared:
                self._sessions.prepared(answer)
            else:
                self._sessions.answered(answer)
                self._plan_ahead(one.request.request.session)
        self._scheduler.remove(one.sequence)
        del self._samples[one.sequence]
        one.request.samples.remove(one)
        if not one.request.samples:
            del self._live[one.request.id]

    def _end(self, live: LiveRequest, reason: FinishReason) -> None:
        now = self._clock()
        for index in range(1, live.num_pending_forks + 1):
            twin = self._scheduler.fork(live.samples[0].sequence, (*live.samples[0].sequence.rank[:2], index))
            self._join(live, twin, index)
        live.num_pending_forks = 0
        for one in list(live.samples):
            self._send(one.end(reason, now), one)

    def _plan_ahead(self, session: str | None) -> None:
        if self._prepares and session is not None:
            self._to_prepare = session

    def _prepare(self) -> None:
        """When nothing else is to do, begin what a session asks next if its user accepts the last answer."""
        if not self._to_prepare or self._live:
            return
        plan = self._sessions.upcoming(self._to_prepare)
        if plan is not None:
            with suppress(RequestError, CapacityError):  # such as a context that is full: then not
                self._preparing = self._begin(plan.request, plan)
        self._to_prepare = ""  # last: meanwhile other threads may ask whether the engine is idle

    def _end_preparing(self) -> None:
        """Give way to what is really asked."""
        live, self._to_prepare = self._preparing, ""
        if live is not None and live.id in self._live:
            self._end(live, "abort")
        self._preparing = None

    def _end_overdue(self) -> None:
        overdue = [live for live in self._live.values() if live.deadline is not None]
        now = self._clock() if overdue else 0.0
        for live in overdue:
            if live.deadline is not None and now >= live.deadline:
                self._end(live, "deadline")

    def _abort_session(self, session: str) -> None:
        for live in [live for live in self._live.values() if live.request.session == session]:
            self._end(live, "abort")


@dataclass(frozen=True, slots=True)
class _Turn:
    """A sample that draws in this step, from these rows: after its last token and each of its draft's."""

    sample: Sample
    rows: range
    draft: tuple[int, ...]
