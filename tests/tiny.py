"""Tiny random checkpoints and tokenizers that tests share: every variant of all families, seeded."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from starcoder.model import Transformer
    from starcoder.tokenizer import Tokenizer

_BIGCODE = {
    "model_type": "gpt_bigcode",
    "vocab_size": 320,
    "n_positions": 512,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_STARCODER2 = {
    "model_type": "starcoder2",
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
    "bos_token_id": 0,
    "eos_token_id": 0,
}

_LLAMA = {
    "model_type": "llama",
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}

# Name -> transformers' config. The odd vocabulary is what adding tokens for a chat leaves behind.
VARIANTS: dict[str, dict[str, Any]] = {
    "bigcode": _BIGCODE,
    "bigcode-multi-head": _BIGCODE | {"multi_query": False},
    "bigcode-untied": _BIGCODE | {"tie_word_embeddings": False},
    "bigcode-exact-gelu": _BIGCODE | {"activation_function": "gelu"},
    "bigcode-odd-vocabulary": _BIGCODE | {"vocab_size": 323, "n_inner": 100, "layer_norm_epsilon": 1e-3},
    "starcoder2": _STARCODER2,
    "starcoder2-window": _STARCODER2 | {"sliding_window": 8},
    "starcoder2-untied": _STARCODER2 | {"tie_word_embeddings": False},
    "starcoder2-no-bias": _STARCODER2 | {"use_bias": False},
    "starcoder2-exact-gelu": _STARCODER2 | {"hidden_act": "gelu"},
    "starcoder2-one-kv-head": _STARCODER2 | {"num_key_value_heads": 1, "sliding_window": 16},
    "llama": _LLAMA,
    "llama-tied-biases": _LLAMA  # Granite code 3B and 8B; linear scaling: DeepSeek-Coder
    | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
    | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}},
    "llama-llama3-scaling": _LLAMA | {"head_dim": 24, "rope_parameters": _LLAMA3_SCALING},
    "qwen2": _LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True, "rope_parameters": _YARN},
    "qwen3": _LLAMA | {"model_type": "qwen3", "head_dim": 32},
    "mistral": _LLAMA | {"model_type": "mistral", "sliding_window": 16, "hidden_act": "gelu_pytorch_tanh"},
}


def make_model(variant: str, **overrides: Any) -> "Transformer":
    """Our own network of `VARIANTS` with random weights large enough to matter, in eval mode."""
    import torch

    from starcoder.config import ModelConfig
    from starcoder.model import Transformer

    model = Transformer(ModelConfig.from_hf(VARIANTS[variant] | overrides))
    model.initialize(torch.Generator().manual_seed(0), std=0.2)
    return model.eval()


def make_checkpoint(
    variant: str, folder: Path, *, dtype: str = "float32", shards: int = 1, seed: int = 0, **overrides: Any
) -> Path:
    """Write a random checkpoint of `VARIANTS` with transformers, weights and biases large enough to matter.

    `overrides` go into its config; `shards` is the least number of safetensors files. Returns `folder`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**VARIANTS[variant] | overrides))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        parameter.data.normal_(1.0 if "ln_" in name or "norm" in name else 0.0, 0.2, generator=generator)
    model.to(getattr(torch, dtype))
    size_bytes = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(folder, max_shard_size=size_bytes // shards + 1)
    return folder


def load_oracle(folder: Path) -> Any:
    """The same checkpoint in transformers, float32, eager attention, eval mode."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


TokenizerStyle = Literal["santacoder", "starcoder", "starcoder2"]

# Source: the hub's bigcode/santacoder, bigcode/starcoder, bigcode/starcoder2-3b (its list cut short).
SPECIAL_TOKENS: dict[TokenizerStyle, tuple[str, ...]] = {
    "santacoder": ("<|endoftext|>", "<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"),
    "starcoder": (
        *("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<filename>"),
        *("<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>"),
        *("<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<empty_output>", "<commit_before>"),
        *("<commit_msg>", "<commit_after>", "<reponame>"),
    ),
    "starcoder2": (
        *("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<repo_name>"),
        *("<file_sep>", "<issue_start>", "<jupyter_start>"),
    ),
}
_CORPUS = [
    "def add(first, second):\n    return first + second\n",
    "class Box:\n    def __init__(self, size):\n        self.size = size\n\n\n",
    "import os\nfor name in os.listdir('.'):\n    print(name, 2024)\n",
]


def make_tokenizer(style: TokenizerStyle, folder: Path, *, vocab_size: int = 320) -> "Tokenizer":
    """Write a byte-level BPE of at most `vocab_size` tokens, trained on a few lines, and load it.

    The special tokens are the first ids, as in StarCoder; SantaCoder's are the last.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    from starcoder.tokenizer import Tokenizer

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    specials = SPECIAL_TOKENS[style]
    first, last = ((), specials) if style == "santacoder" else (specials, ())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(last),
        special_tokens=list(first),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in last])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": specials[0],
        "eos_token": specials[0],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Tokenizer.load(folder)


def by_peft(oracle: Any, folder: Path) -> Any:
    """`oracle` with the adapter in `folder` as PEFT loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch functions that libraries of PEFT still call
        import peft

        return peft.PeftModel.from_pretrained(oracle, str(folder)).eval()
