"""ModelConfig: the numbers that define a network, read from the `config.json` of every family that runs here.

One network with switches covers them all: StarCoder (`gpt_bigcode`), Starcoder2, and the models of Llama's
shape (`llama`, `qwen2`, `qwen3`, `mistral`): RMSNorm, gated feed-forward, rotary positions, grouped heads.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from starcoder.errors import CheckpointError

Family = Literal["gpt_bigcode", "starcoder2", "llama", "qwen2", "qwen3", "mistral"]
Activation = Literal["gelu_tanh", "gelu", "silu"]

# Source: transformers `activations.py`; the first three names are the tanh approximation.
_ACTIVATIONS: dict[str, Activation] = {
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast"), "gelu_tanh"),
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
}
_ACTIVATION_NAMES: dict[Activation, str] = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "silu": "silu"}
_ARCHITECTURES: dict[Family, str] = {
    "gpt_bigcode": "GPTBigCodeForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
}
_DAMAGED = "the file is edited or damaged; download it again"
_UNSUPPORTED = "this variant is not supported; `starcoder plan` without a model lists models that run here"


@dataclass(frozen=True, kw_only=True, slots=True)
class RotaryScaling:
    """Rotary frequencies stretched for longer texts. Source: transformers `modeling_rope_utils.py`."""

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_positions: int = 0  # of the texts before stretching; not of linear
    low: float = 1.0  # llama3: low_freq_factor; yarn: beta_slow
    high: float = 4.0  # llama3: high_freq_factor; yarn: beta_fast
    attention_factor: float = 1.0  # what cosines and sines are multiplied with; yarn alone
    is_truncated: bool = True  # yarn: whether the range of stretched dimensions is rounded


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """One network. The defaults are StarCoder's."""

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int  # 1 is multi-query attention (StarCoder), 2 and up is grouped-query
    max_positions: int
    head_dim: int | None = None  # None: hidden_size / num_heads
    norm_eps: float = 1e-5
    rope_theta: float | None = None  # None: positions are a learned table
    rope_scaling: RotaryScaling | None = None
    sliding_window: int | None = None  # tokens a query sees, itself included; None: all before it
    tied_embeddings: bool = True
    has_qkv_bias: bool = True
    has_out_bias: bool = True  # of the attention's output
    has_mlp_bias: bool = True
    has_rms_norm: bool = False  # RMSNorm instead of LayerNorm
    has_qk_norm: bool = False  # queries and keys of each head are normed before rotation
    is_gated: bool = False  # down(activation(gate(x)) * up(x)) instead of down(activation(up(x)))
    activation: Activation = "gelu_tanh"

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def qkv_size(self) -> int:
        """Values that the attention computes of each token: queries, keys and values of all heads."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_size

    @property
    def attention_size(self) -> int:
        """Values of all query heads; the hidden size, unless `head_dim` says otherwise."""
        return self.num_heads * self.head_size

    @property
    def up_size(self) -> int:
        """Outputs of the first linear layer of the feed-forward: gate and up, where it is gated."""
        return self.intermediate_size * (2 if self.is_gated else 1)

    @property
    def num_parameters(self) -> int:
        """Parameters stored, the tied head counted once."""
        D = self.hidden_size
        matrices = D * (self.qkv_size + self.attention_size + self.up_size + self.intermediate_size)
        biases = self.has_qkv_bias * self.qkv_size + self.has_out_bias * D
        biases += self.has_mlp_bias * (self.up_size + D)
        norm = D if self.has_rms_norm else 2 * D
        block = matrices + biases + 2 * norm + (2 * self.head_size if self.has_qk_norm else 0)
        tables = self.vocab_size * D * (1 if self.tied_embeddings else 2)
        positions = 0 if self.rope_theta else self.max_positions * D
        return tables + positions + self.num_layers * block + norm

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> "ModelConfig":
        """Read Hugging Face's `config.json`.

        Raises:
            CheckpointError: another family, a variant of these families that is not supported, or a value of
                the wrong type.
        Source: transformers `models/{gpt_bigcode,starcoder2,llama,qwen2,qwen3,mistral}/configuration_*.py`.
        """
        family = config.get("model_type")
        if (method := quantization_method(config)) is not None:
            raise CheckpointError(
                f"config.json says the weights are quantized by {method!r}",
                "take the checkpoint that is not, and quantize here",
            )
        fields = _Fields(config, f"config.json of family {family!r}")
        if family == "gpt_bigcode":
            return _from_gpt_bigcode(fields)
        if family == "starcoder2":
            return _from_starcoder2(fields)
        if family in ("llama", "qwen2", "qwen3", "mistral"):
            return _from_llama_shaped(fields, family)
        raise CheckpointError(
            f"config.json says model_type {family!r}, which is not supported",
            f"supported: {', '.join(get_args(Family))} (gpt_bigcode: StarCoder, StarChat, SantaCoder as "
            "bigcode/gpt_bigcode-santacoder, Granite 20B and 34B code)",
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` that transformers reads as the same network."""
        config: dict[str, Any] = {
            "model_type": self.family,
            "architectures": [_ARCHITECTURES[self.family]],
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": self.tied_embeddings,
        }
        activation = _ACTIVATION_NAMES[self.activation]
        if self.family == "gpt_bigcode":
            return config | {
                "n_embd": self.hidden_size,
                "n_inner": self.intermediate_size,
                "n_layer": self.num_layers,
                "n_head": self.num_heads,
                "multi_query": self.num_kv_heads == 1,
                "n_positions": self.max_positions,
                "layer_norm_epsilon": self.norm_eps,
                "activation_function": activation,
                "scale_attn_weights": True,
                "bos_token_id": 0,
                "eos_token_id": 0,
            }
        config |= {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_theta": self.rope_theta} | _rope_to_hf(self.rope_scaling),
            "sliding_window": self.sliding_window,
            "hidden_act": activation,
        }
        if self.head_dim is not None:
            config["head_dim"] = self.head_dim
        if self.family == "starcoder2":
            own = {"norm_epsilon": self.norm_eps, "use_bias": self.has_qkv_bias}
            return config | own | {"bos_token_id": 0, "eos_token_id": 0}
        config["rms_norm_eps"] = self.norm_eps
        if self.family in ("llama", "qwen3"):
            config["attention_bias"] = self.has_out_bias
        if self.family == "llama":
            config["mlp_bias"] = self.has_mlp_bias
        if self.family in ("qwen2", "qwen3"):
            window = self.sliding_window is not None
            config |= {"use_sliding_window": window, "max_window_layers": 0 if window else self.num_layers}
        return config


def quantization_method(config: dict[str, Any]) -> str | None:
    """Who quantized the weights, as `quantization_config` says; None: they are floats."""
    entry = config.get("quantization_config")
    if not entry:
        return None
    if not isinstance(entry, dict):
        raise CheckpointError(f"config.json says quantization_config {entry!r}; expected an object", _DAMAGED)
    loads = [entry.get("load_in_4bit"), entry.get("load_in_8bit")]
    if loads != [None, None] and not any(loads):
        return None  # bitsandbytes was configured and not used
    return str(entry.get("quant_method", "bitsandbytes"))


class _Fields:
    """The entries of a config.json, each checked for its type where it is read."""

    def __init__(self, config: dict[str, Any], name: str):
        self.config, self._name = config, name

    def get(self, key: str) -> Any:
        if key not in self.config:
            raise CheckpointError(
                f"{self._name} has no {key!r}",
                "the file is incomplete; download the checkpoint again",
            )
        return self.config[key]

    def count(self, key: str) -> int:
        """A whole number above 0."""
        value = self.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        raise _wrong(key, value, "a whole number above 0")

    def count_or(self, key: str, default: int | None) -> int | None:
        """The same, or `default` for what is missing or null."""
        return default if self.config.get(key) is None else self.count(key)

    def divided(self, key: str, divisor: int) -> int:
        value = self.count(key)
        if value % divisor:
            raise CheckpointError(
                f"config.json says {key} {value}, which is not a multiple of {divisor}", _DAMAGED
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.get(key) if default is None else self.config.get(key, default)
        if _is_number(value) and value > 0:
            return float(value)
        raise _wrong(key, value, "a number above 0")

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key, default)
        if isinstance(value, bool):
            return value
        raise _wrong(key, value, "true or false")

    def only(self, key: str, value: object) -> None:
        """Refuse any other value than the one that runs here."""
        if (found := self.config.get(key, value)) != value:
            raise CheckpointError(
                f"config.json says {key} {found!r}; only {value!r} is supported", _UNSUPPORTED
            )

    def activation(self, key: str, default: str) -> Activation:
        name = self.config.get(key, default)
        if isinstance(name, str) and name in _ACTIVATIONS:
            return _ACTIVATIONS[name]
        raise CheckpointError(
            f"config.json says activation {name!r}, which is not supported",
            f"supported: {', '.join(_ACTIVATIONS)}",
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(key: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(f"config.json says {key} {value!r}; expected {expected}", _DAMAGED)


def _from_gpt_bigcode(fields: _Fields) -> ModelConfig:
    fields.only("scale_attn_weights", True)
    num_heads = fields.count("n_head")
    hidden_size = fields.divided("n_embd", num_heads)
    return ModelConfig(
        family="gpt_bigcode",
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.count_or("n_inner", None) or 4 * hidden_size,
        num_layers=fields.count("n_layer"),
        num_heads=num_heads,
        num_kv_heads=1 if fields.flag("multi_query", True) else num_heads,
        max_positions=fields.count("n_positions"),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        tied_embeddings=fields.flag("tie_word_embeddings", True),
        activation=fields.activation("activation_function", "gelu_pytorch_tanh"),
    )


def _from_starcoder2(fields: _Fields) -> ModelConfig:
    fields.only("norm_type", "layer_norm")
    fields.only("mlp_type", "default")
    bias = fields.flag("use_bias", True)
    return ModelConfig(
        family="starcoder2",
        **_rotary_shape(fields),
        norm_eps=fields.number("norm_epsilon", 1e-5),
        sliding_window=fields.count_or("sliding_window", None),
        tied_embeddings=fields.flag("tie_word_embeddings", True),
        has_qkv_bias=bias,
        has_out_bias=bias,
        has_mlp_bias=bias,
        activation=fields.activation("hidden_act", "gelu_pytorch_tanh"),
    )


def _from_llama_shaped(fields: _Fields, family: Family) -> ModelConfig:
    has_attention_bias = family in ("llama", "qwen3") and fields.flag("attention_bias", False)
    return ModelConfig(
        family=family,
        **_rotary_shape(fields),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        sliding_window=_window(fields, family),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        has_qkv_bias=family == "qwen2" or has_attention_bias,
        has_out_bias=has_attention_bias,
        has_mlp_bias=family == "llama" and fields.flag("mlp_bias", False),
        has_rms_norm=True,
        has_qk_norm=family == "qwen3",
        is_gated=True,
        activation=fields.activation("hidden_act", "silu"),
    )


def _rotary_shape(fields: _Fields) -> dict[str, Any]:
    """What all rotary families have, in the same words."""
    num_heads = fields.count("num_attention_heads")
    num_kv_heads = fields.count_or("num_key_value_heads", None) or num_heads
    fields.divided("num_attention_heads", num_kv_heads)
    max_positions = fields.count("max_position_embeddings")
    fields.only("partial_rotary_factor", 1.0)
    head_dim = fields.count_or("head_dim", 128 if fields.config.get("model_type") == "qwen3" else None)
    # Rotation takes the two halves of each head.
    hidden_size = fields.count("hidden_size") if head_dim else fields.divided("hidden_size", 2 * num_heads)
    if head_dim is not None and fields.divided("head_dim", 2) * num_heads == hidden_size:
        head_dim = None
    theta, scaling = _rope(fields, max_positions)
    return {
        "vocab_size": fields.count("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": fields.count("intermediate_size"),
        "num_layers": fields.count("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "max_positions": max_positions,
        "head_dim": head_dim,
        "rope_theta": theta,
        "rope_scaling": scaling,
    }


def _window(fields: _Fields, family: Family) -> int | None:
    """The sliding window of all layers; layers of both kinds are refused."""
    if family == "llama":
        return None
    if family == "mistral":
        default = None if "sliding_window" in fields.config else 4096
        return fields.count_or("sliding_window", default)
    if not fields.flag("use_sliding_window", False):
        return None
    first = fields.config.get("max_window_layers", 28)
    num_layers = fields.count("num_hidden_layers")
    if not _is_number(first) or first >= num_layers:
        return None
    if first > 0:
        raise CheckpointError(
            f"config.json says use_sliding_window for the layers from {first}; all or none are supported",
            _UNSUPPORTED,
        )
    return fields.count_or("sliding_window", 4096)


def _rope(fields: _Fields, max_positions: int) -> tuple[float, RotaryScaling | None]:
    """Base and scaling. transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`."""
    found = fields.config.get("rope_parameters") or fields.config.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise _wrong("rope_scaling", found, "an object")
    kind = found.get("rope_type", found.get("type", "default"))
    values = _Fields(found, "rotary scaling in config.json")
    theta = values if "rope_theta" in found else fields
    base = theta.number("rope_theta", 10000.0)
    values.only("partial_rotary_factor", 1.0)
    if kind == "default":
        return base, None
    if kind not in ("linear", "llama3", "yarn"):
        raise CheckpointError(
            f"config.json asks for rotary scaling of type {kind!r}; supported: linear, llama3, yarn",
            _UNSUPPORTED,
        )
    original = values.count_or("original_max_position_embeddings", max_positions) or max_positions
    if kind == "linear":
        return base, RotaryScaling(kind="linear", factor=values.number("factor"))
    if kind == "llama3":
        low, high = values.number("low_freq_factor"), values.number("high_freq_factor")
        scaling = RotaryScaling(
            kind="llama3", factor=values.number("factor"), original_positions=original, low=low, high=high
        )
        return base, scaling
    factor = values.number("factor") if found.get("factor") is not None else max_positions / original
    return base, RotaryScaling(
        kind="yarn",
        factor=factor,
        original_positions=original,
        low=values.number("beta_slow", 1.0),
        high=values.number("beta_fast", 32.0),
        attention_factor=_yarn_attention(values, factor),
        is_truncated=values.flag("truncate", True),
    )


def _yarn_attention(values: _Fields, factor: float) -> float:
    """Source: Peng et al. 2023, arXiv:2309.00071, section 3.4; DeepSeek's `mscale` as transformers has it."""
    if values.config.get("attention_factor") is not None:
        return values.number("attention_factor")

    def scale(by: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    if values.config.get("mscale") and values.config.get("mscale_all_dim"):
        return scale(values.number("mscale")) / scale(values.number("mscale_all_dim"))
    return scale(1.0)


def _rope_to_hf(scaling: RotaryScaling | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default"}
    out: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        out["original_max_position_embeddings"] = scaling.original_positions
    if scaling.kind == "llama3":
        out |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    if scaling.kind == "yarn":
        out |= {"beta_slow": scaling.low, "beta_fast": scaling.high, "truncate": scaling.is_truncated}
        out["attention_factor"] = scaling.attention_factor
    return out
