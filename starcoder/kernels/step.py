"""One whole step of a network in a single native call: embedding to logits over a block cache.

Between two tokens Python does a few microseconds of bookkeeping here and nothing per layer.
"""

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from starcoder.config import ModelConfig
from starcoder.kernels import native
from starcoder.kernels.ops import as_native
from starcoder.kernels.packed import Packed

Matrix = Packed | Tensor  # Tensor: float32, (columns, inputs)


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer."""

    weight: Matrix
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """One layer of the network."""

    norm1: Norm
    qkv: Layer
    out: Layer
    norm2: Norm
    up: Layer
    down: Layer


@dataclass(frozen=True, slots=True)
class NetworkWeights:
    """A whole network on the CPU: matrices float32 or packed, the rest float32."""

    config: ModelConfig
    embed: Matrix
    positions: Matrix | None  # None: rotary
    blocks: tuple[BlockWeights, ...]
    norm: Norm
    head: Matrix


@dataclass(frozen=True, slots=True)
class NativeSegment:
    """New tokens of one sequence: they follow `past` tokens that are in `blocks`, and go there too."""

    tokens: Sequence[int]
    past: int
    blocks: Sequence[int]


class NativeStep:
    """Runs steps of one network over one cache (layers, blocks, block, K, H), both float32 on the CPU."""

    def __init__(self, weights: NetworkWeights, keys: Tensor, values: Tensor, *, variant: str | None = None):
        library = native.library()
        assert library is not None, "callers ask `available` first"
        assert keys.is_contiguous() and values.is_contiguous() and keys.dtype == torch.float32
        self._library, self._workspace = library, native.Workspace()
        self._variant = None if variant is None else variant.encode()
        self._keep = weights, keys, values
        self._frequencies = _frequencies(weights.config)
        self._model = _model(weights, self._frequencies)
        self._step = native.Step(
            block_size=keys.size(2),
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            layer_stride=keys.stride(0),
        )
        self._vocab_size = self._model.head.columns

    def run(
        self,
        segments: Sequence[NativeSegment],
        rows: Sequence[int],
        *,
        threads: int | None = None,
        best: "array[int] | None" = None,
    ) -> Tensor:
        """Logits (len(rows), V) of the flat tokens numbered `rows`; stores keys and values of all.

        `best`, an `array("i")` of as many positions, takes the token of the largest logit of each row.
        """
        logits = torch.empty(len(rows), self._vocab_size)
        self._run(segments, rows, threads, logits=logits, best=best)
        return logits

    def hidden(
        self, segments: Sequence[NativeSegment], rows: Sequence[int], *, threads: int | None = None
    ) -> Tensor:
        """Hidden states (len(rows), D) after the last norm, in place of logits."""
        out = torch.empty(len(rows), self._model.hidden)
        self._run(segments, rows, threads, hidden=out)
        return out

    def _run(
        self,
        segments: Sequence[NativeSegment],
        rows: Sequence[int],
        threads: int | None,
        *,
        logits: Tensor | None = None,
        hidden: Tensor | None = None,
        best: "array[int] | None" = None,
    ) -> None:
        step, stride = self._step, max(len(segment.blocks) for segment in segments)
        tokens: list[int] = []
        positions: list[int] = []
        tables: list[int] = []
        for segment in segments:
            new = segment.tokens
            tokens += new
            positions += range(segment.past, segment.past + len(new))
            tables += segment.blocks
            tables += [0] * (stride - len(segment.blocks))
        new_lens = [len(segment.tokens) for segment in segments]
        past_lens = [segment.past for segment in segments]
        step.num_tokens, step.num_segments, step.num_rows = len(tokens), len(segments), len(rows)
        step.table_stride = stride
        numbers = array("i", [*tokens, *positions, *new_lens, *past_lens, *tables, *rows])
        step.tokens, _ = numbers.buffer_info()
        step.positions = step.tokens + numbers.itemsize * len(tokens)
        step.new_lens = step.positions + numbers.itemsize * len(tokens)
        step.past_lens = step.new_lens + numbers.itemsize * len(segments)
        step.tables = step.past_lens + numbers.itemsize * len(segments)
        step.rows = step.tables + numbers.itemsize * len(tables)
        step.hidden = None if hidden is None else hidden.data_ptr()
        step.logits = None if logits is None else logits.data_ptr()
        step.best = None if best is None else best.buffer_info()[0]
        status = self._library.sc_step(
            self._workspace.handle,
            self._variant,
            threads or torch.get_num_threads(),
            ctypes.byref(self._model),
            ctypes.byref(step),
        )
        if status != 0:
            raise MemoryError(f"no memory for a step of {len(tokens)} tokens")


def _frequencies(config: ModelConfig) -> Tensor | None:
    if config.rope_theta is None:
        return None
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
    return 1.0 / (config.rope_theta**exponents)


def _model(weights: NetworkWeights, frequencies: Tensor | None) -> native.Model:
    config = weights.config
    blocks = (native.Block * config.num_layers)()
    for block, source in zip(blocks, weights.blocks, strict=True):
        block.norm1_weight, block.norm1_bias = _norm(source.norm1)
        block.norm2_weight, block.norm2_bias = _norm(source.norm2)
        block.qkv = as_native(source.qkv.weight, source.qkv.bias)
        block.out = as_native(source.out.weight, source.out.bias)
        block.up = as_native(source.up.weight, source.up.bias)
        block.down = as_native(source.down.weight, source.down.bias)
    norm_weight, norm_bias = _norm(weights.norm)
    return native.Model(
        num_layers=config.num_layers,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_size=config.head_size,
        window=config.sliding_window or 0,
        gelu_tanh=config.gelu_tanh,
        norm_eps=config.norm_eps,
        frequencies=None if frequencies is None else frequencies.data_ptr(),
        embed=as_native(weights.embed),
        positions=native.Linear() if weights.positions is None else as_native(weights.positions),
        head=as_native(weights.head),
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        blocks=blocks,
    )


def _norm(norm: Norm) -> tuple[int, int]:
    for values in (norm.weight, norm.bias):
        assert values.dtype == torch.float32 and values.is_contiguous()
    return norm.weight.data_ptr(), norm.bias.data_ptr()
