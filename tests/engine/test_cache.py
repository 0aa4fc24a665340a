"""Attention over paged keys and values equals one plain forward pass, however a text is cut and mixed."""

import random

import pytest
import torch

from starcoder.engine.blocks import Table
from starcoder.engine.cache import Cache
from starcoder.engine.runner import Runner
from starcoder.engine.scheduler import Segment, Sequence
from tests.engine.small import VARIANTS, VOCAB, make_model, whole_logits

torch.set_num_threads(1)

BLOCK = 4


class Steps:
    """Sequences over hand-made block tables, and a runner."""

    def __init__(self, model, *tables):
        self.cache = Cache(model.config, 64, BLOCK, device=torch.device("cpu"), dtype=torch.float32)
        self.runner = Runner(model, self.cache)
        rng = random.Random(0)
        self.sequences = []
        for blocks in tables:
            tokens = [rng.randrange(VOCAB) for _ in range(BLOCK * len(blocks))]
            self.sequences.append(Sequence(tokens, len(tokens), 1, (0,), table=Table(list(blocks))))

    def run(self, *spans, copies=()):
        """Logits of the last row of each (sequence number, start, end), computed in one step."""
        segments = []
        for number, start, end in spans:
            whole = self.sequences[number]
            part = Sequence(whole.tokens[:end], 0, 1, (0,), table=whole.table)
            segments.append(Segment(part, start, end))
        return self.runner.run(segments, copies).values

    def expected(self, number, end):
        return whole_logits(self.runner._model, self.sequences[number].tokens[:end])[-1]


def assert_close(actual, expected):
    # float32 over two layers with weights of 0.4: sums in another order differ by about 1e-6.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=VARIANTS, scope="module")
def model(request):
    return make_model(request.param)


def test_cached_equals_full(model):
    steps = Steps(model, range(3, 9))
    steps.run((0, 0, 20))
    for end in (21, 22, 23, 24):
        assert_close(steps.run((0, end - 1, end))[0], steps.expected(0, end))


@pytest.mark.parametrize("chunks", [(1,) * 24, (5, 19), (12, 12), (3, 1, 9, 11), (23, 1)])
def test_chunked_equals_whole(model, chunks):
    steps, start = Steps(model, range(3, 9)), 0
    for length in chunks:
        logits = steps.run((0, start, start + length))
        start += length
    assert_close(logits[0], steps.expected(0, 24))


def test_scattered_blocks_equal_neighbours(model):
    steps = Steps(model, [9, 3, 17, 4, 30, 2])
    steps.run((0, 0, 7))
    assert_close(steps.run((0, 7, 18))[0], steps.expected(0, 18))
    assert_close(steps.run((0, 18, 19))[0], steps.expected(0, 19))


def test_a_mixed_batch_equals_each_alone(model):
    steps = Steps(model, [0, 1, 2, 3, 4], [10, 30, 11, 31], [20, 21], [40, 41, 42, 43])
    steps.run((0, 0, 17), (1, 0, 5))
    logits = steps.run((0, 17, 18), (1, 5, 14), (2, 0, 8), (3, 0, 13))
    for row, (number, end) in enumerate([(0, 18), (1, 14), (2, 8), (3, 13)]):
        assert_close(logits[row], steps.expected(number, end))


def test_only_finished_segments_have_logits(model):
    steps = Steps(model, [0, 1, 2], [3, 4, 5])
    unfinished = Segment(steps.sequences[0], 0, 5)
    finished = Segment(steps.sequences[1], 0, 12)
    logits = steps.runner.run([unfinished, finished], ()).values
    assert logits.shape == (1, VOCAB)
    assert_close(logits[0], steps.expected(1, 12))


def test_copied_blocks_stand_for_the_originals(model):
    steps = Steps(model, [0, 1, 2])
    steps.run((0, 0, 10))
    steps.sequences[0].table.blocks[:] = [0, 7, 9]
    assert_close(steps.run((0, 10, 11), copies=[(1, 8), (8, 7), (2, 9)])[0], steps.expected(0, 11))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, and this machine has none")
def test_the_same_on_cuda(model):
    steps = Steps(model, [0, 1, 2, 3], [9, 5, 7, 6])
    expected = [steps.expected(0, 15), steps.expected(1, 16)]
    cache = Cache(model.config, 64, BLOCK, device=torch.device("cuda"), dtype=torch.float32)
    try:
        steps.runner = Runner(model.to("cuda"), cache)
        steps.run((0, 0, 14), (1, 0, 9))
        logits = steps.run((0, 14, 15), (1, 9, 16)).cpu()
    finally:
        model.to("cpu")
    for row in range(2):
        torch.testing.assert_close(logits[row], expected[row], rtol=1e-4, atol=1e-4)
