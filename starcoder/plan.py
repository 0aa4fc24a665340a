"""Memory planner: what a model needs before anything is loaded, and the largest choice that fits.

From the numbers of `config.json` alone. It plans inference on a CPU with the native kernels; the runtime's
own share was measured on Linux.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from starcoder.config import ModelConfig

Weights = Literal["float32", "bfloat16", "float16", "int8", "int4"]

# From the most exact down; bfloat16 and float16 save nothing else than int8 does not save better on a CPU.
CHOICES: tuple[Weights, ...] = ("float32", "bfloat16", "int8", "int4")

# The rest is the operating system's.
USABLE_SHARE = 0.95

_DTYPE_BYTES: dict[Weights, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
_BITS: dict[Weights, int] = {"int8": 8, "int4": 4}
# As `quantize` chooses them; a test holds both to the same bytes.
_GROUP_SIZES: dict[Weights, int] = {"int4": 32, "int8": 64}
_COLUMNS = 16  # of a packed block; a column has a scale of a byte for each group, and a unit of two for all

# Python with torch, the tokenizer and its 49,152 tokens: resident memory of `starcoder generate` less its
# model, cache and scratch. Measured with torch 2.13.0+cpu on Linux.
RUNTIME_BYTES = 280_000_000
_STEP_TOKENS = 512  # of one forward pass; `EngineSettings.max_step_tokens`
_BLOCK_TOKENS = 16  # of a cache block; `EngineSettings.block_size`


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one choice needs, in bytes."""

    weights: Weights
    context: int  # tokens of each sequence, prompt and completion
    sequences: int  # that run, or stay cached, at the same time
    weight_bytes: int
    cache_bytes: int
    scratch_bytes: int
    runtime_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes + self.scratch_bytes + self.runtime_bytes

    def fits(self, memory_bytes: int) -> bool:
        """Whether it runs in that much memory, of which the system keeps a little."""
        return self.total_bytes <= USABLE_SHARE * memory_bytes


def plan(config: ModelConfig, weights: Weights, *, context: int | None = None, sequences: int = 1) -> Plan:
    """What running `config` with these weights needs; `context` None is the longest the model takes.

    An engine that lives long keeps prefixes of eight full contexts: plan it with `sequences` 8.
    """
    context = min(context or config.max_positions, config.max_positions)
    return Plan(
        weights=weights,
        context=context,
        sequences=sequences,
        weight_bytes=weight_bytes(config, weights),
        cache_bytes=cache_bytes(config, weights, context) * sequences,
        scratch_bytes=scratch_bytes(config, weights, min(_STEP_TOKENS, context * sequences), sequences),
        runtime_bytes=RUNTIME_BYTES,
    )


def largest_fitting(asked: Plan, config: ModelConfig, memory_bytes: int) -> Plan | None:
    """The most exact choice that fits: smaller weights before a shorter context; None: no choice does."""
    rest = CHOICES[CHOICES.index(asked.weights) :] if asked.weights in CHOICES else CHOICES[1:]
    for weights in rest:
        candidate = plan(config, weights, context=asked.context, sequences=asked.sequences)
        if candidate.fits(memory_bytes):
            return candidate
    context = longest_context(config, "int4", memory_bytes, sequences=asked.sequences)
    return plan(config, "int4", context=context, sequences=asked.sequences) if context else None


def longest_context(config: ModelConfig, weights: Weights, memory_bytes: int, *, sequences: int = 1) -> int:
    """The longest context, in whole cache blocks, with which these weights fit; 0: none."""
    low, high = 0, config.max_positions // _BLOCK_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        candidate = plan(config, weights, context=middle * _BLOCK_TOKENS, sequences=sequences)
        low, high = (middle, high) if candidate.fits(memory_bytes) else (low, middle - 1)
    return low * _BLOCK_TOKENS


def weight_bytes(config: ModelConfig, weights: Weights) -> int:
    """Bytes of all weights, to the byte as they are in memory and, but for a header, on disk."""
    if weights in _DTYPE_BYTES:
        return config.num_parameters * _DTYPE_BYTES[weights]
    return sum(_stored(matrix, weights) for matrix in _matrices(config)) + 4 * _num_vectors(config)


def read_bytes(config: ModelConfig, weights: Weights) -> int:
    """Bytes of weights that one decoded token reads: all but tables that are only looked up in."""
    matrices = [matrix for matrix in _matrices(config) if not matrix.is_only_table]
    if weights in _DTYPE_BYTES:
        values = sum(matrix.columns * matrix.inputs for matrix in matrices) + _num_vectors(config)
        return values * _DTYPE_BYTES[weights]
    return sum(_stored(matrix, weights) for matrix in matrices) + 4 * _num_vectors(config)


def cache_bytes(config: ModelConfig, weights: Weights, tokens: int) -> int:
    """Bytes of the keys and values of one sequence, in whole blocks. Quantized models keep float32."""
    blocks = -(-tokens // _BLOCK_TOKENS)
    values = 2 * config.num_layers * config.num_kv_heads * config.head_size
    return values * blocks * _BLOCK_TOKENS * _DTYPE_BYTES.get(weights, 4)


def scratch_bytes(config: ModelConfig, weights: Weights, tokens: int, sequences: int) -> int:
    """Bytes of the activations of a step over `tokens`, and of logits."""
    D, F = config.hidden_size, config.intermediate_size
    # Residual, attended, q k v, rotary, inner.
    floats = D + config.attention_size + config.qkv_size + config.head_size + config.up_size
    normed = F + F / 4 + F / 16  # the widest input as floats, as bytes, and its scales and sums
    logits = 4 * sequences * config.vocab_size
    return int(4 * tokens * (floats + normed)) + logits


def machine_bytes() -> int:
    """Memory of this machine, or what a container's limit leaves of it."""
    memory = _physical_bytes()
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such file, or the word "max"
            memory = min(memory, int(Path(limit).read_text("ascii")))
    return memory


def _physical_bytes() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    status = _WindowsMemory(length=ctypes.sizeof(_WindowsMemory))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return int(status.total)


class _WindowsMemory(ctypes.Structure):
    """Source: Windows' `MEMORYSTATUSEX` of sysinfoapi.h."""

    _fields_ = [
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 6),
    ]


@dataclass(frozen=True, slots=True)
class _Matrix:
    columns: int
    inputs: int
    is_table: bool = False  # looked up in
    is_linear: bool = True  # multiplied with

    @property
    def is_only_table(self) -> bool:
        return self.is_table and not self.is_linear


def _matrices(config: ModelConfig) -> Iterator[_Matrix]:
    D, F = config.hidden_size, config.intermediate_size
    yield _Matrix(config.vocab_size, D, is_table=True, is_linear=config.tied_embeddings)
    if not config.tied_embeddings:
        yield _Matrix(config.vocab_size, D)
    if config.rope_theta is None:
        yield _Matrix(config.max_positions, D, is_table=True, is_linear=False)
    attention = _Matrix(config.qkv_size, D), _Matrix(D, config.attention_size)
    for _ in range(config.num_layers):
        yield from (*attention, _Matrix(config.up_size, D), _Matrix(D, F))


def _num_vectors(config: ModelConfig) -> int:
    """Values of norms and biases, which stay float32."""
    return config.num_parameters - sum(matrix.columns * matrix.inputs for matrix in _matrices(config))


def _stored(matrix: _Matrix, scheme: Weights) -> int:
    """Bytes of a packed matrix: whole blocks of columns, whole groups of inputs, and their scales."""
    own: Weights = "int8" if matrix.is_only_table else scheme
    group_size = _GROUP_SIZES[own]
    columns = -(-matrix.columns // _COLUMNS) * _COLUMNS
    groups = -(-matrix.inputs // group_size)
    return columns * (groups * (group_size * _BITS[own] // 8 + 1) + 2)


_STARCODER = ModelConfig(
    family="gpt_bigcode",
    vocab_size=49152,
    hidden_size=6144,
    intermediate_size=24576,
    num_layers=40,
    num_heads=48,
    num_kv_heads=1,
    max_positions=8192,
)
_STARCODER2 = ModelConfig(
    family="starcoder2",
    vocab_size=49152,
    hidden_size=3072,
    intermediate_size=12288,
    num_layers=30,
    num_heads=24,
    num_kv_heads=2,
    max_positions=16384,
    rope_theta=999999.4420358813,
    sliding_window=4096,
)


def _bigcode(hidden_size: int, num_layers: int, num_heads: int) -> ModelConfig:
    return replace(
        _STARCODER,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
    )


# Planned without network. Source: config.json of each repository on huggingface.co.
KNOWN: dict[str, ModelConfig] = {
    "bigcode/tiny_starcoder_py": _bigcode(768, 20, 12),
    "bigcode/gpt_bigcode-santacoder": replace(_bigcode(2048, 24, 16), vocab_size=49280, max_positions=2048),
    "bigcode/starcoderbase-1b": _bigcode(2048, 24, 16),
    "bigcode/starcoderbase-3b": _bigcode(2816, 36, 22),
    "bigcode/starcoderbase-7b": _bigcode(4096, 42, 32),
    "bigcode/starcoderbase": _STARCODER,
    "bigcode/starcoder": _STARCODER,
    "bigcode/starcoderplus": _STARCODER,
    "HuggingFaceH4/starchat-alpha": replace(_STARCODER, vocab_size=49156),
    "HuggingFaceH4/starchat-beta": replace(_STARCODER, vocab_size=49156),
    "bigcode/starcoder2-3b": _STARCODER2,
    "bigcode/starcoder2-7b": replace(
        _STARCODER2,
        hidden_size=4608,
        intermediate_size=18432,
        num_layers=32,
        num_heads=36,
        num_kv_heads=4,
        rope_theta=1e6,
    ),
    "bigcode/starcoder2-15b": replace(
        _STARCODER2,
        hidden_size=6144,
        intermediate_size=24576,
        num_layers=40,
        num_heads=48,
        num_kv_heads=4,
        rope_theta=1e5,
        tied_embeddings=False,
    ),
}
