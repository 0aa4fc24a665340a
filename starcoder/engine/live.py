"""What the engine keeps of a request while it lives: its samples, their progress and their times."""

from collections.abc import Callable
from dataclasses import dataclass, field

from starcoder.engine.drafts import Drafts
from starcoder.engine.sampling import Draw, Drawn
from starcoder.engine.scheduler import Sequence
from starcoder.engine.sessions import Answer, Plan
from starcoder.engine.stopping import Stopper
from starcoder.prompts import Prompt
from starcoder.request import Chunk, CompletionRequest, FinishReason, TokenLogprob, Usage


@dataclass(eq=False, slots=True)
class Sample:
    """One of a request's n samples."""

    request: "LiveRequest"
    sequence: Sequence
    stopper: Stopper
    draw: Draw
    drafts: Drafts | None = None
    first_token_at: float | None = None
    text: str = ""  # handed out so far

    def take(self, drawn: Drawn, now: float, token_text: Callable[[int], str]) -> Chunk:
        """The chunk that a drawn token brings; the token joins the sequence unless the sample ends."""
        if self.first_token_at is None:
            self.first_token_at = now
        outcome = self.stopper.push(drawn.token)
        logprobs: tuple[TokenLogprob, ...] = ()
        if drawn.logprob is not None and outcome.is_kept:
            logprobs = (TokenLogprob(drawn.token, token_text(drawn.token), drawn.logprob, drawn.top),)
        if outcome.finish_reason is None:
            self.sequence.tokens.append(drawn.token)
        return Chunk(
            request_id=self.request.name,
            index=self.draw.index,
            text=outcome.text,
            tokens=(drawn.token,) if outcome.is_kept else (),
            logprobs=logprobs,
            finish_reason=outcome.finish_reason,
            stop=outcome.stop,
            usage=self._usage(now) if outcome.finish_reason is not None else None,
            trimmed=self.stopper.trimmed if outcome.finish_reason is not None else (),
        )

    def end(self, reason: FinishReason, now: float) -> Chunk:
        """The last chunk of a sample that ends from outside, with the text that was held back."""
        return Chunk(
            request_id=self.request.name,
            index=self.draw.index,
            text=self.stopper.end(reason),
            finish_reason=reason,
            usage=self._usage(now),
            trimmed=self.stopper.trimmed,
        )

    def answer(self, last: Chunk) -> Answer:
        """The whole sample, after its last chunk."""
        assert last.finish_reason is not None, "only a whole sample is an answer"
        return Answer(
            plan=self.request.plan,
            text=self.text,
            finish_reason=last.finish_reason,
            prompt_tokens=len(self.request.prompt.tokens),
            stop=last.stop,
            trimmed=last.trimmed,
        )

    def _usage(self, now: float) -> Usage:
        live = self.request
        started = now if live.started_at is None else live.started_at
        first = now if self.first_token_at is None else self.first_token_at
        return Usage(
            prompt_tokens=len(live.prompt.tokens),
            cached_tokens=self.sequence.num_cached,
            dropped_characters=live.prompt.dropped.total,
            queue_ms=1000 * (started - live.added_at),
            prefill_ms=1000 * (first - started),
            decode_ms=1000 * (now - first),
        )


@dataclass(eq=False, slots=True)
class LiveRequest:
    """A request that has not ended. Its first sample prefills the prompt; the others then join it."""

    id: str
    name: str  # that its chunks carry
    request: CompletionRequest
    plan: Plan
    prompt: Prompt
    added_at: float
    seed: int
    started_at: float | None = None  # when it left the queue
    samples: list[Sample] = field(default_factory=list)  # those that have not ended
    num_pending_forks: int = 0  # samples that wait for the prompt

    @property
    def deadline(self) -> float | None:
        limit = self.request.sampling.deadline_ms
        return None if limit is None else self.added_at + limit / 1000
