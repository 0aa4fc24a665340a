"""What the engine keeps of a request while it runs: its samples, their progress and times, and its chunks."""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starcoder.engine.intake import PreparedRequest
from starcoder.engine.sampling import Draw, Drawn
from starcoder.engine.scheduler import Sequence
from starcoder.engine.sessions import Answer
from starcoder.engine.stopping import Stopper
from starcoder.request import Chunk, FinishReason, TokenLogprob, Usage

if TYPE_CHECKING:
    from starcoder.tokenizer import Tokenizer

NOT_FINITE = "the model produced logits that are not finite: NaN or infinity"
NOT_FINITE_HINT = "its weights are damaged, or overflow in this dtype: try float32 or another checkpoint"


@dataclass(eq=False, slots=True)
class LiveSample:
    """One of a request's n samples."""

    request: "LiveRequest"
    sequence: Sequence
    stopper: Stopper
    draw: Draw
    first_token_at: float | None = None
    text: str = ""  # handed out so far

    def take(self, drawn: Drawn, now: float, tokenizer: "Tokenizer") -> Chunk | None:
        """The chunk that a drawn token brings; None if it only spells the end of the prompt again.

        The token joins the sequence unless the sample ends.
        """
        token, new = drawn.token, self.draw.accept(drawn.token)
        if new == b"":
            self.sequence.tokens.append(token)
            return None
        skip = 0 if new is None else len(tokenizer.token_bytes(token)) - len(new)
        if self.first_token_at is None:
            self.first_token_at = now
        if self.draw.constraint is not None and self.draw.constraint.problem is not None:
            return self.end("error", now)  # the token was drawn from what no grammar allows
        outcome = self.stopper.push(token, skip)
        logprobs: tuple[TokenLogprob, ...] = ()
        if drawn.logprob is not None and outcome.is_kept:
            text = tokenizer.token_text(token, skip)
            logprobs = (TokenLogprob(token, text, drawn.logprob, drawn.top),)
        if outcome.finish_reason is None:
            self.sequence.tokens.append(token)
        return Chunk(
            request_id=self.request.name,
            index=self.draw.index,
            text=outcome.text,
            tokens=(token,) if outcome.is_kept else (),
            logprobs=logprobs,
            finish_reason=outcome.finish_reason,
            stop=outcome.stop,
            usage=self._usage(now) if outcome.finish_reason is not None else None,
            trimmed=self.stopper.trimmed if outcome.finish_reason is not None else (),
        )

    def end(self, reason: FinishReason, now: float, error: str = "") -> Chunk:
        """The last chunk of a sample that ends from outside, with the text that was held back."""
        return Chunk(
            request_id=self.request.name,
            index=self.draw.index,
            text=self.stopper.end(reason),
            finish_reason=reason,
            error=error,
            usage=self._usage(now),
            trimmed=self.stopper.trimmed,
        )

    def answer(self, last: Chunk) -> Answer:
        """The whole sample, after its last chunk."""
        assert last.finish_reason is not None, "only a whole sample is an answer"
        return Answer(
            plan=self.request.prepared.plan,
            text=self.text,
            finish_reason=last.finish_reason,
            prompt_tokens=len(self.request.prepared.prompt.tokens),
            stop=last.stop,
            trimmed=last.trimmed,
        )

    def _usage(self, now: float) -> Usage:
        live, prompt = self.request, self.request.prepared.prompt
        started = now if live.started_at is None else live.started_at
        first = now if self.first_token_at is None else self.first_token_at
        return Usage(
            prompt_tokens=len(prompt.tokens),
            cached_tokens=self.sequence.num_cached,
            dropped_characters=prompt.dropped.total,
            queue_ms=1000 * (started - live.added_at),
            prefill_ms=1000 * (first - started),
            decode_ms=1000 * (now - first),
        )


@dataclass(eq=False, slots=True)
class LiveRequest:
    """A request that has not ended. Its first sample prefills the prompt; the others then join it."""

    id: str
    name: str  # what its chunks call it
    prepared: PreparedRequest
    added_at: float
    seed: int
    num_pending_forks: int  # samples that wait for the prompt
    started_at: float | None = None  # when it left the queue
    samples: list[LiveSample] = field(default_factory=list)  # those that have not ended

    @property
    def session(self) -> str | None:
        return self.prepared.request.session

    @property
    def deadline(self) -> float | None:
        limit = self.prepared.request.sampling.deadline_ms
        return None if limit is None else self.added_at + limit / 1000


class Outbox:
    """Chunks on their way out: those of requests with a box of their own, and the rest for `Engine.step`."""

    def __init__(self) -> None:
        self._rest: list[tuple[str, Chunk]] = []
        self._boxes: dict[str, deque[Chunk]] = {}

    def __len__(self) -> int:
        return len(self._rest)

    def put(self, request_id: str, chunk: Chunk) -> None:
        box = self._boxes.get(request_id)
        if box is None:
            self._rest.append((request_id, chunk))
        else:
            box.append(chunk)

    def take_rest(self) -> list[Chunk]:
        """The chunks of requests without a box."""
        taken, self._rest = self._rest, []
        return [chunk for _, chunk in taken]

    def open(self, request_id: str) -> deque[Chunk]:
        """A box for this request's chunks, those that wait already included."""
        box = self._boxes[request_id] = deque(chunk for id, chunk in self._rest if id == request_id)
        self._rest = [(id, chunk) for id, chunk in self._rest if id != request_id]
        return box

    def close(self, request_id: str) -> None:
        """Drop a box with what is in it."""
        self._boxes.pop(request_id, None)
