"""`Transformer` and its attention: packed, windowed and initialized as promised (parity/ has the oracle)."""

import pytest
import torch

from starcoder.config import ModelConfig
from starcoder.model import Transformer, causal, causal_attention, documents, takes_varlen
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


@pytest.mark.parametrize(
    ("device_type", "capability", "dtype", "head_size", "expected"),
    [
        ("cuda", (8, 0), torch.bfloat16, 128, True),
        ("cuda", (9, 0), torch.float16, 64, True),
        ("cuda", (7, 5), torch.float16, 64, False),  # Turing has no FlashAttention in torch
        ("cuda", (8, 0), torch.float32, 128, False),
        ("cuda", (8, 0), torch.bfloat16, 100, False),
        ("cuda", (8, 0), torch.bfloat16, 256, False),
        ("cpu", (9, 0), torch.bfloat16, 128, False),
        ("mps", (9, 0), torch.float16, 128, False),
    ],
)
def test_one_call_for_all_documents_is_chosen_where_torch_has_it(
    device_type, capability, dtype, head_size, expected
):
    assert takes_varlen(device_type, capability, dtype, head_size) is expected


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_all_documents_go_out_in_one_call_with_where_each_starts(monkeypatch, window, num_kv_heads):
    """A stand-in for torch's function, which CPUs lack, that reads its arguments as torch documents them."""
    given = []

    def varlen(q, k, v, starts, same_starts, longest, same_longest, *, window_size, enable_gqa):
        given.append((starts.tolist(), starts.dtype, longest, window_size))
        assert starts is same_starts
        assert longest == same_longest
        assert enable_gqa
        lengths = starts.diff().tolist()
        parts = zip(*(torch.split(x, lengths) for x in (q, k, v)), strict=True)
        seen = None if window_size == (-1, 0) else window_size[0] + 1
        return torch.cat([causal_attention(*(x[None] for x in part), seen)[0] for part in parts])

    q_BTNH = torch.randn(2, 9, 4, 8)
    k_BTKH, v_BTKH = torch.randn(2, 9, num_kv_heads, 8), torch.randn(2, 9, num_kv_heads, 8)
    lengths = [(4, 5), (1, 2, 6)]
    expected = documents(lengths, window)(0, q_BTNH, k_BTKH, v_BTKH)
    monkeypatch.setattr("starcoder.model._varlen", lambda v: varlen)
    attend = documents(lengths, window)
    found = attend(0, q_BTNH, k_BTKH, v_BTKH)
    attend(1, q_BTNH, k_BTKH, v_BTKH)

    torch.testing.assert_close(found, expected)
    assert given == 2 * [([0, 4, 9, 10, 12, 18], torch.int32, 6, (-1 if window is None else 2, 0))]


HEADS = [(16, 1, 128), (24, 2, 128), (12, 12, 64)]  # StarCoder's kind, Starcoder2's, one for each query


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_size"), HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_the_gpu_one_call_equals_a_call_for_each_document(
    monkeypatch, dtype, num_heads, num_kv_heads, head_size, window
):
    lengths = [(100, 1, 155), (256,)]
    shapes = [(2, 256, heads, head_size) for heads in (num_heads, num_kv_heads, num_kv_heads)]
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = [torch.randn(shape, generator=generator, device="cuda", dtype=dtype) for shape in shapes]
    weight = torch.randn(shapes[0], generator=generator, device="cuda", dtype=dtype)
    if not takes_varlen("cuda", torch.cuda.get_device_capability(), dtype, head_size):
        pytest.skip("this GPU is older than Ampere")
    results = []
    for is_fused in (True, False):
        if not is_fused:
            monkeypatch.setattr("starcoder.model._varlen", lambda v: None)
        own = [x.clone().requires_grad_() for x in inputs]
        out = documents(lengths, window)(0, *own)
        (out * weight).sum().backward()
        results.append([out.detach(), *(x.grad for x in own)])
    for found, expected in zip(*results, strict=True):
        # Sums of both run in another order, in 8 or 11 bits of mantissa.
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
