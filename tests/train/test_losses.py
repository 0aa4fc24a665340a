"""The head's loss never holds more logits than it says."""

import torch
from torch import nn

from starcoder.train import losses
from tests.train.live_bytes import LiveBytes


def test_logits_of_one_part_exist_at_a_time() -> None:
    rows, vocab_size, width = losses._ROWS, 4096, 8
    torch.manual_seed(0)
    head = nn.Linear(width, vocab_size, bias=False).requires_grad_(False)
    hidden = torch.randn(3 * rows, width, requires_grad=True)
    labels = torch.randint(0, vocab_size, (3 * rows,))
    with LiveBytes() as seen:
        losses.head_loss(head, hidden, labels).backward()
    once = 4 * rows * vocab_size
    assert once < seen.peak < 1.2 * once
