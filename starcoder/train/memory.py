"""What a step of fine-tuning needs in memory, from the numbers of config.json alone, and how it fits.

Bytes are those of one device at the worst moment of a step. `benchmarks/finetune_memory.py` compares them
with measured steps on a CPU in float32; what autocast adds on a GPU is summed from what it casts, unmeasured.
No torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from starcoder.config import ModelConfig
from starcoder.plan import USABLE_SHARE, Weights, weight_bytes
from starcoder.train.settings import Precision

Method = Literal["full", "lora", "qlora"]
Sharding = Literal["none", "full"]

# Python with torch and PEFT on a CPU; a CUDA context with its libraries elsewhere.
CPU_RUNTIME_BYTES = 420_000_000
GPU_RUNTIME_BYTES = 900_000_000
_HEAD_ROWS, _SOFTMAX_ROWS = 512, 64  # positions whose logits exist at once, once and twice; `train.losses`
# Of a rounded weight while its matrix is made floats again: integer, its float, scale, product.
_UNROUNDED_BYTES = 13
_LARGEST_MICRO_BATCH = 16
_SEQ_STEP = 128  # in which the longest rows are looked for


def usual_length(config: ModelConfig) -> int:
    """Tokens of a row where nobody says how many."""
    return min(2048, config.max_positions)


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
    cast_bytes: int  # 16-bit copies of weights that learn in 32
    activation_bytes: int  # what the backward pass needs of a forward pass
    scratch_bytes: int  # beside that at the worst moment: logits, or what one block's gradients take
    runtime_bytes: int
    host_bytes: int  # of the CPU's memory, for all devices, where shares wait there

    @property
    def total_bytes(self) -> int:
        learning = self.weight_bytes + self.optimizer_bytes + self.gradient_bytes
        passing = self.cast_bytes + self.activation_bytes + self.scratch_bytes
        return learning + self.gathered_bytes + passing + self.runtime_bytes

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
        cast_bytes=_cast_bytes(config, setup),
        activation_bytes=_activation_bytes(config, setup),
        scratch_bytes=max(_block_scratch(config, setup), _head_scratch(config, setup)),
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
    """Of what the backward pass needs of a forward pass: of every block, or its input alone."""
    tokens = setup.micro_batch * setup.seq_length
    if setup.recomputes:
        # A base in 16 bits passes 16 bits on; weights that learn are in 32.
        size = 4 if setup.method == "full" or setup.precision == "float32" else 2
        return tokens * config.num_layers * size * config.hidden_size
    return tokens * config.num_layers * _kept_bytes(config, setup)


def _kept_bytes(config: ModelConfig, setup: Setup) -> int:
    """Of one token, what one block keeps for its gradients."""
    D, F = config.hidden_size, config.intermediate_size
    N, K, H = config.num_heads, config.num_kv_heads, config.head_size
    # Queries, keys and values, attended in documents and together, before GELU, softmax's sums.
    values = (N + 2 * K) * H + 2 * D + config.up_size + N
    if config.family != "gpt_bigcode":
        values += (N + K) * H  # rotated; what they were is in one tensor with the values
    if setup.method != "full":
        values += setup.rank * len(_linears(config))
    residual = 2 * D + 4  # both norms' inputs, in 32 bits, means and deviations
    if not _makes_again(setup):
        values += 2 * D + F  # what comes out of norms and GELU is kept as well
    if setup.precision == "float32":
        return 4 * (residual + values)
    if config.family != "gpt_bigcode" and setup.method != "full":
        values += 2 * D  # each of three adapters casts its own input
    return 4 * residual + 2 * values


def _makes_again(setup: Setup) -> bool:
    """Whether outputs of norms and GELU are made again from their inputs; `train.recompute`."""
    return setup.precision == "float32" and not setup.recomputes


def _block_scratch(config: ModelConfig, setup: Setup) -> int:
    """While the last block's gradients are made, beside what blocks keep."""
    D, F = config.hidden_size, config.intermediate_size
    tokens = setup.micro_batch * setup.seq_length
    # Counted in live tensors, as `tests/train/test_memory.py` does: gradients before and after GELU, of an
    # adapter beside those of the layer below it, and some of the residual stream.
    is_full, again = setup.method == "full", F if _makes_again(setup) else 0
    values = 2 * F + 3 * D + again if is_full else 3 * F + D + again
    block = 0
    if setup.recomputes:
        values = F + 2 * D if is_full else 2 * F
        block = tokens * _kept_bytes(config, setup)
    size = 4 if setup.precision == "float32" else 2
    widest = size * tokens * (F + again) + F * D * _matrix_bytes(setup)
    return block + max(size * tokens * values, widest) + _head_gradient(config, setup)


def _matrix_bytes(setup: Setup) -> int:
    """Of one weight of the matrix whose gradients are made: its own gradient, or what unrounding takes."""
    if setup.method == "full":
        return 4 if setup.precision == "float32" else 6
    return _UNROUNDED_BYTES if setup.method == "qlora" else 0


def _head_scratch(config: ModelConfig, setup: Setup) -> int:
    """While logits are there: these, a part of their log-probabilities, and the hidden states about them."""
    tokens = setup.micro_batch * setup.seq_length
    rows, head = min(tokens, _HEAD_ROWS), config.vocab_size * config.hidden_size
    is_float32 = setup.precision == "float32"
    outside = (4 if is_float32 else 2) * tokens * 4 * config.hidden_size
    logits = 4 * rows * config.vocab_size
    # Made again for the gradient: logits, their log-probabilities and gradient; or the head's floats.
    if setup.method == "qlora":
        return outside + max(3 * logits, logits + _UNROUNDED_BYTES * head)
    logits += 4 * min(rows, _SOFTMAX_ROWS) * config.vocab_size
    logits += 0 if is_float32 else 2 * rows * config.vocab_size
    return outside + logits + _head_gradient(config, setup)


def _head_gradient(config: ModelConfig, setup: Setup) -> int:
    """Of the head's own gradient, which is there before it is added to the others."""
    return 4 * config.vocab_size * config.hidden_size if setup.method == "full" else 0


def _cast_bytes(config: ModelConfig, setup: Setup) -> int:
    """Of the 16-bit copies that autocast makes of learning matrices: of all, or of a block computed again."""
    if setup.precision == "float32" or setup.method != "full":
        return 0
    num_blocks = 1 if setup.recomputes else config.num_layers
    blocks = num_blocks * sum(columns * inputs for columns, inputs in _linears(config))
    return 2 * (blocks + config.vocab_size * config.hidden_size)


def _linears(config: ModelConfig) -> list[tuple[int, int]]:
    """(columns, inputs) of a block's linear layers, as adapters see them."""
    D, F, kv = config.hidden_size, config.intermediate_size, config.num_kv_heads * config.head_size
    A = config.attention_size
    qkv = [(A, D), (kv, D), (kv, D)] if config.family != "gpt_bigcode" else [(A + 2 * kv, D)]
    up = [(F, D), (F, D)] if config.is_gated else [(F, D)]
    return [*qkv, (D, A), *up, (D, F)]


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


def ways(setup: Setup) -> Iterator[Setup]:
    """Of the setup's method, rows and devices, the quickest first. Rounded weights are not sharded."""
    can_shard = setup.devices > 1 and setup.method != "qlora"
    shardings: tuple[Sharding, ...] = ("none", "full") if can_shard else ("none",)
    for sharding in shardings:
        for recomputes in (False, True):
            yield replace(setup, sharding=sharding, recomputes=recomputes)
    if setup.on_gpu and can_shard:
        yield replace(setup, sharding="full", recomputes=True, offloads=True)
