"""Examples are packed whole, once an epoch, into nearly full rows; a resumed stream goes on exactly."""

import math
import random
from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from starcoder.errors import ConfigError
from starcoder.tokenizer import Tokenizer
from starcoder.train.bins import PackedExamples, best_fit, held_out, pad_of
from starcoder.train.examples import Example, choose
from starcoder.train.losses import sum_loss
from starcoder.train.packing import Batch
from starcoder.train.settings import FimSettings, FormatSettings
from starcoder.train.shapes import Pair
from starcoder.train.sources import Table
from tests.tiny import make_model, make_tokenizer

ROWS = [Pair(prompt=f"question {n}" * (1 + n % 3), completion=f"{n} " * (1 + n % 7)) for n in range(300)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer("starcoder", tmp_path_factory.mktemp("tokenizer"))


def stream(tokenizer: Tokenizer, rows: list[Pair] = ROWS, **settings: str) -> PackedExamples:
    kinds = frozenset({"pair"})
    form = choose(kinds, ["prompt", "completion"], tokenizer, FimSettings(), FormatSettings(**settings), None)
    table = Table(rows, ["prompt", "completion"], seed=5)
    return PackedExamples(table, form, tokenizer, seq_length=128, seed=5)


def test_bins_hold_every_example_and_are_nearly_full() -> None:
    examples = [Example([1] * (2 + 7 * n % 90), [True] * (2 + 7 * n % 90)) for n in range(400)]
    bins = best_fit(examples, 128)
    assert sorted(map(id, (e for row in bins for e in row))) == sorted(map(id, examples))
    used = [sum(len(e.tokens) - 1 for e in row) for row in bins]
    assert max(used) <= 128
    assert sum(used) / (128 * len(bins)) > 0.97


def test_an_epoch_holds_every_document_once(tokenizer: Tokenizer) -> None:
    data, answers = stream(tokenizer), []
    while (row := data._next_row()) is not None:
        answers += [tokenizer.decode(example.tokens) for example in row]
    assert len(answers) == 300
    assert {text.split("Answer: ")[1].split(" ")[0] for text in answers} == {str(n) for n in range(300)}


def test_a_resumed_stream_equals_an_uninterrupted_one(tokenizer: Tokenizer) -> None:
    whole = stream(tokenizer)
    for _ in range(120):
        state = whole.state()
        expected = whole.next_batch(3)
        resumed = stream(tokenizer)
        resumed.restore(state)
        actual = resumed.next_batch(3)
        assert torch.equal(expected.tokens_BT, actual.tokens_BT)
        assert torch.equal(expected.labels_BT, actual.labels_BT)
        assert resumed.state() == whole.state()
    assert whole.epoch > 1, "the comparison crosses epochs"


def test_held_out_batches_keep_to_their_budget(tokenizer: Tokenizer) -> None:
    data = stream(tokenizer)
    batches = held_out(ROWS, data.form, data, 1000)
    assert 800 < sum(batch.num_tokens for batch in batches) <= 1000
    again = held_out(ROWS, data.form, data, 1000)
    assert all(torch.equal(a.tokens_BT, b.tokens_BT) for a, b in zip(batches, again, strict=True))


def test_padding_is_not_end_of_text(tokenizer: Tokenizer) -> None:
    assert pad_of(tokenizer) != tokenizer.sentinels.eos
    batch = stream(tokenizer).next_batch(8)
    assert (batch.tokens_BT == pad_of(tokenizer)).sum() == sum(batch.padding)


def test_data_that_teaches_nothing_ends_in_an_error_not_in_a_loop(tokenizer: Tokenizer) -> None:
    """The original iterated over an empty set for ever (starcoder#68)."""
    with pytest.raises(ConfigError, match="anything to learn"):
        stream(tokenizer, [Pair(prompt="q", completion="")]).next_batch(1)


DISTRIBUTIONS = {
    "short": lambda rng: rng.randint(1, 20),
    "half a row": lambda rng: rng.randint(60, 75),
    "more than half a row": lambda rng: rng.randint(80, 110),
    "log-normal": lambda rng: min(120, max(1, round(rng.lognormvariate(3, 1)))),
    "two kinds": lambda rng: rng.choice([3, 118]),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("rows", [1, 4, 7])
def test_steps_of_an_epoch_train_on_every_document_exactly_once(
    tokenizer: Tokenizer, name: str, rows: int
) -> None:
    """F1 of the review: estimated steps trained on 56 to 98 % of the documents."""
    rng = random.Random(name)
    records = [Pair(prompt=f"<{n}>", completion="x" * DISTRIBUTIONS[name](rng)) for n in range(150)]
    data = stream(tokenizer, records, template="{prompt}{completion}")
    for epoch in range(2):
        count: Counter[str] = Counter()
        for _ in range(math.ceil(data.num_rows(epoch) / rows)):
            for start, stop, tokens in documents_of(data.next_batch(rows)):
                count[tokenizer.decode(tokens[start:stop]).partition(">")[0] + ">"] += 1
        count.pop("", None)
        assert count == {f"<{n}>": 1 for n in range(150)}
    assert data.epoch in (1, 2), "the stream is where the second epoch ends"


def documents_of(batch: Batch) -> Iterator[tuple[int, int, list[int]]]:
    for row, lengths, pad in zip(batch.tokens_BT.tolist(), batch.lengths, batch.padding, strict=True):
        at = 0
        for length in lengths[: len(lengths) - bool(pad)]:
            yield at, at + length, row
            at += length


def test_counting_an_epoch_leaves_the_stream_where_it_is(tokenizer: Tokenizer) -> None:
    data, other = stream(tokenizer), stream(tokenizer)
    data.next_batch(3)
    other.next_batch(3)
    assert data.num_rows(0) == data.num_rows(0) > 10
    assert data.num_rows(1) > 10
    assert torch.equal(data.next_batch(3).tokens_BT, other.next_batch(3).tokens_BT)


def test_a_batch_is_filled_up_with_rows_of_which_nothing_is_learned(tokenizer: Tokenizer) -> None:
    batch = stream(tokenizer).next_batch(5)
    padded = batch.padded(4)
    assert len(padded.lengths) == 8 and padded.num_labels == batch.num_labels == padded.rows(0, 5).num_labels
    assert padded.padded(4) is padded
    model = make_model("bigcode")
    losses = [sum_loss(model, one).item() for one in (padded, batch)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
