"""What the tests of checkpoints share: comparing weights, changing files, and reading failures."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from starcoder import checkpoint
from starcoder.errors import CheckpointError

WEIGHTS = "model.safetensors"


def assert_same_weights(model, expected):
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def change_weights(folder, change):
    """Rewrite the weights after `change` has modified the dictionary of them."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / WEIGHTS)


def as_bin(folder, change=lambda tensors: None):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def assert_fails(model, *parts):
    with pytest.raises(CheckpointError) as failure:
        checkpoint.load(model)
    text = f"{failure.value.message}\n{failure.value.hint}"
    assert [part for part in parts if part not in text] == [], text
    assert failure.value.hint
    assert "\n" not in failure.value.message
