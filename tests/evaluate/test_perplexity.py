"""Bits are those of transformers' own loss, whatever the window where it need not matter."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from starcoder import checkpoint
from starcoder.checkpoint import BUNDLED
from starcoder.errors import ConfigError
from starcoder.evaluate.perplexity import files, measure
from starcoder.model import causal
from starcoder.tokenizer import Tokenizer

TEXT = "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2), 'ünï')\n"


@pytest.fixture(scope="module")
def network():
    return checkpoint.load(BUNDLED, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(BUNDLED)


def test_bits_are_those_of_transformers(network, tokenizer):
    theirs = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    bits, num_tokens = 0.0, 0
    for text in (TEXT, TEXT[:20]):
        tokens = torch.tensor([[tokenizer.sentinels.eos, *tokenizer.encode(text)]])
        with torch.inference_mode():
            loss = theirs(tokens, labels=tokens).loss.item()
        bits += loss * (tokens.size(1) - 1) / math.log(2)
        num_tokens += tokens.size(1) - 1
    found = measure(network, tokenizer, [TEXT, "", TEXT[:20]])
    assert found.bits == pytest.approx(bits, rel=1e-5)
    assert (found.num_tokens, found.num_files) == (num_tokens, 2)
    assert found.num_bytes == len((TEXT + TEXT[:20]).encode())
    assert found.bits_per_byte == found.bits / found.num_bytes
    assert found.perplexity == pytest.approx(2 ** (bits / num_tokens), rel=1e-5)


@pytest.mark.parametrize("window", [2, 8, 17, 30])
def test_a_window_predicts_every_token_once_from_what_it_sees(network, tokenizer, window):
    tokens = [tokenizer.sentinels.eos, *tokenizer.encode(TEXT)]
    nats, known = 0.0, 1
    while known < len(tokens):  # token by token, each from the start of its window
        start = max(0, known - window // 2) if known > 1 else 0
        end = min(start + window, len(tokens) - 1)
        for at in range(known, end + 1):
            one = torch.tensor([tokens[start:at]])
            positions = torch.arange(at - start)[None]
            with torch.inference_mode():
                logits = network.head(network(one, positions, causal())[0, -1])
            nats -= logits.log_softmax(-1)[tokens[at]].item()
        known = end + 1
    assert measure(network, tokenizer, [TEXT], window=window).bits == pytest.approx(
        nats / math.log(2), rel=1e-5
    )


def test_files_are_found_by_their_ends(tmp_path):
    for name in ("b.py", "a.py", "c.txt"):
        (tmp_path / name).write_text("x")
    assert [file.name for file in files(tmp_path)] == ["a.py", "b.py"]
    assert files(tmp_path / "c.txt") == [tmp_path / "c.txt"]
    with pytest.raises(ConfigError, match="no files that end in"):
        files(tmp_path, suffixes=(".rs",))


def test_nothing_to_predict_is_refused(network, tokenizer):
    with pytest.raises(ConfigError, match="no text"):
        measure(network, tokenizer, ["", ""])
