"""`Transformer` and its attention: packed, windowed and initialized as promised (parity/ has the oracle)."""

import pytest
import torch

from starcoder.config import ModelConfig
from starcoder.model import Transformer, causal, causal_attention, documents
from tests.tiny import VARIANTS, make_model

torch.set_num_threads(1)


def random_tokens(*shape):
    return torch.randint(320, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_counted_without_building_the_network(variant):
    model = make_model(variant)

    assert model.config.num_parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("variant", ["bigcode", "bigcode-multi-head", "starcoder2", "starcoder2-window"])
@torch.inference_mode()
def test_packed_documents_equal_separate_runs(variant):
    model = make_model(variant)
    window = model.config.sliding_window
    lengths = [[5, 20, 15], [40], [1, 39]]
    tokens = random_tokens(3, 40)
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])

    packed = model(tokens, positions, documents(lengths, window))

    for row, row_lengths in enumerate(lengths):
        parts = zip(tokens[row].split(row_lengths), packed[row].split(row_lengths), strict=True)
        for document, hidden in parts:
            alone = model(document[None], torch.arange(len(document))[None], causal(window))[0]
            torch.testing.assert_close(hidden, alone, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_query_sees_itself_and_the_window_before_it():
    q, k = torch.zeros(1, 6, 1, 4), torch.zeros(1, 6, 1, 4)
    v = torch.eye(6)[None, :, None, :]

    weights = causal_attention(q, k, v, window=3)[0, :, 0]

    seen = [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert [row.nonzero().flatten().tolist() for row in weights] == seen


@torch.inference_mode()
def test_a_later_token_changes_nothing_before_it():
    model = make_model("starcoder2")
    tokens, positions = random_tokens(1, 20), torch.arange(20)[None]
    changed = tokens.clone()
    changed[0, 12] += 1

    before, after = model(tokens, positions, causal()), model(changed, positions, causal())

    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_a_tied_head_is_the_embedding():
    model = make_model("bigcode")
    assert model.head.weight is model.embed.weight
    untied = make_model("bigcode-untied")
    assert untied.head.weight is not untied.embed.weight


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(3)
    first = make_model("starcoder2")
    torch.manual_seed(4)
    second = make_model("starcoder2")

    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_fresh_network_guesses_evenly():
    model = Transformer(ModelConfig.from_hf(VARIANTS["bigcode"]))
    model.initialize(torch.Generator().manual_seed(0))
    tokens = random_tokens(4, 40)

    logits = model.head(model(tokens, torch.arange(40).expand(4, -1), causal()))

    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(torch.tensor(320.0).log().item(), abs=0.15)


def test_gradients_reach_every_parameter():
    model = make_model("starcoder2").train()
    tokens = random_tokens(1, 12)

    model.head(model(tokens, torch.arange(12)[None], causal())).logsumexp(-1).sum().backward()

    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
