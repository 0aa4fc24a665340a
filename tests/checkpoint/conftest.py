"""A good checkpoint, for the tests of this folder to spoil."""

import pytest

from starcoder import checkpoint
from tests.tiny import make_model


@pytest.fixture
def folder(tmp_path):
    checkpoint.save(make_model("bigcode"), tmp_path / "model")
    return tmp_path / "model"
