"""A tiny checkpoint with a tokenizer, for verbs that need a model."""

from collections.abc import Iterator

import pytest
import torch

from starcoder import checkpoint
from tests.tiny import make_model, make_tokenizer


@pytest.fixture
def folder(tmp_path):
    checkpoint.save(make_model("bigcode"), tmp_path / "model")
    make_tokenizer("starcoder", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower on several threads, and on a busy machine a hundred times."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
