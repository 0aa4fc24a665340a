"""DPO is the published formula, over packed pairs, with the adapter switched off as the reference."""

import copy

import pytest
import torch
import torch.nn.functional as F

from starcoder import checkpoint
from starcoder.adapters.settings import AdapterSettings
from starcoder.chat import ChatTemplate
from starcoder.errors import ConfigError
from starcoder.model import causal
from starcoder.train.loop import LoopSettings, train
from starcoder.train.preference import Pair, PreferencePairs, dpo, read_pairs
from starcoder.train.progress import Progress
from starcoder.train.settings import OptimizerSettings
from starcoder.train.shapes import RowError, recognize
from tests.tiny import make_model, make_tokenizer

PAIRS = [
    Pair([5, 6, 7], [8, 9, 0], [10, 0]),
    Pair([11, 12], [13, 0], [14, 15, 16, 0]),
    Pair([20], [21, 0], [22, 0]),
]


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer("starcoder", tmp_path / "tokenizer")


def likelihood(model, prompt, completion):
    """Log-probability of a completion, by a plain pass over one document and all logits."""
    tokens = torch.tensor([prompt + completion])
    positions = torch.arange(tokens.size(1))[None]
    logits = model.head(model(tokens, positions, causal(model.config.sliding_window)))[0, :-1]
    each = F.log_softmax(logits, dim=-1).gather(1, tokens[0, 1:, None])[:, 0]
    return each[len(prompt) - 1 :].sum()


@pytest.mark.parametrize("variant", ["bigcode", "starcoder2-window"])
@pytest.mark.parametrize("continues", [False, True])
def test_the_loss_and_its_gradient_are_the_published_formulas(variant, continues, tokenizer):
    """The reference is the base, or the model with the adapter's weights as they were at the start."""
    model = make_model(variant)
    reference = copy.deepcopy(model)
    adapter = checkpoint.add_adapter(model, AdapterSettings(rank=4))

    def fill(seed):
        for parameter in adapter.parameters():
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(seed))

    start = None
    if continues:
        fill(2)
        start = {name: tensor.clone() for name, tensor in adapter.state().items()}
        reference = copy.deepcopy(model)
    fill(1)
    batch = PreferencePairs(PAIRS, tokenizer, seq_length=16, seed=0).collate(PAIRS)

    loss = dpo(adapter, beta=0.3, start=start)(model, batch)
    found = torch.autograd.grad(loss, adapter.parameters())

    margins = [
        likelihood(model, p.prompt, p.accepted)
        - likelihood(reference, p.prompt, p.accepted)
        - likelihood(model, p.prompt, p.rejected)
        + likelihood(reference, p.prompt, p.rejected)
        for p in PAIRS
    ]
    expected = -torch.stack([torch.log(torch.sigmoid(0.3 * margin)) for margin in margins]).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for own, theirs in zip(found, torch.autograd.grad(expected, adapter.parameters()), strict=True):
        # Both are up to 7e-4 of a matrix's largest entry away from float64's: float32 leaves no more.
        torch.testing.assert_close(own, theirs, rtol=1e-3, atol=2e-3 * float(theirs.abs().max()))
    assert batch.num_learned == len(PAIRS)


def test_the_loop_learns_to_prefer_what_was_accepted(tmp_path, tokenizer):
    from rich.console import Console

    model = make_model("bigcode")
    adapter = checkpoint.add_adapter(model, AdapterSettings(rank=4))
    stream = PreferencePairs(PAIRS, tokenizer, seq_length=16, seed=0)
    held_out = [stream.collate(PAIRS)]
    before = dpo(adapter)(model, held_out[0]).item()

    train(
        model,
        stream,
        LoopSettings(max_steps=15, batch_size=3, micro_batch_size=2, eval_every=100, save_every=100),
        OptimizerSettings(learning_rate=1e-2, warmup_steps=1),
        tmp_path / "run",
        progress=Progress(tmp_path / "run", Console(quiet=True)),
        loss=dpo(adapter),
    )

    after = dpo(adapter)(model, held_out[0]).item()
    # An untrained adapter is the reference: log 2 for each pair.
    assert before == pytest.approx(3 * 0.693147, abs=1e-4)
    assert after < 0.5 * before


def test_every_epoch_has_every_pair_once_and_a_stream_goes_on_from_its_state(tokenizer):
    def some(stream, count):
        return [stream.next_batch(2).tokens_BT.tolist() for _ in range(count)]

    whole = PreferencePairs(PAIRS, tokenizer, seq_length=16, seed=3)
    expected = some(whole, 6)
    first = PreferencePairs(PAIRS, tokenizer, seq_length=16, seed=3)
    some(first, 4)
    second = PreferencePairs(PAIRS, tokenizer, seq_length=16, seed=3)
    second.restore(first.state())

    rows = [tuple(row) for batch in expected for row in batch]
    assert [len(batch) for batch in expected] == [2, 1, 2, 1, 2, 1], "no batch holds pairs of two epochs"
    assert all(len(set(rows[start : start + 3])) == 3 for start in range(0, 9, 3))
    assert expected[4:] == some(second, 2)


def test_rows_become_pairs_that_fit_and_end_once(tokenizer):
    rows = [
        {"prompt": "def add(", "chosen": "a, b", "rejected": "self"},
        {"prompt": "def " * 200, "chosen": "x" * 300, "rejected": "y"},
    ]
    pairs = list(read_pairs(map(record, rows), tokenizer, None, 64))

    eos = tokenizer.sentinels.eos
    assert len(pairs) == 2
    assert tokenizer.decode(pairs[0].accepted) == "a, b<|endoftext|>"
    assert pairs[1].accepted[-1] != eos
    assert pairs[1].rejected[-1] == eos
    assert all(len(p.prompt) >= 1 for p in pairs)
    assert all(len(p.prompt + p.accepted) + len(p.prompt + p.rejected) - 2 <= 64 for p in pairs)
    infill = {"prefix": "a", "suffix": "c", "accepted": "b", "rejected": "d"}
    [infill] = read_pairs([record(infill)], tokenizer, None, 64)
    assert tokenizer.decode(infill.prompt) == "<fim_prefix>a<fim_suffix>c<fim_middle>"


def test_completions_that_are_the_same_are_no_pair(tokenizer):
    with pytest.raises(RowError, match="are the same"):
        record({"prompt": "same", "chosen": "z", "rejected": "z"})
    with pytest.raises(ConfigError, match="no pairs"):
        PreferencePairs([], tokenizer, seq_length=64, seed=0)


def record(row):
    return recognize(row).read(row)


def test_a_long_prompt_loses_text_and_never_a_sentinel(tokenizer):
    """F10 of the review: the start of the tokens was cut, `<fim_prefix>` with it."""
    marks = tokenizer.sentinels
    row = {"prefix": "x = 1\n" * 200, "suffix": "y\n" * 90, "accepted": "b" * 9, "rejected": "d"}
    [pair] = read_pairs([record(row)], tokenizer, None, 128)
    assert pair.is_cut
    assert [id for id in pair.prompt if id in tokenizer.special_tokens.values()] == [
        marks.fim_prefix, marks.fim_suffix, marks.fim_middle
    ]  # fmt: skip
    assert pair.prompt[0] == marks.fim_prefix
    first, second = pair.examples
    assert first.is_cut and second.is_cut
    assert len(first.tokens) + len(second.tokens) - 2 <= 128


def test_a_long_conversation_loses_its_oldest_turns(tokenizer):
    chat = ChatTemplate(source="{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}")
    turns = [
        {"role": "system", "content": "Be kind."},
        *({"role": role, "content": f"{n}"} for n in range(40) for role in ("user", "assistant")),
        {"role": "user", "content": "last"},
    ]
    row = {
        "prompt": turns,
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }
    [pair] = read_pairs([record(row)], tokenizer, chat, 256)
    text = tokenizer.decode(pair.prompt)
    assert text.startswith("[system]Be kind.\n[user]")
    assert text.endswith("[user]last\n[assistant]")
    assert pair.is_cut and tokenizer.decode(pair.accepted).startswith("good")
    assert not list(read_pairs([record(row)], tokenizer, chat, 24))
