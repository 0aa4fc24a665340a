"""The scheduler: which tokens of which sequences the next step computes.

Continuous batching: every step takes one token of each sequence that is decoding, then as much of
waiting prompts as `max_step_tokens` allows. When blocks run out, the sequence that matters least is
preempted: its blocks are given back and it computes them again later, from its tokens, so that
nothing is lost. Pure Python, no tensors.
"""

from bisect import insort
from dataclasses import dataclass, field

from starcoder.engine.blocks import Pool, Table
from starcoder.errors import CapacityError, RequestError


@dataclass(eq=False, slots=True)
class Sequence:
    """Tokens of one sample: its prompt, then what was generated. The engine appends to `tokens`."""

    tokens: list[int]
    num_prompt: int
    max_tokens: int
    rank: tuple[int, ...]  # smaller runs first and is preempted last
    priority: int = 0
    draft: tuple[int, ...] = ()  # may follow `tokens`; checked by the next step if there is room
    table: Table = field(default_factory=Table)
    num_computed: int = 0  # tokens whose keys and values are in the cache
    num_cached: int = 0  # of the prompt, found in the cache when first admitted
    is_running: bool = False
    was_admitted: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """What a step computes of one sequence: its tokens `start` to `end`, the last of them perhaps a draft."""

    sequence: Sequence
    start: int  # also how many tokens of it are in the cache
    end: int
    draft: tuple[int, ...] = ()

    @property
    def tokens(self) -> list[int]:
        return [*self.sequence.tokens[self.start : self.end - len(self.draft)], *self.draft]

    @property
    def blocks(self) -> list[int]:
        return self.sequence.table.blocks

    @property
    def is_last(self) -> bool:
        """Whether the step reaches the sequence's end, so that a token is sampled."""
        return self.end - len(self.draft) == len(self.sequence.tokens)

    @property
    def num_rows(self) -> int:
        """How many of its last tokens logits are wanted of: the sequence's last one and the draft's."""
        return 1 + len(self.draft) if self.is_last else 0


@dataclass(slots=True)
class _Plan:
    """A step being put together, and how many more tokens it may compute."""

    budget: int
    segments: dict[Sequence, Segment] = field(default_factory=dict)

    def add(self, segment: Segment) -> None:
        self.segments[segment.sequence] = segment
        self.budget -= segment.end - segment.start

    def drop(self, sequence: Sequence) -> None:
        segment = self.segments.pop(sequence, None)
        if segment is not None:
            self.budget += segment.end - segment.start


class Scheduler:
    """Waiting and running sequences over one block pool."""

    def __init__(self, pool: Pool, *, max_step_tokens: int, max_sequences: int, max_queue: int):
        assert max_sequences <= max_step_tokens, "every running sequence gets a token in every step"
        self.pool = pool
        self.max_step_tokens, self.max_sequences, self.max_queue = max_step_tokens, max_sequences, max_queue
        self.waiting: list[Sequence] = []  # both in order of rank
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._blocked: tuple[Sequence, int] | None = None  # who did not fit, and into how many blocks

    @property
    def is_full(self) -> bool:
        return len(self.waiting) >= self.max_queue

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            CapacityError: the queue is full.
            RequestError: the sequence would not fit in the cache even alone.
        """
        if self.is_full:
            raise CapacityError(
                f"the queue is full: {len(self.waiting)} requests wait", "try again later, or raise max_queue"
            )
        most = sequence.num_prompt + sequence.max_tokens
        if self.pool.blocks_for(most) > self.pool.num_blocks:
            raise RequestError(
                f"{sequence.num_prompt} prompt tokens and max_tokens {sequence.max_tokens} do not fit in the "
                f"cache of {self.pool.num_blocks * self.pool.block_size} tokens",
                "lower max_tokens, shorten the prompt, or give the engine more cache_bytes",
            )
        insort(self.waiting, sequence, key=_rank)

    def fork(self, sequence: Sequence, rank: tuple[int, ...]) -> Sequence:
        """Another sample of the same prompt, which shares the blocks computed so far."""
        twin = Sequence(
            list(sequence.tokens), sequence.num_prompt, sequence.max_tokens, rank, sequence.priority
        )
        twin.num_cached, twin.was_admitted = sequence.num_cached, True
        if sequence.is_running and len(self.running) < self.max_sequences:
            twin.table, twin.num_computed = self.pool.share(sequence.table), sequence.num_computed
            twin.is_running = True
            insort(self.running, twin, key=_rank)
        else:
            insort(self.waiting, twin, key=_rank)
        return twin

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; its blocks are free again and stay findable."""
        if sequence.is_running:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Segment]:
        """The segments of the next step, with their blocks allocated; empty when there is nothing to do."""
        plan = _Plan(self.max_step_tokens)
        for sequence in sorted(self.running, key=_decoding_first):
            if sequence.is_running:  # not preempted by one before it
                self._plan(sequence, plan)
        while self.waiting and plan.budget:
            sequence = self.waiting[0]
            if self._admit(sequence):
                self._plan(sequence, plan)
            elif self.running and self.running[-1].priority < sequence.priority:
                self._preempt(self.running[-1], plan)
            else:
                break
        return list(plan.segments.values())

    def advance(self, segments: list[Segment]) -> None:
        """Record that the step has computed these segments."""
        for segment in segments:
            end = segment.end - len(segment.draft)  # whoever checks the draft counts what is right
            segment.sequence.num_computed = end
            self.pool.publish(segment.sequence.table, segment.sequence.tokens, end)

    def _plan(self, sequence: Sequence, plan: _Plan) -> None:
        """Plan as much of a running sequence as the budget allows, at others' expense or its own."""
        start = sequence.num_computed
        end = min(len(sequence.tokens), start + plan.budget)
        if start == end:
            return
        if end == len(sequence.tokens) and self._plan_draft(sequence, plan):
            return
        while not self.pool.grow(sequence.table, start, end):
            victim = self.running[-1]
            self._preempt(victim, plan)
            if victim is sequence:
                return
        plan.add(Segment(sequence, start, end))

    def _plan_draft(self, sequence: Sequence, plan: _Plan) -> bool:
        """Plan the rest of a sequence with its draft, if that is at nobody's expense."""
        start = sequence.num_computed
        draft = sequence.draft[: self.max_step_tokens // len(self.running) - 1]
        end = len(sequence.tokens) + len(draft)
        if not draft or end - start > plan.budget:
            return False
        # Each running sequence may want a block and a copy of one in this step.
        missing = self.pool.blocks_for(end) - len(sequence.table.blocks)
        spare = self.pool.num_available - 2 * len(self.running)
        if missing > spare or not self.pool.grow(sequence.table, start, end):
            return False
        plan.add(Segment(sequence, start, end, draft))
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Start a waiting sequence, if all its tokens so far fit beside the others' next ones."""
        if len(self.running) >= self.max_sequences:
            return False
        table, pool = sequence.table, self.pool
        if self._blocked and self._blocked[0] is sequence and pool.num_available <= self._blocked[1]:
            return False  # matching again would find the same
        table.expected = pool.blocks_for(sequence.num_prompt + sequence.max_tokens)
        matched = pool.match(sequence.tokens, table)
        missing = pool.blocks_for(len(sequence.tokens)) - len(table.blocks)
        if missing + len(self.running) > pool.num_available:
            pool.release(table, sequence.tokens, matched)
            self._blocked = sequence, pool.num_available
            return False
        if not sequence.was_admitted:
            sequence.num_cached, sequence.was_admitted = matched, True
        sequence.num_computed, sequence.is_running = matched, True
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_rank)
        return True

    def _preempt(self, victim: Sequence, plan: _Plan) -> None:
        plan.drop(victim)
        self._stop(victim)
        insort(self.waiting, victim, key=_rank)
        self.num_preemptions += 1

    def _stop(self, sequence: Sequence) -> None:
        self.pool.release(sequence.table, sequence.tokens, sequence.num_computed)
        sequence.num_computed, sequence.is_running = 0, False
        self.running.remove(sequence)


def _rank(sequence: Sequence) -> tuple[int, ...]:
    return sequence.rank


def _decoding_first(sequence: Sequence) -> tuple[bool, tuple[int, ...]]:
    return len(sequence.tokens) - sequence.num_computed > 1, sequence.rank
