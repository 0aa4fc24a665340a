"""Packed rows waste nothing, mark document boundaries, and resume exactly."""

import pytest
import torch

from starcoder.tokenizer import Tokenizer
from starcoder.train.packing import IGNORE, MIN_PIECE_TOKENS, Batch, Lane, PackedDocuments, Position, stack
from starcoder.train.settings import FimSettings
from tests.tiny import make_tokenizer

TEXTS = [f"def f{i}(x):\n    return x + {i}\n" * (1 + i % 5) for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer("starcoder", tmp_path_factory.mktemp("tokenizer"))


def stream(tokenizer: Tokenizer, rate: float = 0.5) -> PackedDocuments:
    return PackedDocuments(TEXTS, tokenizer, seq_length=128, fim=FimSettings(rate=rate), seed=7)


def equal(one: Batch, other: Batch) -> bool:
    return one.lengths == other.lengths and torch.equal(one.tokens_BT, other.tokens_BT)


def test_labels_are_the_next_token_of_the_same_document() -> None:
    batch = stack([[[5, 6, 7], [8, 9]], [[1, 2]]], seq_length=4, pad=0)
    assert batch.tokens_BT.tolist() == [[5, 6, 8, 0], [1, 0, 0, 0]]
    assert batch.labels_BT.tolist() == [[6, 7, 9, IGNORE], [2, IGNORE, IGNORE, IGNORE]]
    assert batch.positions_BT.tolist() == [[0, 1, 0, 0], [0, 0, 1, 2]]
    assert batch.lengths == ((2, 1, 1), (1, 3))
    assert batch.num_learned == 4


def test_only_learned_tokens_are_labels() -> None:
    batch = stack([[[5, 6, 7], [8, 9]]], 4, 0, learned=[[[False, False, True], [True, True]]])
    assert batch.labels_BT.tolist() == [[IGNORE, 7, 9, IGNORE]]


def test_flat_batches_hold_the_same_documents_without_padding() -> None:
    batch = stack([[[5, 6, 7], [8, 9]], [[1, 2]]], seq_length=4, pad=0)
    flat = batch.flat()
    assert flat.tokens_BT.tolist() == [[5, 6, 8, 1]]
    assert flat.labels_BT.tolist() == [[6, 7, 9, 2]]
    assert flat.positions_BT.tolist() == [[0, 1, 0, 0]]
    assert flat.lengths == ((2, 1, 1),)
    assert batch.num_tokens == flat.num_tokens == 4


def test_rows_of_a_batch_are_a_batch() -> None:
    batch = stack([[[5, 6]], [[7, 8, 9]], [[1, 2]]], seq_length=4, pad=0)
    assert batch.rows(1, 3).tokens_BT.tolist() == [[7, 8, 0, 0], [1, 0, 0, 0]]
    assert batch.rows(0, None, 2).lengths == ((1, 3), (1, 3))
    assert batch.rows(0, None, 2).padding == (3, 3)


def test_rows_are_full_but_for_less_than_a_piece(tokenizer: Tokenizer) -> None:
    batch = stream(tokenizer).next_batch(30)
    assert all(sum(row) == 128 for row in batch.lengths)
    padding = (batch.labels_BT == IGNORE).sum(1)
    assert int(padding.max()) < MIN_PIECE_TOKENS


def test_an_epoch_holds_every_document_once(tokenizer: Tokenizer) -> None:
    data, s = stream(tokenizer, rate=0), tokenizer.sentinels
    begun: list[str] = []
    while min(lane.epoch for lane in data.position.lanes) == 0:
        row = data._fill_row(1000)
        text = tokenizer.decode([token for piece in row for token in piece])
        begun += [document for document in text.split("<|endoftext|>") if document]
        assert all(piece[-1] == s.eos for piece in row[:-1])
    assert set(TEXTS) <= set(begun)


def test_rows_of_a_batch_are_of_different_documents(tokenizer: Tokenizer) -> None:
    long = [f"name_{i} = {i}\n" * 200 for i in range(20)]
    data = PackedDocuments(long, tokenizer, seq_length=64, fim=FimSettings(rate=0), seed=0)
    texts = [tokenizer.decode(row.tolist()) for row in data.next_batch(20).tokens_BT]
    assert len({text.split(" =")[0] for text in texts}) == 20


def test_a_resumed_stream_equals_an_uninterrupted_one(tokenizer: Tokenizer) -> None:
    whole = stream(tokenizer)
    for _ in range(9):
        at = whole.position
        expected = whole.next_batch(3)
        resumed = stream(tokenizer)
        resumed.resume(at)
        assert equal(expected, resumed.next_batch(3))
    assert any(lane.epoch > 0 for lane in whole.position.lanes), "the comparison crosses an epoch"


def test_seeds_and_epochs_differ(tokenizer: Tokenizer) -> None:
    other = PackedDocuments(TEXTS, tokenizer, seq_length=128, fim=FimSettings(), seed=8)
    assert not equal(stream(tokenizer).next_batch(4), other.next_batch(4))
    second = stream(tokenizer)
    second.resume(Position(0, (Lane(epoch=1),) * len(TEXTS)))
    assert not equal(stream(tokenizer).next_batch(4), second.next_batch(4))
