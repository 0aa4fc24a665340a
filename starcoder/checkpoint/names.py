"""Which Hugging Face tensors make up which parameter of `Transformer`, for every family.

Names here are without the prefix of the family's inner model, which some checkpoints leave out.
Source: transformers `models/{gpt_bigcode,starcoder2,llama,qwen3}/modeling_*.py`, names of the state dicts.
"""

import re

import torch

from starcoder.config import ModelConfig

_OUTSIDE_BIGCODE = {"embed": "wte", "positions": "wpe", "norm": "ln_f", "head": "lm_head"}
_OUTSIDE = {"embed": "embed_tokens", "norm": "norm", "head": "lm_head"}
_INSIDE_BIGCODE = {
    "norm1": ["ln_1"],
    "attention.qkv": ["attn.c_attn"],
    "attention.out": ["attn.c_proj"],
    "norm2": ["ln_2"],
    "feed_forward.up": ["mlp.c_fc"],
    "feed_forward.down": ["mlp.c_proj"],
}
_INSIDE_STARCODER2 = {
    "norm1": ["input_layernorm"],
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.q_norm": ["self_attn.q_norm"],
    "attention.k_norm": ["self_attn.k_norm"],
    "attention.out": ["self_attn.o_proj"],
    "norm2": ["post_attention_layernorm"],
    "feed_forward.up": ["mlp.c_fc"],
    "feed_forward.down": ["mlp.c_proj"],
}
_INSIDE_LLAMA = _INSIDE_STARCODER2 | {
    "feed_forward.up": ["mlp.gate_proj", "mlp.up_proj"],
    "feed_forward.down": ["mlp.down_proj"],
}
# Buffers that older versions stored: causal masks and rotary frequencies.
_COMPUTED = re.compile(r"\.(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)$")

# DistributedDataParallel's, torch.compile's and PEFT's.
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.|base_model\.model\.)+")

EMBEDDING, HEAD = "embed.weight", "head.weight"


def their_names(config: ModelConfig, name: str) -> list[str]:
    """Names of the tensors whose rows, in this order, make up our parameter `name`."""
    module, _, kind = name.rpartition(".")
    is_bigcode = config.family == "gpt_bigcode"
    if not module.startswith("blocks."):
        return [f"{(_OUTSIDE_BIGCODE if is_bigcode else _OUTSIDE)[module]}.{kind}"]
    _, layer, inner = module.split(".", 2)
    if is_bigcode:
        return [f"h.{layer}.{part}.{kind}" for part in _INSIDE_BIGCODE[inner]]
    inside = _INSIDE_LLAMA if config.is_gated else _INSIDE_STARCODER2
    return [f"layers.{layer}.{part}.{kind}" for part in inside[inner]]


def their_rows(config: ModelConfig, name: str, shape: torch.Size) -> list[int]:
    """How many rows of our parameter each of `their_names` holds."""
    num_parts = len(their_names(config, name))
    if num_parts < 3:  # one, or the gate and what it gates
        return [shape[0] // num_parts] * num_parts
    kv = config.num_kv_heads * config.head_size
    return [shape[0] - 2 * kv, kv, kv]


def without_prefix(config: ModelConfig, full_name: str) -> str:
    """A tensor's name as this module writes it; what wraps a model in training is left out too."""
    return _WRAPPERS.sub("", full_name).removeprefix(_prefix(config))


def with_prefix(config: ModelConfig, name: str) -> str:
    """A tensor's name as transformers writes it; the head is outside of the inner model."""
    return name if name.startswith("lm_head.") else _prefix(config) + name


def _prefix(config: ModelConfig) -> str:
    return "transformer." if config.family == "gpt_bigcode" else "model."


def is_interleaved(config: ModelConfig, name: str) -> bool:
    """Without multi-query, GPTBigCode's `c_attn` stores q, k and v of one head after the other."""
    return config.family == "gpt_bigcode" and config.num_kv_heads > 1 and ".qkv." in name


def is_computed(name: str) -> bool:
    """Whether a stored tensor can be left out because the network computes it."""
    return _COMPUTED.search(name) is not None
