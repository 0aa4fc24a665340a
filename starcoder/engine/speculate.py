"""Drafts by prompt lookup: what followed last time that the latest tokens stood here, offered for checking.

Code repeats its surroundings, so prefix, suffix, other files and the text so far are searched; checking a
draft costs one step however long it is. Exact for greedy decoding, and used for nothing else: a draft is
kept as far as it equals what the model draws.
Source: Saxena 2023, apoorvumang/prompt-lookup-decoding: prompt lookup; here with the longest match.
"""

from collections import defaultdict
from collections.abc import Sequence

# The longest match is sought among so many of the latest places, up to so many tokens back.
_NUM_PLACES, _LONGEST_MATCH = 32, 16

# First tokens of drafts that must be right, as a running rate, for drafts to be worth their rows.
_LEAST_RATE, _FIRST_RATE, _MEMORY = 0.3, 0.5, 0.9


class Drafts:
    """Guesses how one sample goes on. While guesses are mostly wrong they are counted but not offered."""

    def __init__(self, max_tokens: int):
        """`max_tokens` is the most that one draft may have."""
        self._max_tokens = max_tokens
        self._places: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # pair -> what follows it
        self._num_indexed = 1
        self._rate = _FIRST_RATE
        self._length = max_tokens
        self._guess: Sequence[int] = ()

    @property
    def is_on(self) -> bool:
        """Whether guesses were right often enough of late to be offered."""
        return self._rate >= _LEAST_RATE

    def propose(self, tokens: Sequence[int], room: int) -> Sequence[int]:
        """At most `room` tokens that may follow `tokens`, which only grow; none while that does not pay."""
        for at in range(self._num_indexed, len(tokens)):
            self._places[tokens[at - 1], tokens[at]].append(at + 1)
        self._num_indexed = len(tokens)
        start = self._longest_match(tokens)
        self._guess = () if start is None else tokens[start : start + min(room, self._length)]
        return self._guess if self.is_on else ()

    def learn(self, following: Sequence[int], *, num_checked: int) -> None:
        """Tell what came after the last guess: all that was right of the tokens checked, and one more."""
        if not self._guess:
            return
        is_right = self._guess[0] == following[0]
        self._rate = _MEMORY * self._rate + (1 - _MEMORY) * is_right
        if num_checked:
            num_right = len(following) - 1
            is_all = num_right == num_checked
            self._length = min(self._max_tokens, 2 * num_right if is_all else num_right + 1)

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
