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
from starcoder.kernels.step import (
    BlockWeights,
    Layer,
    Matrix,
    NativeSegment,
    NativeStep,
    NetworkWeights,
    Norm,
)
from starcoder.model import Block, Transformer
from starcoder.quantize import QuantizedEmbedding, QuantizedLinear

log = logging.getLogger(__name__)


class NativeRunner:
    """Stands in for `Runner`, with its contract.

    Logits are the same alone or in a batch: to the last bit for int8 and int4 weights, within 1e-5 for
    float32, where a step of one row sums in another order because that reads memory half again as fast.
    """

    def __init__(self, model: Transformer, cache: Cache):
        self._cache = cache
        self._step = NativeStep(network_weights(model), *cache.pools)

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
_FLOATS = nn.Linear, nn.Embedding, nn.LayerNorm


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()


def network_weights(model: Transformer) -> NetworkWeights:
    """What the kernels need of `model`; shares its memory."""
    blocks = tuple(_block(block) for block in model.blocks)
    positions = None if model.positions is None else _matrix(model.positions)
    embed, head = _matrix(model.embed), _matrix(model.head)
    return NetworkWeights(model.config, embed, positions, blocks, _norm(model.norm), head)


def _block(block: nn.Module) -> BlockWeights:
    assert isinstance(block, Block)
    attention, feed_forward = block.attention, block.feed_forward
    return BlockWeights(
        _norm(block.norm1),
        _layer(attention.qkv),
        _layer(attention.out),
        _norm(block.norm2),
        _layer(feed_forward.up),
        _layer(feed_forward.down),
    )


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight.detach(), norm.bias.detach())


def _layer(linear: nn.Module) -> Layer:
    assert isinstance(linear, nn.Linear | QuantizedLinear)
    return Layer(_matrix(linear), None if linear.bias is None else linear.bias.detach())


def _matrix(module: nn.Module) -> Matrix:
    if isinstance(module, _QUANTIZED):
        return module.packed
    assert isinstance(module, nn.Linear | nn.Embedding)
    return module.weight.detach()
