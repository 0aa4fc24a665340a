"""Frozen layers in bitsandbytes' NF4 below adapters: the base's error is that of 4 bits, adapters learn."""

import pytest
import torch

from starcoder.adapters.settings import AdapterSettings
from starcoder.checkpoint.adapter import add_adapter
from starcoder.config import ModelConfig
from starcoder.errors import ConfigError
from starcoder.model import Transformer, causal
from starcoder.train.nf4 import round_to_nf4


@pytest.fixture
def model() -> Transformer:
    config = ModelConfig(
        family="starcoder2",
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        max_positions=64,
        rope_theta=1e4,
    )
    made = Transformer(config)
    made.initialize(torch.Generator().manual_seed(0))
    return made


def hidden(model: Transformer, device: torch.device) -> torch.Tensor:
    tokens = torch.arange(24, device=device)[None]
    return model(tokens, tokens, causal())


def check(model: Transformer, device: torch.device) -> None:
    exact = hidden(model, torch.device("cpu")).detach()
    add_adapter(model, AdapterSettings(rank=4))
    assert round_to_nf4(model.blocks, device, torch.float32) == 6 * model.config.num_layers
    model.to(device)
    rounded = hidden(model, device)
    difference = (rounded.detach().cpu() - exact).norm() / exact.norm()
    assert 1e-4 < difference < 0.3
    rounded.square().sum().backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learned and all(".lora_" in name for name in learned)
    assert all(p.dtype == torch.uint8 for n, p in model.named_parameters() if n.endswith("base_layer.weight"))


def test_layers_are_rounded_and_adapters_learn(model: Transformer) -> None:
    pytest.importorskip("bitsandbytes", reason="NF4 is that of bitsandbytes, which is no dependency")
    check(model, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_layers_are_rounded_on_the_gpu(model: Transformer) -> None:
    pytest.importorskip("bitsandbytes", reason="NF4 is that of bitsandbytes, which is no dependency")
    check(model, torch.device("cuda"))


def test_without_bitsandbytes_it_says_what_to_do(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="nf4 needs bitsandbytes"):
        round_to_nf4(model.blocks, torch.device("cpu"), torch.float32)
