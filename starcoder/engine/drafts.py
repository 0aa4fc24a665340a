"""Drafts by prompt lookup: what followed last time that the latest tokens stood here, offered for checking.

Code repeats its surroundings, so prefix, suffix, other files and the text so far are searched; checking a
draft costs one step however long it is. Exact for greedy decoding, and used for nothing else: a draft is
kept as far as it equals what the model draws.
Source: Saxena 2023, apoorvumang/prompt-lookup-decoding: prompt lookup; here with the longest match.
"""

from collections import defaultdict
from collections.abc import Sequence

from starcoder.engine import scheduler
from starcoder.engine.sampling import Draw

# The longest match is sought among so many of the latest places, up to so many tokens back.
_NUM_PLACES, _LONGEST_MATCH = 32, 16

# Running averages: the share of guessed tokens that are right, and times of steps.
_FIRST_RATE, _MEMORY = 0.5, 0.9

# What checking one more token costs before it was measured, as a share of a step; float32 on a CPU has 0.15,
# int4 there 0.7.
_FIRST_COST = 0.15


class Cost:
    """What it costs to check one token of a draft, as a share of a plain step. Measured all the time."""

    def __init__(self) -> None:
        self._plain_s: float | None = None
        self._token_s: float | None = None

    def of_token(self, num_sequences: int = 1) -> float | None:
        """The share of what a token costs among so many sequences that step together; None: not known yet."""
        if self._plain_s is None:
            return None
        token = _FIRST_COST
        if self._token_s is not None:
            token = self._token_s / self._plain_s if self._plain_s else 0.0
        return token * num_sequences / (1 + token * (num_sequences - 1))

    def measured(self, step_s: float, num_drafted: int) -> None:
        """Tell how long a step of one sequence took that is decoding."""
        if not num_drafted:
            self._plain_s = _average(self._plain_s, step_s)
        elif self._plain_s is not None:
            self._token_s = _average(self._token_s, max(0.0, step_s - self._plain_s) / num_drafted)


def best_length(rate: float, cost: float, longest: int) -> int:
    """The length of draft that gives most tokens in the time of a plain step; 0 if none gives more than one.

    `rate` is the probability that a token is right if those before it are, `cost` what checking it costs.
    """
    best, most, expected = 0, 1.0, 1.0
    for length in range(1, longest + 1):
        expected += rate**length
        gain = expected / (1 + length * cost)
        if gain > most:
            best, most = length, gain
    return best


class Drafts:
    """Guesses how one sample goes on. Guesses that would not pay are counted but not offered."""

    def __init__(self, max_tokens: int, cost: Cost):
        """`max_tokens` is the most that one draft may have."""
        self._max_tokens, self._cost = max_tokens, cost
        self._places: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # pair -> what follows it
        self._num_indexed = 1
        self._rate = _FIRST_RATE
        self._guess: Sequence[int] = ()

    def propose(self, tokens: Sequence[int], room: int, *, num_sequences: int = 1) -> Sequence[int]:
        """At most `room` tokens that may follow `tokens`, which only grow; none while that does not pay."""
        for at in range(self._num_indexed, len(tokens)):
            self._places[tokens[at - 1], tokens[at]].append(at + 1)
        self._num_indexed = len(tokens)
        start, cost = self._longest_match(tokens), self._cost.of_token(num_sequences)
        self._guess = () if start is None else tokens[start : start + min(room, self._max_tokens)]
        return () if cost is None else self._guess[: best_length(self._rate, cost, len(self._guess))]

    def learn(self, following: Sequence[int]) -> None:
        """Tell what came after the last guess: all that was right of the tokens checked, and one more."""
        for guess, token in zip(self._guess, following, strict=False):
            self._rate = _MEMORY * self._rate + (1 - _MEMORY) * (guess == token)

    def _longest_match(self, tokens: Sequence[int]) -> int | None:
        """What follows the place that shares the longest end with `tokens`; the latest of several."""
        if len(tokens) < 2:
            return None
        best, longest = None, 0
        end = len(tokens)
        for place in reversed(self._places[tokens[-2], tokens[-1]][-_NUM_PLACES - 1 :]):
            if place == end:  # itself
                continue
            length = 2
            while (
                length < min(place, _LONGEST_MATCH) and tokens[place - 1 - length] == tokens[end - 1 - length]
            ):
                length += 1
            if length > longest:
                best, longest = place, length
        return best


def _average(before: float | None, new: float) -> float:
    return new if before is None else _MEMORY * before + (1 - _MEMORY) * new


class Drafting:
    """The drafts of all samples that decode greedily, and what they cost and bring."""

    def __init__(self, max_tokens: int):
        """`max_tokens` is the most that one draft may have; 0 is off."""
        self._max_tokens = max_tokens
        self._cost = Cost()
        self._drafts: dict[scheduler.Sequence, Drafts] = {}
        self.num_drafted = self.num_accepted = 0

    def start(self, sequence: scheduler.Sequence, draw: Draw) -> None:
        if self._max_tokens and draw.is_greedy:
            self._drafts[sequence] = Drafts(self._max_tokens, self._cost)

    def stop(self, sequence: scheduler.Sequence) -> None:
        self._drafts.pop(sequence, None)

    def propose(self, *, num_running: int) -> None:
        """Give every sequence that is decoding a draft for the next step."""
        for sequence, drafts in self._drafts.items():
            if sequence.num_computed == len(sequence.tokens) - 1:
                room = sequence.num_prompt + sequence.max_tokens - len(sequence.tokens) - 1
                guess = drafts.propose(sequence.tokens, room, num_sequences=num_running)
                sequence.draft = tuple(guess)

    def measured(self, segments: Sequence[scheduler.Segment], seconds: float) -> None:
        """Take note of how long a step took."""
        [segment] = segments if len(segments) == 1 else [None]
        if segment is not None and segment.is_last and segment.end - segment.start == segment.num_rows:
            self._cost.measured(seconds, segment.num_rows - 1)

    def learn(self, sequence: scheduler.Sequence, draft: Sequence[int], drawn: Sequence[int]) -> None:
        """Take note of what was drawn after a draft: its right beginning, and one token more."""
        self.num_drafted += len(draft)
        self.num_accepted += len(drawn) - 1
        sequence.draft = ()
        drafts = self._drafts.get(sequence)
        if drafts is not None:
            drafts.learn(drawn)
