"""What fine-tuning changes in a model before it trains: rows for tokens, noise; what a token costs."""

import dataclasses
import math

import torch
from torch import Tensor, nn

from starcoder.model import Transformer


@torch.no_grad()
def resize_vocab(model: Transformer, vocab_size: int) -> None:
    """Give `model` rows for new tokens, each the mean of the old ones; fewer than it has changes nothing."""
    old = model.config.vocab_size
    if vocab_size <= old:
        return
    model.config = dataclasses.replace(model.config, vocab_size=vocab_size)
    model.embed.weight = nn.Parameter(_grown(model.embed.weight, vocab_size))
    model.embed.num_embeddings = vocab_size
    model.head.weight = nn.Parameter(_grown(model.head.weight, vocab_size))
    model.head.out_features = vocab_size
    model.tie()


def _grown(weight: Tensor, rows: int) -> Tensor:
    return torch.cat([weight, weight.mean(0, keepdim=True).expand(rows - weight.size(0), -1)])


def add_noise(embed: nn.Embedding, alpha: float, seq_length: int) -> None:
    """Uniform noise on embeddings while training. Source: NEFTune, Jain et al. 2023, arXiv:2310.05914."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if not module.training:
            return out
        size = alpha / math.sqrt(seq_length * out.size(-1))
        return out + torch.empty_like(out).uniform_(-size, size)

    embed.register_forward_hook(hook)


def flops_per_token(model: Transformer) -> float:
    """Operations of a forward and a backward pass: frozen matrices need no gradients of their own."""
    config = model.config
    D, F = config.hidden_size, config.intermediate_size
    block = config.qkv_size + config.attention_size + config.up_size + F
    matrices = config.num_layers * D * block + config.vocab_size * D
    if model.norm.weight.requires_grad:
        return 6.0 * matrices
    return 4.0 * matrices + 6.0 * sum(p.numel() for p in model.parameters() if p.requires_grad)
