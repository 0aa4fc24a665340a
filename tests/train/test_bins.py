"""Examples are packed whole, once an epoch, into nearly full rows; a resumed stream goes on exactly."""

import pytest
import torch

from starcoder.errors import ConfigError
from starcoder.tokenizer import Tokenizer
from starcoder.train.bins import PackedExamples, best_fit, held_out, pad_of
from starcoder.train.examples import Example, choose
from starcoder.train.settings import FimSettings, FormatSettings
from starcoder.train.sources import Shape, Table
from tests.tiny import make_tokenizer

ROWS = [{"prompt": f"question {n}" * (1 + n % 3), "completion": f"{n} " * (1 + n % 7)} for n in range(300)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer("starcoder", tmp_path_factory.mktemp("tokenizer"))


def stream(tokenizer: Tokenizer, rows: list[dict[str, str]] = ROWS) -> PackedExamples:
    shape = Shape("pair", ("prompt", "completion"))
    form = choose(shape, ["prompt", "completion"], tokenizer, FimSettings(), FormatSettings(), None)
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
    while data.epoch == 0:
        row = data._next_row()
        if data.epoch == 0:
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
        stream(tokenizer, [{"prompt": "q", "completion": ""}]).next_batch(1)
