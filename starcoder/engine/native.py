"""The runner that takes a whole step in one native call, for weights on the CPU that the kernels read."""

import logging
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from starcoder.engine.cache import Cache
from starcoder.engine.runner import Logits, wanted_rows
from starcoder.engine.scheduler import Segment
from starcoder.kernels import native
from starcoder.kernels.ops import as_native
from starcoder.kernels.step import NativeSegment, NativeStep
from starcoder.model import Block, Transformer, rotary_frequencies
from starcoder.quantize import QuantizedEmbedding, QuantizedLinear

log = logging.getLogger(__name__)


class NativeRunner:
    """Replaces `Runner`, with its contract.

    Logits are the same alone or in a batch: to the last bit for int8 and int4 weights, within 1e-5 for
    float32, where a step of one row sums in another order because that reads memory half again as fast.
    """

    def __init__(self, model: Transformer, cache: Cache):
        self._cache = cache
        self._network = Network(model)
        self._step = NativeStep(self._network.description, *cache.pools)

    @staticmethod
    def can_run(model: Transformer, cache: Cache) -> bool:
        """Whether the kernels were built, read every weight of `model`, and the cache is theirs."""
        if native.library() is None:
            log.warning(
                "the native kernels are not built (see starcoder doctor); torch runs, several times slower"
            )
            return False
        if not _is_plain(cache.pools[0]):
            return False
        modules = [module for module in model.modules() if not list(module.children())]
        readable = all(isinstance(module, _QUANTIZED) or type(module) in _FLOATS for module in modules)
        return readable and all(_is_plain(parameter) for parameter in model.parameters())

    def run(self, segments: Sequence[Segment], copies: Sequence[tuple[int, int]]) -> Logits:
        """Logits of each segment, in order, its last `num_rows` tokens; see `Runner.run`."""
        self._cache.copy(copies)
        parts = [NativeSegment(segment.tokens, segment.start, segment.blocks) for segment in segments]
        rows = wanted_rows(segments)
        best = array("i", bytes(4 * len(rows)))
        return Logits(self._step.run(parts, rows, best=best), best)


_QUANTIZED = QuantizedLinear, QuantizedEmbedding
_FLOATS = nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()


class Network:
    """A `Transformer` as the kernels see it: `description` points into its memory, kept alive here."""

    def __init__(self, model: Transformer):
        config = model.config
        self._model = model
        self._frequencies = None if config.rope_theta is None else rotary_frequencies(config)
        blocks = (native.Block * config.num_layers)(*map(_block, model.blocks))
        self.description = native.Model(
            num_layers=config.num_layers,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_size=config.head_size,
            window=config.sliding_window or 0,
            activation=native.ACTIVATIONS[config.activation],
            is_gated=config.is_gated,
            norm_eps=config.norm_eps,
            rotary_scale=config.rope_scaling.attention_factor if config.rope_scaling else 1.0,
            frequencies=None if self._frequencies is None else self._frequencies.data_ptr(),
            embed=_linear(model.embed),
            positions=native.Linear() if model.positions is None else _linear(model.positions),
            head=_linear(model.head),
            norm_weight=_address(model.norm.weight),
            norm_bias=_bias(model.norm),
            blocks=blocks,
        )


def _block(block: nn.Module) -> native.Block:
    assert isinstance(block, Block)
    attention, feed_forward = block.attention, block.feed_forward
    return native.Block(
        norm1_weight=_address(block.norm1.weight),
        norm1_bias=_bias(block.norm1),
        norm2_weight=_address(block.norm2.weight),
        norm2_bias=_bias(block.norm2),
        q_norm=None if attention.q_norm is None else _address(attention.q_norm.weight),
        k_norm=None if attention.k_norm is None else _address(attention.k_norm.weight),
        qkv=_linear(attention.qkv),
        out=_linear(attention.out),
        up=_linear(feed_forward.up),
        down=_linear(feed_forward.down),
    )


def _linear(module: nn.Module) -> native.Linear:
    """A linear layer or a table, float32 or packed."""
    bias = getattr(module, "bias", None)
    if isinstance(module, _QUANTIZED):
        return as_native(module.packed, bias)
    assert isinstance(module, nn.Linear | nn.Embedding)
    return as_native(module.weight, bias)


def _bias(norm: nn.Module) -> int | None:
    """None: RMSNorm has none."""
    return _address(norm.bias) if isinstance(norm, nn.LayerNorm) else None


def _address(values: Tensor) -> int:
    assert values.dtype == torch.float32 and values.is_contiguous(), "`can_run` has looked"
    return values.data_ptr()
