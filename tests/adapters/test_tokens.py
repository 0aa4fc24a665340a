"""Rows of new tokens beside an adapter are PEFT's: in training, in files, merged and switched off."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from starcoder import checkpoint
from starcoder.adapters.settings import AdapterSettings
from starcoder.errors import CheckpointError, ConfigError
from starcoder.model import Transformer, causal
from starcoder.quantize import QuantizedEmbedding, QuantizedLinear, quantize
from tests.test_adapters import shake
from tests.tiny import by_peft, load_oracle, make_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch functions that libraries of PEFT still call
    import peft

VARIANTS = ["bigcode", "bigcode-untied", "starcoder2", "starcoder2-untied"]
NEW = (320, 321, 322)
# Among them tokens that the tables lack, and one that they have (5).
TOKENS = torch.tensor([[7, 320, 5, 322, 19, 321, 321, 4], [0, 5, 5, 320, 11, 12, 13, 322]])


def logits(model: Transformer, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    positions = torch.arange(tokens.size(1)).expand(len(tokens), -1)
    return model.head(model(tokens, positions, causal(model.config.sliding_window)))


def resized(base: Path):
    model = load_oracle(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.resize_token_embeddings(323)
    return model


@pytest.fixture(params=VARIANTS)
def base(request, tmp_path) -> Path:
    return make_checkpoint(request.param, tmp_path / "base")


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa"])
@pytest.mark.parametrize("tokens", [NEW, (5, 322), (5, 9)], ids=["beyond", "both", "inside"])
def test_peft_loads_tokens_that_learned_here_to_the_same_logits(base, tmp_path, kind, tokens):
    model = checkpoint.load(base)
    adapter = checkpoint.add_adapter(model, AdapterSettings(kind=kind, rank=4, tokens=tokens))
    shake(adapter.parameters())
    adapter.save(tmp_path / "adapter")
    theirs = by_peft(resized(base), tmp_path / "adapter")

    seen = TOKENS.clamp(max=model.config.vocab_size - 1)
    with torch.no_grad():
        found, expected = logits(model, seen), theirs(seen).logits[..., : model.config.vocab_size]
        # PiSSA is written as what it adds to the base, which is two sums more.
        tolerance = 1e-4 if kind == "pissa" else 1e-5
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        assert model.config.vocab_size == (320 if tokens == (5, 9) else 323)
        adapter.merge()
        merged = theirs.merge_and_unload()(seen).logits[..., : model.config.vocab_size]
        torch.testing.assert_close(logits(model, seen), merged, rtol=tolerance, atol=2 * tolerance)
    assert type(model.embed) is torch.nn.Embedding
    assert type(model.head) is torch.nn.Linear
    assert model.config.tied_embeddings == (model.head.weight is model.embed.weight)


@pytest.mark.parametrize("form", ["indices", "by table", "whole tables", "resized only"])
def test_tokens_that_learned_with_peft_load_here_to_the_same_logits(base, tmp_path, form):
    embedding = "wte" if "wte" in str(dict(load_oracle(base).named_parameters()).keys()) else "embed_tokens"
    is_tied = checkpoint.read_config(base).tied_embeddings
    words: dict[str, object] = {
        "indices": {"trainable_token_indices": list(NEW)},
        "by table": {"trainable_token_indices": {embedding: [5, *NEW], "lm_head": [5, *NEW]}},
        "whole tables": {"modules_to_save": [embedding, "lm_head"]},
        "resized only": {},
    }[form]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", **words)
        theirs = peft.get_peft_model(resized(base), config).eval()
        shake(p for name, p in theirs.named_parameters() if p.requires_grad and "modules_to_save" not in name)
        if form == "whole tables":
            train_whole(theirs, embedding, is_tied=is_tied)
        theirs.save_pretrained(tmp_path / "adapter")

    model = checkpoint.load(base)
    adapter = checkpoint.load_adapter(model, tmp_path / "adapter")

    with torch.no_grad():
        expected = theirs(TOKENS).logits
        close(logits(model), expected)
        adapter.save(tmp_path / "again")
        again = checkpoint.load(base)
        checkpoint.load_adapter(again, tmp_path / "again")
        assert torch.equal(logits(again), logits(model))
        adapter.merge()
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=2e-5)


def train_whole(theirs, embedding: str, *, is_tied: bool) -> None:
    """As training would: a head that is tied moves with its embedding."""
    tables = [p for name, p in theirs.named_parameters() if "modules_to_save" in name]
    assert len(tables) == 2
    shake(tables)
    if is_tied:
        tables[1].data.copy_(tables[0].data)


def test_a_head_trained_apart_from_its_embedding_is_refused_where_they_are_tied(tmp_path):
    base = make_checkpoint("bigcode", tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=3, target_modules=["c_attn"], modules_to_save=["lm_head"])
        theirs = peft.get_peft_model(load_oracle(base), config)
        shake(p for p in theirs.parameters() if p.requires_grad)
        theirs.save_pretrained(tmp_path / "adapter")

    with pytest.raises(CheckpointError, match="a head of its own"):
        checkpoint.load_adapter(checkpoint.load(base), tmp_path / "adapter")


def test_rows_that_learn_have_the_gradients_of_a_table_that_grew(base):
    model, whole = checkpoint.load(base), checkpoint.load(base)
    with torch.no_grad():
        for table in {whole.embed.weight, whole.head.weight}:
            table.data = torch.cat([table, table.mean(0, keepdim=True).expand(3, -1)])
    whole.requires_grad_(True)
    adapter = checkpoint.add_adapter(model, AdapterSettings(rank=2, tokens=(5, *NEW)))
    losses = [
        F.cross_entropy(logits(m)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()) for m in (model, whole)
    ]
    for loss in losses:
        loss.backward()

    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    rows = [p for name, p in model.named_parameters() if "learned" in name]
    tables = [whole.embed.weight] if model.config.tied_embeddings else [whole.embed.weight, whole.head.weight]
    assert len(rows) == len(tables) < len(adapter.parameters())
    for row, table in zip(rows, tables, strict=True):
        torch.testing.assert_close(row.grad, table.grad[[5, *NEW]], rtol=1e-4, atol=1e-5)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "learned" in name for name in learning)


def test_all_other_rows_stay_as_they_are(base, tmp_path):
    before = checkpoint.load(base)
    model = checkpoint.load(base)
    adapter = checkpoint.add_adapter(model, AdapterSettings(rank=2, tokens=NEW))
    with torch.no_grad():
        expected = logits(model)
        for start in (model.embed.learned.weight, model.head.learned.weight):
            assert float(start.std(0).max()) == 0, "they start alike"
        shake(adapter.parameters())
        with adapter.disabled():
            close(logits(model), expected)
        assert (logits(model) - expected).abs().max() > 0.05
    adapter.merge()
    for old, new in ((before.embed, model.embed), (before.head, model.head)):
        assert torch.equal(old.weight, new.weight[:320])
    checkpoint.save(model, tmp_path / "saved")
    assert checkpoint.load(tmp_path / "saved").config.vocab_size == 323


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("variant", ["bigcode", "starcoder2-untied"])
def test_over_rounded_tables_new_rows_are_floats_of_their_own(tmp_path, variant, scheme):
    folder = make_checkpoint(variant, tmp_path / "base")
    rounded, floats = checkpoint.load(folder), checkpoint.load(folder)
    quantize(rounded, scheme)
    for name, module in rounded.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            floats.get_submodule(name).weight = torch.nn.Parameter(module.dequantized())
    floats.tie()
    settings = AdapterSettings(rank=2, tokens=(5, *NEW))
    adapters = [checkpoint.add_adapter(model, settings) for model in (rounded, floats)]
    for adapter, model in zip(adapters, (rounded, floats), strict=True):
        shake(adapter.parameters())
        logits(model).square().mean().backward()

    grads = [torch.cat([p.grad.flatten() for p in adapter.parameters()]) for adapter in adapters]
    # The kernels round activations to 8 bits, a hundredth of each product; of two rows of tokens, whose
    # gradients partly cancel, 0.14 was seen, and 0.05 without any.
    assert (grads[0] - grads[1]).norm() < 0.2 * grads[1].norm()
    with torch.no_grad():
        assert torch.equal(rounded.embed(torch.tensor([7])), rounded.embed.table(torch.tensor([7])))
    adapters[0].save(tmp_path / "adapter")
    again = checkpoint.load(folder)
    quantize(again, scheme)
    loaded = checkpoint.load_adapter(again, tmp_path / "adapter")
    with torch.no_grad():
        close(logits(again), logits(rounded))
    with pytest.raises(ConfigError, match="cannot be merged into quantized"):
        loaded.merge()


def test_rounding_a_model_takes_the_new_tokens_along(tmp_path):
    base = make_checkpoint("bigcode", tmp_path / "base")
    adapter = checkpoint.add_adapter(checkpoint.load(base), AdapterSettings(rank=2, tokens=NEW))
    shake(adapter.parameters())
    adapter.save(tmp_path / "adapter", base=str(base))
    checkpoint.merge_folder([(tmp_path / "adapter", 1.0)], tmp_path / "merged")

    found = checkpoint.load(base, quantize="int8", adapter=tmp_path / "adapter")
    expected = checkpoint.load(tmp_path / "merged", quantize="int8")
    assert found.config.vocab_size == expected.config.vocab_size == 323
    with torch.no_grad():
        assert torch.equal(logits(found), logits(expected))
    theirs = load_oracle(tmp_path / "merged")
    with torch.no_grad():
        close(theirs(TOKENS).logits, by_peft(resized(base), tmp_path / "adapter")(TOKENS).logits)


def test_what_cannot_be_is_refused_in_words(tmp_path):
    base = make_checkpoint("bigcode", tmp_path / "base")
    with pytest.raises(ConfigError, match="loha holds no rows of tokens") as caught:
        checkpoint.add_adapter(checkpoint.load(base), AdapterSettings(kind="loha", tokens=NEW))
    assert "lora" in caught.value.hint
    model = checkpoint.load(base)
    adapter = checkpoint.add_adapter(model, AdapterSettings(rank=2, tokens=NEW))
    adapter.save(tmp_path / "adapter", base=str(base))
    with pytest.raises(ConfigError, match="cannot be weighted, nor mixed"):
        checkpoint.merge_folder([(tmp_path / "adapter", 0.5)], tmp_path / "merged")
    for settings in (AdapterSettings(), AdapterSettings(tokens=(400,))):
        with pytest.raises(ConfigError, match="has an adapter already"):
            checkpoint.add_adapter(model, settings)
    with pytest.raises(CheckpointError, match="has an adapter already"):
        checkpoint.load_adapter(model, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    assert config["trainable_token_indices"] == {"wte": list(NEW)}
    path.write_text(json.dumps(config | {"trainable_token_indices": {"wte": [320]}}))
    with pytest.raises(CheckpointError, match=r"shape \(3, 64\), not \(1, 64\)"):
        checkpoint.load_adapter(checkpoint.load(base), tmp_path / "adapter")
    path.write_text(json.dumps(config))
    wide = checkpoint.load(make_checkpoint("bigcode", tmp_path / "wide", n_embd=128))
    with pytest.raises(CheckpointError, match="of shape"):
        checkpoint.load_adapter(wide, tmp_path / "adapter")
