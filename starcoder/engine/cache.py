"""The key/value cache: the tensors behind the block pool, and the `Attend` that pages through them.

This `Attend` is plain PyTorch, the same on every device. A native kernel takes its place by
offering the same two methods, `copy` and `attend`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from starcoder.config import ModelConfig
from starcoder.engine.scheduler import Segment
from starcoder.engine.settings import EngineSettings
from starcoder.errors import ConfigError
from starcoder.model import Attend, Transformer
from starcoder.plan import machine_bytes


class Cache:
    """Keys and values of all layers, (L, blocks x block, K, H) each, addressed by block."""

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.config, self.num_blocks, self.block_size, self.device = config, num_blocks, block_size, device
        shape = config.num_layers, num_blocks, block_size, config.num_kv_heads, config.head_size
        # Not zeroed: the system gives pages when they are first written, so a large cache costs nothing yet.
        self._keys = torch.empty(shape, device=device, dtype=dtype)
        self._values = torch.empty(shape, device=device, dtype=dtype)
        self._key_layers = list(self._keys.flatten(1, 2).unbind())
        self._value_layers = list(self._values.flatten(1, 2).unbind())

    @property
    def pools(self) -> tuple[Tensor, Tensor]:
        """All keys and all values, (layers, blocks, block, K, H) each."""
        return self._keys, self._values

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks of all layers, in order: a later copy may read what an earlier one wrote."""
        for source, target in copies:
            self._keys[:, target] = self._keys[:, source]
            self._values[:, target] = self._values[:, source]

    def attend(self, segments: Sequence[Segment]) -> Attend:
        """The `Attend` of one step over the flat tokens of `segments`, in order."""
        parts, at = [], 0
        for segment in segments:
            parts.append(self._part(segment, at))
            at += segment.end - segment.start
        store = self._store(segments)

        def attend(layer: int, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor) -> Tensor:
            keys, values = self._key_layers[layer], self._value_layers[layer]
            store(keys, k_BTKH[0])
            store(values, v_BTKH[0])
            outs = [part(q_BTNH[0, part.rows], keys, values) for part in parts]
            return (outs[0] if len(outs) == 1 else torch.cat(outs))[None]

        return attend

    def _part(self, segment: Segment, at: int) -> "_Part":
        """How one segment attends: where its keys are, and its mask; the same for all layers."""
        window, past, end = self.config.sliding_window, segment.start, segment.end
        first = max(0, past + 1 - window) if window else 0  # the oldest token that anyone here sees
        blocks = segment.blocks[first // self.block_size : -(-end // self.block_size)]
        offset, T, S = first % self.block_size, end - past, end - first
        if _is_run(blocks):
            start = blocks[0] * self.block_size + offset
            place: slice | Tensor = slice(start, start + S)
        else:
            place = _slots(blocks, range(offset, offset + S), self.block_size).to(self._keys.device)
        masked = T > 1 and (S > T or (window is not None and window < S))
        mask_TS = _mask(T, S, window).to(self._keys.device) if masked else None
        return _Part(slice(at, at + T), place, mask_TS, self.config.num_kv_heads)

    def _store(self, segments: Sequence[Segment]) -> Callable[[Tensor, Tensor], None]:
        """Writes the step's new rows where the segments' blocks are."""
        slots = [
            slot
            for segment in segments
            for slot in _slots(
                segment.blocks[segment.start // self.block_size :],
                range(
                    segment.start % self.block_size,
                    segment.start % self.block_size + segment.end - segment.start,
                ),
                self.block_size,
            ).tolist()
        ]
        if _is_run(slots):
            here = slice(slots[0], slots[-1] + 1)

            def write_run(pool: Tensor, rows_TKH: Tensor) -> None:
                pool[here] = rows_TKH

            return write_run
        index = torch.tensor(slots, device=self._keys.device)

        def write(pool: Tensor, rows_TKH: Tensor) -> None:
            pool.index_copy_(0, index, rows_TKH)

        return write


@dataclass(frozen=True, slots=True)
class _Part:
    """One segment's attention: which flat rows ask, and which slots of the pool answer."""

    rows: slice
    place: slice | Tensor
    mask_TS: Tensor | None
    num_kv_heads: int

    def __call__(self, q_TNH: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(T, N, H). Heads that share keys become one batch entry, so keys are never repeated in memory."""
        k_KSH, v_KSH = keys[self.place].transpose(0, 1), values[self.place].transpose(0, 1)
        T, N, H = q_TNH.shape
        K = self.num_kv_heads
        if T == 1:
            q_KGH = q_TNH.reshape(K, N // K, H)
            return F.scaled_dot_product_attention(q_KGH[None], k_KSH[None], v_KSH[None]).reshape(1, N, H)
        q_KGTH = q_TNH.view(T, K, N // K, H).permute(1, 2, 0, 3)
        k_KGSH, v_KGSH = (x[:, None].expand(-1, N // K, -1, -1) for x in (k_KSH, v_KSH))
        out_KGTH = F.scaled_dot_product_attention(
            q_KGTH, k_KGSH, v_KGSH, attn_mask=self.mask_TS, is_causal=self.mask_TS is None
        )
        return out_KGTH.permute(2, 0, 1, 3).flatten(1, 2)


def make_cache(model: Transformer, settings: EngineSettings) -> Cache:
    """A cache of the settings' size, with the model's device and type.

    Raises:
        ConfigError: less memory than one block takes.
    """
    weight = model.norm.weight  # never quantized: its dtype is that of keys and values
    cache_bytes = settings.cache_bytes
    if cache_bytes is None:
        cache_bytes = default_cache_bytes(model.config, weight.device, weight.dtype)
    num_blocks = cache_bytes // (settings.block_size * bytes_per_token(model.config, weight.dtype))
    if not num_blocks:
        raise ConfigError(f"cache_bytes {cache_bytes} is less than one block", "give the cache more memory")
    return Cache(model.config, num_blocks, settings.block_size, device=weight.device, dtype=weight.dtype)


def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """What the keys and values of one token take, over all layers."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_size * dtype.itemsize


def default_cache_bytes(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> int:
    """Eight full contexts, or a quarter of the memory if that is less, but one context at least."""
    context = config.max_positions * bytes_per_token(config, dtype)
    memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine_bytes()
    return max(context, min(8 * context, memory // 4))


def _is_run(numbers: Sequence[int]) -> bool:
    return list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))


def _slots(blocks: Sequence[int], tokens: range, block_size: int) -> Tensor:
    """Where in a flat pool these tokens are, counted from the first token of `blocks`."""
    at = torch.arange(tokens.start, tokens.stop)
    return torch.tensor(blocks)[at // block_size] * block_size + at % block_size


def _mask(T: int, S: int, window: int | None) -> Tensor:
    """True where the last T of S tokens see: themselves and those before, `window` in all."""
    mask_TS = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    return mask_TS if window is None else mask_TS.triu(S - T + 1 - window)
