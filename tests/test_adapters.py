"""Adapters are those of PEFT on transformers' model: in training, in files, merged and switched off."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from starcoder import checkpoint
from starcoder.adapters.adapter import Adapter
from starcoder.adapters.settings import AdapterSettings
from starcoder.errors import CheckpointError, ConfigError
from starcoder.model import Transformer, causal
from starcoder.quantize import QuantizedLinear, quantize
from tests.tiny import by_peft, load_oracle, make_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch functions that libraries of PEFT still call
    import peft

FAMILIES = ["bigcode", "bigcode-multi-head", "starcoder2", "starcoder2-no-bias"]
LORA_KINDS = ["lora", "rslora", "dora"]
TOKENS = torch.randint(0, 320, (2, 12), generator=torch.Generator().manual_seed(3))


def logits(model: Transformer) -> torch.Tensor:
    positions = torch.arange(TOKENS.size(1)).expand(2, -1)
    return model.head(model(TOKENS, positions, causal(model.config.sliding_window)))


def shake(parameters) -> None:
    """Random values, as after training: B of LoRA starts at zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in parameters:
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(params=FAMILIES)
def base(request, tmp_path) -> Path:
    return make_checkpoint(request.param, tmp_path / "base")


@pytest.mark.parametrize("kind", LORA_KINDS)
def test_peft_loads_what_was_trained_here_to_the_same_logits(base, tmp_path, kind):
    model = checkpoint.load(base)
    adapter = checkpoint.add_adapter(model, AdapterSettings(kind=kind, rank=4))
    shake(adapter.parameters())
    adapter.save(tmp_path / "adapter", base=str(base))

    theirs = by_peft(load_oracle(base), tmp_path / "adapter")

    with torch.no_grad():
        expected = theirs(TOKENS).logits
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
        assert (expected - load_oracle(base)(TOKENS).logits).abs().max() > 0.05
        adapter.merge()
        torch.testing.assert_close(
            logits(model), theirs.merge_and_unload()(TOKENS).logits, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(c_attn|q_proj|c_fc)", ["c_proj", "v_proj"]])
def test_an_adapter_of_peft_loads_here_to_the_same_logits(base, tmp_path, targets):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, rank_pattern={"c_proj": 2})
        theirs = peft.get_peft_model(load_oracle(base), config).eval()
    shake(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "adapter")

    model = checkpoint.load(base)
    adapter = checkpoint.load_adapter(model, tmp_path / "adapter")

    with torch.no_grad():
        expected = theirs(TOKENS).logits
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
        adapter.merge()
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=2e-5)
    assert {type(module).__name__ for module in model.modules()} <= {
        *(
            "Transformer",
            "Embedding",
            "ModuleList",
            "Block",
            "LayerNorm",
            "Attention",
            "Linear",
            "FeedForward",
        )
    }


@pytest.mark.parametrize("kind", ["pissa", "olora", "loha", "lokr", "ia3", "hra", "boft", "fourierft"])
@pytest.mark.parametrize("variant", ["bigcode", "bigcode-multi-head", "starcoder2"])
def test_other_kinds_are_the_same_in_peft_and_off_and_merged(tmp_path, variant, kind):
    options = {
        "ia3": {"feedforward_modules": ["c_proj"]},
        "fourierft": {"n_frequency": 50, "init_weights": True},
        "boft": {"boft_block_size": 4},
    }
    base = make_checkpoint(variant, tmp_path / "base")
    model = checkpoint.load(base)
    before = logits(model).detach()
    settings = AdapterSettings(kind=kind, rank=4, options=options.get(kind, {}))
    adapter = checkpoint.add_adapter(model, settings)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    shake(adapter.parameters())
    adapter.save(tmp_path / "adapter")

    with torch.no_grad():
        trained = logits(model)
        theirs = by_peft(load_oracle(base), tmp_path / "adapter")(TOKENS).logits
        torch.testing.assert_close(trained, theirs, rtol=1e-4, atol=1e-4)
        with adapter.disabled():
            torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits(model), trained)
        assert (trained - before).abs().max() > 0.01
        adapter.merge()
        torch.testing.assert_close(logits(model), trained, rtol=1e-4, atol=1e-4)


def test_only_the_adapter_learns_and_being_off_changes_nothing_of_that(base):
    model = checkpoint.load(base)
    adapter = checkpoint.add_adapter(model, AdapterSettings(rank=2))
    with adapter.disabled():
        pass
    logits(model).sum().backward()

    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(learning) == len(adapter.parameters())
    assert all("lora_" in name for name in learning)
    assert all(p.grad is not None for p in adapter.parameters())
    assert all(p.grad is None for name, p in model.named_parameters() if "lora_" not in name)


def test_targets_choose_layers_by_the_files_names(tmp_path):
    model = checkpoint.load(make_checkpoint("starcoder2", tmp_path / "base"))
    adapter = checkpoint.add_adapter(model, AdapterSettings(rank=2, targets=("q_proj", "v_proj")))

    assert {name.split(".")[-3] for name in adapter.state()} == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match="no layer to adapt is called 'w_proj'") as caught:
        checkpoint.add_adapter(model, AdapterSettings(targets=("w_proj",)))
    assert "c_fc, c_proj, k_proj, o_proj, q_proj, v_proj" in caught.value.hint


def test_the_same_seed_starts_the_same_adapter_and_leaves_torchs_own_numbers_alone(tmp_path):
    folder = make_checkpoint("bigcode", tmp_path / "base")
    start = torch.random.get_rng_state()
    states = [
        checkpoint.add_adapter(checkpoint.load(folder), AdapterSettings(seed=s)).state() for s in (5, 5, 6)
    ]

    assert torch.equal(start, torch.random.get_rng_state())
    name = next(name for name in states[0] if "lora_A" in name)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_adapters_of_half_precision_weights_learn_in_float32_and_merge_in_the_weights_dtype(tmp_path):
    model = checkpoint.load(make_checkpoint("starcoder2", tmp_path / "base"), dtype=torch.bfloat16)
    adapter = checkpoint.add_adapter(model, AdapterSettings(rank=2))
    shake(adapter.parameters())

    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    adapter.merge()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("variant", ["bigcode", "bigcode-multi-head", "starcoder2"])
def test_adapters_on_quantized_weights_have_the_gradients_of_the_floats_they_stand_for(
    tmp_path, variant, scheme
):
    folder = make_checkpoint(variant, tmp_path / "base")
    quantized, floats = checkpoint.load(folder), checkpoint.load(folder)
    quantize(quantized, scheme)
    for name, module in quantized.named_modules():
        if isinstance(module, QuantizedLinear) and name != "head":
            floats.get_submodule(name).weight = torch.nn.Parameter(module.dequantized())
    floats.head.weight = torch.nn.Parameter(quantized.head.dequantized())
    floats.embed.weight = torch.nn.Parameter(quantized.embed.dequantized())
    if floats.positions is not None:
        floats.positions.weight = torch.nn.Parameter(quantized.positions.dequantized())
    adapters = [checkpoint.add_adapter(model, AdapterSettings(rank=4)) for model in (quantized, floats)]
    for adapter, model in zip(adapters, (quantized, floats), strict=True):
        shake(adapter.parameters())
        logits(model).square().mean().backward()

    grads = [torch.cat([p.grad.flatten() for p in adapter.parameters()]) for adapter in adapters]
    # The kernels round activations to 8 bits: about a hundredth of each product.
    assert (grads[0] - grads[1]).norm() < 0.05 * grads[1].norm()
    with pytest.raises(ConfigError, match="cannot be merged into quantized"):
        adapters[0].merge()
    with pytest.raises(ConfigError, match="does not go on quantized"):
        checkpoint.add_adapter(quantized, AdapterSettings(kind="pissa"))


def test_a_file_goes_through_a_second_adapter_bit_for_bit(base, tmp_path):
    first = checkpoint.add_adapter(checkpoint.load(base), AdapterSettings(rank=2))
    shake(first.parameters())
    first.save(tmp_path / "adapter", base="me/base")
    second = checkpoint.load_adapter(checkpoint.load(base), tmp_path / "adapter", trainable=True)

    assert second.base == "me/base"
    assert all(p.requires_grad for p in second.parameters())
    assert first.state().keys() == second.state().keys()
    assert all(torch.equal(x, second.state()[name]) for name, x in first.state().items())
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (saved["r"], saved["peft_type"], saved["task_type"]) == (2, "LORA", "CAUSAL_LM")


def add_and_save(variant: str, tmp_path: Path, **overrides) -> Adapter:
    model = checkpoint.load(make_checkpoint(variant, tmp_path / variant, **overrides))
    adapter = checkpoint.add_adapter(model, AdapterSettings(rank=2))
    adapter.save(tmp_path / "adapter")
    return adapter


def test_an_adapter_of_another_model_is_refused_and_leaves_the_model_as_it_was(tmp_path):
    add_and_save("bigcode", tmp_path)
    model = checkpoint.load(make_checkpoint("starcoder2", tmp_path / "other"))
    before = logits(model).detach()
    with pytest.raises(CheckpointError):
        checkpoint.load_adapter(model, tmp_path / "adapter")
    wide = checkpoint.load(make_checkpoint("bigcode", tmp_path / "wide", n_embd=128))
    with pytest.raises(CheckpointError, match="of shape"):
        checkpoint.load_adapter(wide, tmp_path / "adapter")
    assert torch.equal(before, logits(model))


def test_broken_files_are_refused_in_words(tmp_path):
    add_and_save("bigcode", tmp_path)
    model = checkpoint.load(tmp_path / "bigcode")
    config = tmp_path / "adapter" / "adapter_config.json"
    text = config.read_text()

    config.write_text(json.dumps(json.loads(text) | {"modules_to_save": ["ln_f"]}))
    with pytest.raises(CheckpointError, match="modules_to_save: ln_f"):
        checkpoint.load_adapter(model, tmp_path / "adapter")
    config.write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load_adapter(model, tmp_path / "adapter")
    config.write_text(text)
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load_adapter(model, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="is not an adapter"):
        checkpoint.load_adapter(model, tmp_path)


def test_settings_that_cannot_be_are_refused(tmp_path):
    model = checkpoint.load(make_checkpoint("bigcode", tmp_path))
    with pytest.raises(ConfigError, match="no adapter of kind 'nonesuch'") as caught:
        checkpoint.add_adapter(model, AdapterSettings(kind="nonesuch"))
    assert "lora, dora, rslora, pissa, olora" in caught.value.hint
    with pytest.raises(ConfigError, match="PEFT refuses these settings"):
        checkpoint.add_adapter(model, AdapterSettings(options={"nonesuch": 1}))
    for settings in ({"rank": 0}, {"dropout": 1.0}):
        with pytest.raises(ConfigError):
            AdapterSettings(**settings)
    checkpoint.add_adapter(model, AdapterSettings())
    with pytest.raises(ConfigError, match="has an adapter already"):
        checkpoint.add_adapter(model, AdapterSettings())
