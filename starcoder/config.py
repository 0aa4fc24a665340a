"""ModelConfig: the numbers that define a network, read from the `config.json` of both families."""

from dataclasses import dataclass
from typing import Any, Literal

from starcoder.errors import CheckpointError

Family = Literal["gpt_bigcode", "starcoder2"]

# Source: transformers `activations.py`; all three names are the tanh approximation.
_TANH_GELU = {"gelu_pytorch_tanh", "gelu_new", "gelu_fast"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """One network. The families differ in positions, key/value heads and window only."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int  # 1 is multi-query attention (StarCoder), 2 and up is grouped-query (Starcoder2)
    max_positions: int
    norm_eps: float = 1e-5
    rope_theta: float | None = None  # None: positions are a learned table
    sliding_window: int | None = None  # tokens a query sees, itself included; None: all before it
    tied_embeddings: bool = True
    bias: bool = True
    gelu_tanh: bool = True  # False: the exact (erf) GELU

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def num_parameters(self) -> int:
        """Parameters stored, the tied head counted once."""
        D, F = self.hidden_size, self.intermediate_size
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_size
        biases = qkv + D + F + D if self.bias else 0
        block = D * (qkv + D + 2 * F) + biases + 4 * D
        table = self.vocab_size * D
        positions = 0 if self.rope_theta else self.max_positions * D
        return table * (1 if self.tied_embeddings else 2) + positions + self.num_layers * block + 2 * D

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "ModelConfig":
        """Read Hugging Face's `config.json`.

        Raises:
            CheckpointError: another family, or a variant of these families that is not supported.
        Source: transformers `models/{gpt_bigcode,starcoder2}/configuration_*.py`.
        """
        family = config.get("model_type")
        if config.get("quantization_config"):
            raise CheckpointError(
                "config.json says the weights are quantized",
                "take the checkpoint that is not, and quantize here",
            )
        try:
            if family == "gpt_bigcode":
                return cls._from_gpt_bigcode(config)
            if family == "starcoder2":
                return cls._from_starcoder2(config)
        except KeyError as error:
            raise CheckpointError(
                f"config.json of family {family!r} has no {error.args[0]!r}",
                "the file is incomplete; download the checkpoint again",
            ) from None
        raise CheckpointError(
            f"config.json says model_type {family!r}, which is not of the StarCoder family",
            "supported: gpt_bigcode (StarCoder, StarChat, bigcode/gpt_bigcode-santacoder) and starcoder2",
        )

    @classmethod
    def _from_gpt_bigcode(cls, config: dict[str, Any]) -> "ModelConfig":
        if not config.get("scale_attn_weights", True):
            raise CheckpointError("config.json says scale_attn_weights false, which is not supported")
        num_heads = _count(config, "n_head")
        hidden_size = _divided(config, "n_embd", num_heads)
        has_inner = config.get("n_inner") is not None
        return cls(
            family="gpt_bigcode",
            vocab_size=_count(config, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_count(config, "n_inner") if has_inner else 4 * hidden_size,
            num_layers=_count(config, "n_layer"),
            num_heads=num_heads,
            num_kv_heads=1 if config.get("multi_query", True) else num_heads,
            max_positions=_count(config, "n_positions"),
            norm_eps=config.get("layer_norm_epsilon", 1e-5),
            tied_embeddings=config.get("tie_word_embeddings", True),
            gelu_tanh=_is_tanh_gelu(config.get("activation_function", "gelu_pytorch_tanh")),
        )

    @classmethod
    def _from_starcoder2(cls, config: dict[str, Any]) -> "ModelConfig":
        # transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`.
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise CheckpointError(f"config.json asks for rotary scaling {rope!r}, which is not supported")
        for key, only in (("norm_type", "layer_norm"), ("mlp_type", "default")):
            if config.get(key, only) != only:
                raise CheckpointError(f"config.json says {key} {config[key]!r}; only {only!r} is supported")
        num_kv_heads = _count(config, "num_key_value_heads")
        num_heads = _divided(config, "num_attention_heads", num_kv_heads)
        has_window = config.get("sliding_window") is not None
        return cls(
            family="starcoder2",
            vocab_size=_count(config, "vocab_size"),
            hidden_size=_divided(config, "hidden_size", 2 * num_heads),  # rotary halves each head
            intermediate_size=_count(config, "intermediate_size"),
            num_layers=_count(config, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            max_positions=_count(config, "max_position_embeddings"),
            norm_eps=config.get("norm_epsilon", 1e-5),
            rope_theta=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
            sliding_window=_count(config, "sliding_window") if has_window else None,
            tied_embeddings=config.get("tie_word_embeddings", True),
            bias=config.get("use_bias", True),
            gelu_tanh=_is_tanh_gelu(config.get("hidden_act", "gelu_pytorch_tanh")),
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that transformers reads as the same network."""
        activation = "gelu_pytorch_tanh" if self.gelu_tanh else "gelu"
        if self.family == "gpt_bigcode":
            return {
                "model_type": "gpt_bigcode",
                "architectures": ["GPTBigCodeForCausalLM"],
                "vocab_size": self.vocab_size,
                "n_embd": self.hidden_size,
                "n_inner": self.intermediate_size,
                "n_layer": self.num_layers,
                "n_head": self.num_heads,
                "multi_query": self.num_kv_heads == 1,
                "n_positions": self.max_positions,
                "layer_norm_epsilon": self.norm_eps,
                "tie_word_embeddings": self.tied_embeddings,
                "activation_function": activation,
                "scale_attn_weights": True,
                "bos_token_id": 0,
                "eos_token_id": 0,
            }
        return {
            "model_type": "starcoder2",
            "architectures": ["Starcoder2ForCausalLM"],
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_positions,
            "norm_epsilon": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "sliding_window": self.sliding_window,
            "tie_word_embeddings": self.tied_embeddings,
            "use_bias": self.bias,
            "hidden_act": activation,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }


def _count(config: dict[str, Any], key: str) -> int:
    value = config[key]
    if isinstance(value, int) and value > 0:
        return value
    raise CheckpointError(f"config.json says {key} {value!r}; expected a whole number above 0")


def _divided(config: dict[str, Any], key: str, divisor: int) -> int:
    value = _count(config, key)
    if value % divisor:
        raise CheckpointError(f"config.json says {key} {value}, which is not a multiple of {divisor}")
    return value


def _is_tanh_gelu(name: str) -> bool:
    if name in _TANH_GELU:
        return True
    if name == "gelu":
        return False
    raise CheckpointError(
        f"config.json says activation {name!r}, which is not supported",
        f"supported: gelu and {', '.join(sorted(_TANH_GELU))}",
    )
