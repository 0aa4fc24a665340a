"""Which Hugging Face tensors make up which parameter of `Transformer`, for both families.

Names here are without the prefix of the family's inner model, which some checkpoints leave out.
Source: transformers `models/{gpt_bigcode,starcoder2}/modeling_*.py`, names of the state dicts.
"""

import re

import torch

from starcoder.config import ModelConfig

_PREFIX = {"gpt_bigcode": "transformer.", "starcoder2": "model."}
_BLOCKS = {"gpt_bigcode": "h", "starcoder2": "layers"}
_OUTSIDE = {
    "gpt_bigcode": {"embed": "wte", "positions": "wpe", "norm": "ln_f", "head": "lm_head"},
    "starcoder2": {"embed": "embed_tokens", "norm": "norm", "head": "lm_head"},
}
_INSIDE = {
    "gpt_bigcode": {
        "norm1": ["ln_1"],
        "attention.qkv": ["attn.c_attn"],
        "attention.out": ["attn.c_proj"],
        "norm2": ["ln_2"],
        "feed_forward.up": ["mlp.c_fc"],
        "feed_forward.down": ["mlp.c_proj"],
    },
    "starcoder2": {
        "norm1": ["input_layernorm"],
        "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "attention.out": ["self_attn.o_proj"],
        "norm2": ["post_attention_layernorm"],
        "feed_forward.up": ["mlp.c_fc"],
        "feed_forward.down": ["mlp.c_proj"],
    },
}
# Buffers that older versions stored: causal masks and rotary frequencies.
_COMPUTED = re.compile(r"\.(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)$")

EMBEDDING, HEAD = "embed.weight", "head.weight"


def their_names(config: ModelConfig, name: str) -> list[str]:
    """Names of the tensors whose rows, in this order, make up our parameter `name`."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("blocks."):
        return [f"{_OUTSIDE[config.family][module]}.{kind}"]
    _, layer, inner = module.split(".", 2)
    return [f"{_BLOCKS[config.family]}.{layer}.{part}.{kind}" for part in _INSIDE[config.family][inner]]


def their_rows(config: ModelConfig, name: str, shape: torch.Size) -> list[int]:
    """How many rows of our parameter each of `their_names` holds."""
    if len(their_names(config, name)) == 1:
        return [shape[0]]
    kv = config.num_kv_heads * config.head_size
    return [shape[0] - 2 * kv, kv, kv]


def without_prefix(config: ModelConfig, full_name: str) -> str:
    """A tensor's name as this module writes it."""
    return full_name.removeprefix(_PREFIX[config.family])


def with_prefix(config: ModelConfig, name: str) -> str:
    """A tensor's name as transformers writes it; the head stands outside of the inner model."""
    return name if name.startswith("lm_head.") else _PREFIX[config.family] + name


def is_interleaved(config: ModelConfig, name: str) -> bool:
    """Without multi-query, GPTBigCode's `c_attn` stores q, k and v of one head after the other."""
    return config.family == "gpt_bigcode" and config.num_kv_heads > 1 and ".qkv." in name


def is_computed(name: str) -> bool:
    """Whether a stored tensor can be left out because the network computes it."""
    return _COMPUTED.search(name) is not None
