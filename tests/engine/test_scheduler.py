"""The scheduler mixes decode and prefill in a budget, keeps order by rank and preempts without loss."""

import subprocess
import sys

import pytest

from starcoder.engine.blocks import Pool
from starcoder.engine.scheduler import Scheduler, Sequence
from starcoder.errors import CapacityError, RequestError


def make(num_blocks=16, block_size=4, **limits):
    return Scheduler(
        Pool(num_blocks, block_size), **{"max_step_tokens": 10, "max_sequences": 4, "max_queue": 8} | limits
    )


def add(scheduler, tokens, max_tokens=8, priority=0, order=0):
    sequence = Sequence(list(tokens), len(tokens), max_tokens, (-priority, order), priority)
    scheduler.add(sequence)
    return sequence


def step(scheduler):
    """One step; every sequence that samples gets a new token. What was computed, in order."""
    segments = scheduler.schedule()
    spans = [(segment.sequence, segment.start, segment.end) for segment in segments]
    scheduler.advance(segments)
    for segment in segments:
        if segment.is_last:
            segment.sequence.tokens.append(1000 + len(segment.sequence.tokens))
    return spans


def test_it_needs_no_torch():
    script = "import sys, starcoder.engine.scheduler; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_long_prompt_is_prefilled_in_chunks():
    scheduler = make()
    a = add(scheduler, range(25))
    assert [step(scheduler) for _ in range(4)] == [[(a, 0, 10)], [(a, 10, 20)], [(a, 20, 25)], [(a, 25, 26)]]


def test_decoding_goes_first_and_prefill_takes_the_rest_of_the_budget():
    scheduler = make()
    a, b = add(scheduler, range(4)), add(scheduler, range(100, 112), order=1)
    assert step(scheduler) == [(a, 0, 4), (b, 0, 6)]
    c = add(scheduler, range(200, 208), priority=1, order=2)
    assert step(scheduler) == [(a, 4, 5), (b, 6, 12), (c, 0, 3)]
    assert step(scheduler) == [(a, 5, 6), (b, 12, 13), (c, 3, 8)]


def test_no_more_sequences_run_than_allowed():
    scheduler = make(max_sequences=2)
    a, b, c = (add(scheduler, [i], order=i) for i in range(3))
    assert [span[0] for span in step(scheduler)] == [a, b]
    scheduler.remove(a)
    assert {span[0] for span in step(scheduler)} == {b, c}


def test_higher_priority_starts_first():
    scheduler = make(max_sequences=1)
    add(scheduler, [1], order=0)
    urgent = add(scheduler, [2], priority=5, order=1)
    assert step(scheduler)[0][0] is urgent


def test_higher_priority_preempts_a_running_sequence():
    scheduler = make(max_sequences=1)
    first = add(scheduler, [1], order=0)
    step(scheduler)
    urgent = add(scheduler, [2], priority=5, order=1)
    assert [span[0] for span in step(scheduler)] == [urgent]
    assert scheduler.waiting == [first] and scheduler.num_preemptions == 1


def test_out_of_blocks_the_youngest_is_preempted_and_comes_back_where_it_was():
    scheduler = make(num_blocks=4)
    a, b = add(scheduler, range(6)), add(scheduler, range(100, 104), order=1)
    while not scheduler.num_preemptions:
        step(scheduler)
    assert scheduler.waiting == [b] and not b.table.blocks
    tokens_of_b = list(b.tokens)
    scheduler.remove(a)
    spans = step(scheduler)
    assert b.tokens[: len(tokens_of_b)] == tokens_of_b
    assert spans[0][0] is b and spans[0][2] == len(tokens_of_b)


def test_a_prompt_in_the_cache_is_not_computed_again():
    scheduler = make()
    a = add(scheduler, range(8))
    step(scheduler)
    scheduler.remove(a)
    b = add(scheduler, [*range(8), 99], order=1)
    assert step(scheduler) == [(b, 8, 9)]
    assert b.num_cached == 8


def test_twins_share_what_was_computed():
    scheduler = make()
    a = add(scheduler, range(6))
    segments = scheduler.schedule()
    scheduler.advance(segments)
    twin = scheduler.fork(a, (0, 0, 1))
    a.tokens.append(50), twin.tokens.append(51)
    assert step(scheduler) == [(a, 6, 7), (twin, 6, 7)]
    assert scheduler.pool.num_held == 3


def test_twins_beyond_the_limit_wait():
    scheduler = make(max_sequences=1)
    a = add(scheduler, range(6))
    scheduler.advance(scheduler.schedule())
    twin = scheduler.fork(a, (0, 0, 1))
    assert scheduler.waiting == [twin]


def test_a_full_queue_is_a_capacity_error():
    scheduler = make(max_queue=1)
    add(scheduler, [1])
    with pytest.raises(CapacityError, match="queue is full"):
        add(scheduler, [2], order=1)


def test_what_can_never_fit_is_a_request_error():
    with pytest.raises(RequestError, match=r"60 prompt tokens and max_tokens 8 .* cache of 64 tokens"):
        add(make(), range(60))
