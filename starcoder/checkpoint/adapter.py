"""Adapters of `Transformer` under the names that transformers' models have: what PEFT's files hold."""

import dataclasses
from pathlib import Path

from starcoder.adapters import adapter as adapters
from starcoder.adapters.adapter import Adapter
from starcoder.adapters.settings import AdapterSettings, Layout, Parts, Tables
from starcoder.checkpoint.names import (
    EMBEDDING,
    HEAD,
    is_interleaved,
    their_names,
    their_rows,
    with_prefix,
)
from starcoder.config import ModelConfig
from starcoder.model import Transformer

_LINEARS = ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")


def add_adapter(model: Transformer, settings: AdapterSettings) -> Adapter:
    """A new adapter on `model`, whose own weights are frozen; the vocabulary grows to `settings.tokens`.

    Raises:
        ConfigError: PEFT is missing or has no such kind, or no layer is called as `targets` say.
    """
    return _resized(model, adapters.add(model, settings, layout(model.config), tables(model.config)))


def load_adapter(model: Transformer, folder: Path, *, trainable: bool = False) -> Adapter:
    """The adapter that PEFT or this package saved in `folder`, on `model`, and the tokens that came with it.

    Raises:
        CheckpointError: a file is missing or broken, or the adapter is of another model.
        ConfigError: PEFT is missing.
    """
    found = adapters.load(model, folder, layout(model.config), tables(model.config), trainable=trainable)
    return _resized(model, found)


def _resized(model: Transformer, adapter: Adapter) -> Adapter:
    model.config = dataclasses.replace(model.config, vocab_size=adapter.vocab_size)
    return adapter


def layout(config: ModelConfig) -> Layout:
    """Our linear layers but the head, and how transformers keeps each.

    Starcoder2 has three projections where we have `qkv`; GPTBigCode without multi-query interleaves them.
    """
    paths = [f"blocks.{layer}.{name}" for layer in range(config.num_layers) for name in _LINEARS]
    return {path: _parts(config, path) for path in paths}


def tables(config: ModelConfig) -> Tables:
    """Our embedding and head, and how transformers calls them."""
    embedding, head = (
        with_prefix(config, *their_names(config, name)).removesuffix(".weight") for name in (EMBEDDING, HEAD)
    )
    paths = (EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight"))
    return Tables(paths, (embedding, head), is_tied=config.tied_embeddings)


def _parts(config: ModelConfig, path: str) -> Parts:
    import torch

    weight = f"{path}.weight"
    names = tuple(with_prefix(config, n).removesuffix(".weight") for n in their_names(config, weight))
    N, H = config.num_heads, config.head_size
    if len(names) == 1 and not is_interleaved(config, weight):
        return Parts(names, (0,))
    if len(names) > 1:
        rows = config.qkv_size if path.endswith("qkv") else config.up_size
        return Parts(names, tuple(their_rows(config, weight, torch.Size([rows]))))
    order = torch.arange(3 * N * H).view(3, N, H).transpose(0, 1).flatten()
    return Parts(names, (3 * N * H,), tuple(order.tolist()))
