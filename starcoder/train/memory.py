"""What a step of fine-tuning needs in memory, from the numbers of config.json alone, and how it fits.

Bytes are those of one device at the worst moment of a step. `benchmarks/finetune_memory.py` compares them
with measured steps on a CPU in float32; for GPUs and other precisions the same sums, unmeasured. No torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from starcoder.config import ModelConfig
from starcoder.plan import USABLE_SHARE, Weights, weight_bytes

Method = Literal["full", "lora", "qlora"]
Precision = Literal["float32", "bfloat16", "float16"]
Sharding = Literal["none", "full"]

# Python with torch and PEFT on a CPU; a CUDA context with its libraries elsewhere.
CPU_RUNTIME_BYTES = 420_000_000
GPU_RUNTIME_BYTES = 900_000_000
_HEAD_ROWS, _SOFTMAX_ROWS = 512, 64  # positions whose logits exist at once, once and twice; `train.losses`
_UNROUNDED_BYTES = (
    13  # of a rounded weight while its matrix is made floats again: integer, scale, both, product
)
_LARGEST_MICRO_BATCH = 16
_SEQ_STEP = 128  # in which the longest rows are looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One way to train. `seq_length` rows, of which `micro_batch` are computed at a time on each device."""

    method: Method = "lora"
    seq_length: int = 2048
    micro_batch: int = 1
    precision: Precision = "bfloat16"
    devices: int = 1
    sharding: Sharding = "none"  # full: weights, gradients and optimizer in shares
    rank: int = 16
    recomputes: bool = False  # activations are computed again for gradients
    offloads: bool = False  # shares of weights and optimizer wait in the CPU's memory
    on_gpu: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetunePlan:
    """What a setup needs on each device, in bytes."""

    setup: Setup
    weight_bytes: int
    optimizer_bytes: int
    gradient_bytes: int
    gathered_bytes: int  # whole blocks of a sharded model
    activation_bytes: int
    heap_bytes: int  # holes in a CPU's heap that nothing fits
    head_bytes: int  # logits, and the head's own gradient where it learns, or its floats where it is rounded
    runtime_bytes: int
    host_bytes: int  # of the CPU's memory, for all devices, where shares wait there

    @property
    def total_bytes(self) -> int:
        parts = (self.weight_bytes, self.optimizer_bytes, self.gradient_bytes, self.gathered_bytes)
        return sum(parts) + self.activation_bytes + self.heap_bytes + self.head_bytes + self.runtime_bytes

    def fits(self, memory_bytes: int) -> bool:
        """Whether it runs on a device of that much memory, of which the system keeps a little."""
        return self.total_bytes <= USABLE_SHARE * memory_bytes


def plan_finetune(config: ModelConfig, setup: Setup) -> FinetunePlan:
    """What training `config` so needs on each device."""
    is_full = setup.method == "full"
    share = setup.devices if setup.sharding == "full" else 1
    learning = config.num_parameters if is_full else adapter_parameters(config, setup.rank)
    weights = _base_bytes(config, setup) + (0 if is_full else 4 * learning)
    gathered = setup.sharding == "full" or setup.offloads
    # Shares that wait on the CPU come one block at a time, as gathered ones do.
    is_here = 0 if setup.offloads else 1
    return FinetunePlan(
        setup=setup,
        weight_bytes=is_here * weights // share,
        optimizer_bytes=is_here * 8 * learning // share,
        gradient_bytes=is_here * 4 * learning // share,
        gathered_bytes=_gathered_bytes(config, setup) if gathered else 0,
        activation_bytes=_activation_bytes(config, setup),
        heap_bytes=0 if setup.on_gpu else _heap_bytes(config, setup, 12 * learning),
        head_bytes=_head_bytes(config, setup),
        runtime_bytes=GPU_RUNTIME_BYTES if setup.on_gpu else CPU_RUNTIME_BYTES,
        host_bytes=weights + 12 * learning if setup.offloads else 0,
    )


def fitting(config: ModelConfig, setup: Setup, memory_bytes: int) -> FinetunePlan | None:
    """The quickest way that fits `setup`'s method, rows and devices; None: no way does.

    No sharding goes before sharding, keeping activations before recomputing, all before waiting on the CPU;
    then the largest micro-batch.
    """
    for way in ways(setup):
        best, rows = None, 1
        while rows <= _LARGEST_MICRO_BATCH:
            candidate = plan_finetune(config, replace(way, micro_batch=rows))
            if not candidate.fits(memory_bytes):
                break
            best, rows = candidate, 2 * rows
        if best is not None:
            return best
    return None


def longest_seq_length(config: ModelConfig, setup: Setup, memory_bytes: int) -> int:
    """The longest rows, in steps of 128 tokens, that fit in any way; 0: none."""
    low, high = 0, config.max_positions // _SEQ_STEP
    while low < high:
        middle = (low + high + 1) // 2
        found = fitting(config, replace(setup, seq_length=middle * _SEQ_STEP), memory_bytes)
        low, high = (middle, high) if found else (low, middle - 1)
    return low * _SEQ_STEP


def adapter_parameters(config: ModelConfig, rank: int) -> int:
    """Weights of LoRA on every linear layer but the head, as the files' layers are cut."""
    return config.num_layers * sum(rank * (inputs + columns) for columns, inputs in _linears(config))


def _activation_bytes(config: ModelConfig, setup: Setup) -> int:
    """Of what the backward pass needs of a forward pass, and of what one block holds beside that."""
    D, F = config.hidden_size, config.intermediate_size
    size = 4 if setup.precision == "float32" else 2
    tokens = setup.micro_batch * setup.seq_length
    block = _kept_values(config, setup)
    outside = 4 * D  # embedded, last norm's input, what goes to the head, and its gradient
    scratch = 3 * F + 4 * D  # one block's widest values with their gradients, and the residual stream's
    if setup.recomputes:
        return size * tokens * (config.num_layers * D + block + outside + scratch)
    return size * tokens * (config.num_layers * block + outside + scratch)


def _heap_bytes(config: ModelConfig, setup: Setup, learning_bytes: int) -> int:
    """Of what each block frees between what is kept; gradients and optimizer state go into a part of it.

    glibc's aligned allocations do not fit the holes that their like leave. The share was measured.
    """
    values = 2 * config.intermediate_size + config.hidden_size
    size = 4 if setup.precision == "float32" else 2
    holes = size * setup.micro_batch * setup.seq_length * config.num_layers * values
    return max(0, holes - learning_bytes)


def _kept_values(config: ModelConfig, setup: Setup) -> int:
    """Values of one token that one block keeps for its gradients; `train.keeping` in float32."""
    D, F = config.hidden_size, config.intermediate_size
    N, K, H = config.num_heads, config.num_kv_heads, config.head_size
    # Both norms' inputs, queries (rotated or not), keys and values, attended twice, inner.
    values = 2 * D + (N + 2 * K) * H + 2 * D + F + N + 4
    if setup.precision != "float32" or setup.recomputes:
        values += 2 * D + F  # what comes out of norms and GELU is kept as well
    if setup.method != "full":
        values += setup.rank * len(_linears(config))
    return values


def _linears(config: ModelConfig) -> list[tuple[int, int]]:
    """(columns, inputs) of a block's linear layers, as adapters see them."""
    D, F, kv = config.hidden_size, config.intermediate_size, config.num_kv_heads * config.head_size
    qkv = [(D, D), (kv, D), (kv, D)] if config.family == "starcoder2" else [(D + 2 * kv, D)]
    return [*qkv, (D, D), (F, D), (D, F)]


def _base_bytes(config: ModelConfig, setup: Setup) -> int:
    if setup.method == "qlora":
        return weight_bytes(config, "int4")
    weights: Weights = "float32" if setup.method == "full" else setup.precision
    return weight_bytes(config, weights)


def _gathered_bytes(config: ModelConfig, setup: Setup) -> int:
    """Two blocks, one in use and the next on its way, and what stands outside of them."""
    size = 4 if setup.method == "full" or setup.precision == "float32" else 2
    block = sum(columns * inputs for columns, inputs in _linears(config))
    outside = config.num_parameters - config.num_layers * block
    return size * (2 * block + outside)


def _head_bytes(config: ModelConfig, setup: Setup) -> int:
    """Logits, a part of their log-probabilities, and what the head's gradients take."""
    rows = min(setup.micro_batch * setup.seq_length, _HEAD_ROWS)
    logits = 4 * (rows + min(rows, _SOFTMAX_ROWS)) * config.vocab_size
    head = config.vocab_size * config.hidden_size
    if setup.method == "full":
        return logits + 4 * head
    return logits + (_UNROUNDED_BYTES * head if setup.method == "qlora" else 0)


def ways(setup: Setup) -> Iterator[Setup]:
    """Of the setup's method, rows and devices, the quickest first. Rounded weights are not sharded."""
    can_shard = setup.devices > 1 and setup.method != "qlora"
    shardings: tuple[Sharding, ...] = ("none", "full") if can_shard else ("none",)
    for sharding in shardings:
        for recomputes in (False, True):
            yield replace(setup, sharding=sharding, recomputes=recomputes)
    if setup.on_gpu and can_shard:
        yield replace(setup, sharding="full", recomputes=True, offloads=True)
