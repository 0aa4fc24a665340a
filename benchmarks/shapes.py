"""The shapes that benchmarks share, filled with random weights, and what stands in for a tokenizer.

Not a benchmark of its own. Weights are random: they are good for speed and memory, not for text.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from starcoder import checkpoint
from starcoder.config import ModelConfig
from starcoder.kernels.memory import Arena
from starcoder.kernels.packed import COLUMNS
from starcoder.layouts import Sentinels
from starcoder.model import Transformer
from starcoder.quantize import QuantizedEmbedding, QuantizedLinear, Scheme, expect


def _bigcode(num_layers: int, hidden_size: int, num_heads: int) -> ModelConfig:
    return ModelConfig(
        family="gpt_bigcode",
        vocab_size=49152,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=1,
        max_positions=8192,
    )


SHAPES = {
    "164m": _bigcode(20, 768, 12),  # bigcode/tiny_starcoder_py
    "1b": _bigcode(24, 2048, 16),  # bigcode/starcoderbase-1b
    "15b": _bigcode(40, 6144, 48),  # bigcode/starcoder
}

_POOL_BYTES = 512 << 20  # more than the largest matrix of the shapes, packed


class Numbers:
    """Stands in for a tokenizer: every token is a word. Its cost is that of a table look-up."""

    sentinels = Sentinels(style="starcoder", eos=0, end_ids=frozenset({0}))

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def token_text(self, token: int) -> str:
        return f"{token} "

    def stream(self) -> "Numbers":
        return self

    def push(self, token: int) -> str:
        return self.token_text(token)

    def flush(self) -> str:
        return ""


def float_folder(folder: Path, config: ModelConfig, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint that transformers loads too, written if it is not there yet."""
    if not (folder / "config.json").exists():
        model = Transformer(config)
        model.initialize(torch.Generator().manual_seed(0))
        checkpoint.save(model.to(dtype), folder)
    return folder


def packed_model(config: ModelConfig, scheme: Scheme) -> Transformer:
    """Any integers that the format allows, with scales that keep activations in bounds."""
    model, arena = _expecting(config, scheme), Arena()
    state = {name: arena.empty(tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.copy_(_plain(parameter))
    for _, module in _packed_layers(model):
        _randomize(module.data, module.packed.scheme, generator)
        module.scales.copy_(_scales(module))
    embed, head = model.embed, model.head
    assert isinstance(embed, QuantizedEmbedding) and isinstance(head, QuantizedLinear)
    head.data, head.scales = embed.data, embed.scales
    return model.eval()


def packed_folder(folder: Path, config: ModelConfig, scheme: Scheme) -> Path:
    """The same as a quantized folder, written if it is not there yet, from half a gigabyte of memory.

    Every matrix is cut from the same random bytes, in memory; in the file each has its own.
    """
    if (folder / "config.json").exists():
        return folder
    model = _expecting(config, scheme)
    generator = torch.Generator().manual_seed(0)
    pools: dict[Scheme, Tensor] = {}
    state = {name: _plain(parameter) for name, parameter in model.named_parameters()}
    for name, module in _packed_layers(model):
        kind, data = module.packed.scheme, module.data
        if kind not in pools:
            pools[kind] = torch.empty(_POOL_BYTES, dtype=torch.uint8)
            _randomize(pools[kind], kind, generator)
        state[f"{name}.data"] = pools[kind][: data.numel()].view(data.shape)
        state[f"{name}.scales"] = _scales(module)
    model.load_state_dict(state, assign=True)
    checkpoint.save(model, folder)
    return folder


def _expecting(config: ModelConfig, scheme: Scheme) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config)
    expect(model, scheme)
    return model.requires_grad_(False)


def _packed_layers(model: Transformer) -> Iterator[tuple[str, QuantizedLinear | QuantizedEmbedding]]:
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            yield name, module


def _plain(parameter: Tensor) -> Tensor:
    """Of a norm or a bias."""
    return torch.full(parameter.shape, 1.0)


def _scales(module: QuantizedLinear | QuantizedEmbedding) -> Tensor:
    """All the same, so that weights are of the size 0.02."""
    scales = torch.full(module.scales.shape, 100, dtype=torch.uint8)
    unit = torch.tensor(0.02 / (500 if module.packed.scheme == "int4" else 4000)).bfloat16()
    scales[:, :2] = unit.expand(COLUMNS).contiguous().view(torch.uint8).view(2, COLUMNS)
    return scales


def _randomize(data: Tensor, scheme: Scheme, generator: torch.Generator) -> None:
    data.view(torch.int64).random_(-(2**63), None, generator=generator)  # eight bytes at a time
    if scheme == "int8":  # neighbours of one sign stay within 128 together
        data.view(torch.int8).bitwise_right_shift_(1)
