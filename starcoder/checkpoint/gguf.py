"""Checkpoint folder -> GGUF file for llama.cpp and what builds on it, through the `gguf` package.

Limits: llama.cpp computes the tanh GELU only, also where the model has the exact one (Granite 20B and 34B):
that is warned of. It attends to the whole context where a Starcoder2 config asks for a sliding window, so
longer texts come out differently.
Source: ggml-org/llama.cpp: docs of GGUF, gguf-py/gguf/constants.py (key and tensor names).
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from starcoder.checkpoint.files import scheme_of
from starcoder.checkpoint.gguf_reader import PRE_TOKENIZERS, patterns
from starcoder.checkpoint.hub import resolve
from starcoder.checkpoint.reader import load
from starcoder.config import Family, ModelConfig
from starcoder.errors import CheckpointError, ConfigError, MissingExtraError
from starcoder.files import read_json, replace_atomically, require_space
from starcoder.model import Transformer
from starcoder.tokenizer import Tokenizer

if TYPE_CHECKING:
    import gguf

log = logging.getLogger(__name__)

GgufType = Literal["f16", "q8_0", "q4_0"]

_ARCHITECTURES: dict[Family, str] = {
    "gpt_bigcode": "starcoder",
    "starcoder2": "starcoder2",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
_OUTSIDE = {"embed": "token_embd", "positions": "position_embd", "norm": "output_norm", "head": "output"}
_INSIDE = {
    "norm1": "attn_norm",
    "attention.qkv": "attn_qkv",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention.out": "attn_output",
    "norm2": "ffn_norm",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # token types


@dataclass(frozen=True, slots=True)
class GgufReport:
    """What was written."""

    num_tensors: int
    num_parameters: int
    size_bytes: int


def export_gguf(model: str | Path | None, output: Path, *, type: GgufType = "f16") -> GgufReport:
    """Write weights, numbers and tokenizer of a checkpoint to one file, which replaces `output` when whole.

    Norms, biases and positions stay float32. In q4_0 the embedding, which may be the head as well, is
    q8_0; a matrix whose rows are no multiple of 32 is f16. Needs memory for one matrix.

    Raises:
        CheckpointError: as `load`, or llama.cpp has nothing that computes this model or its tokenizer.
        ConfigError: the package `gguf` is not installed, or the checkpoint is quantized.
    """
    gguf = _library()
    folder = resolve(model)
    if scheme_of(folder) is not None:
        raise ConfigError(
            f"'{folder}' is quantized, and rounding twice would cost more than once",
            "export the checkpoint that it was made from",
        )
    tokenizer, network = Tokenizer.load(folder), load(folder)
    _require_computable(network.config, folder)
    tensors = list(_tensors(network))
    kinds = {tensor.name: _kind(tensor, type) for tensor in tensors}
    require_space(output, sum(_size_bytes(tensor, kinds[tensor.name]) for tensor in tensors))
    with replace_atomically(output) as part:
        writer = gguf.GGUFWriter(part, _ARCHITECTURES[network.config.family])
        _describe(writer, network.config, _name(model), type)
        _add_tokenizer(writer, folder, tokenizer, network.config)
        for tensor in tensors:
            _announce(writer, tensor, kinds[tensor.name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            values = tensor.values.detach().float().contiguous().numpy()
            writer.write_tensor_data(gguf.quants.quantize(values, kinds[tensor.name]))
        writer.close()
    return GgufReport(len(tensors), network.config.num_parameters, output.stat().st_size)


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("writing GGUF needs gguf, which is not installed", "gguf") from None
    return gguf


def _require_computable(config: ModelConfig, folder: Path) -> None:
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        raise CheckpointError(
            f"'{folder}' scales rotary positions as Llama 3, which is not exported",
            "use convert_hf_to_gguf.py of llama.cpp",
        )
    if config.is_gated and config.activation != "silu":
        raise CheckpointError(
            f"'{folder}' has a gate of {config.activation}; llama.cpp computes silu", "run it with starcoder"
        )
    if config.activation == "gelu":
        log.warning("%s computes the exact GELU; llama.cpp computes its tanh approximation", folder)


def _name(model: str | Path | None) -> str:
    return "starcoder-nano" if model is None else Path(model).name


def _describe(writer: "gguf.GGUFWriter", config: ModelConfig, name: str, type: GgufType) -> None:
    gguf = _library()
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    if config.has_rms_norm:
        writer.add_layer_norm_rms_eps(config.norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_eps)
    if config.head_dim is not None:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.rope_theta is not None:
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_rope_dimension_count(config.head_size)
    if (scaling := config.rope_scaling) is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
        writer.add_rope_scaling_factor(scaling.factor)
        if scaling.kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(scaling.original_positions)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{type.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    values: Tensor  # of the network, mapped: converted when it is written
    is_linear: bool


def _tensors(network: Transformer) -> Iterator[_Tensor]:
    """The network's parameters by their names in GGUF; q, k and v apart for Starcoder2."""
    config = network.config
    for name, parameter in network.named_parameters():
        module, _, kind = name.rpartition(".")
        is_linear = module.startswith("blocks.") and parameter.dim() == 2
        theirs = _their_name(module)
        if theirs.endswith("attn_qkv") and config.family != "gpt_bigcode":
            kv = config.num_kv_heads * config.head_size
            parts = torch.split(parameter, [config.attention_size, kv, kv])
            names = [theirs.replace("qkv", letter) for letter in "qkv"]
            if _ARCHITECTURES[config.family] == "llama":
                heads = config.num_heads, config.num_kv_heads
                parts = *(_turned(part, n) for part, n in zip(parts, heads, strict=False)), parts[2]
        elif theirs.endswith("ffn_up") and config.is_gated:
            parts, names = parameter.chunk(2), [theirs.replace("up", "gate"), theirs]
        else:
            parts, names = (parameter,), [theirs]
        for part_name, part in zip(names, parts, strict=True):
            yield _Tensor(f"{part_name}.{kind}", part, is_linear)
            if (
                is_linear and config.family == "starcoder2" and not config.has_qkv_bias
            ):  # llama.cpp does not load without
                yield _Tensor(f"{part_name}.bias", torch.zeros(len(part)), is_linear=False)


def _turned(rows: Tensor, heads: int) -> Tensor:
    """llama.cpp rotates neighbours of a head where transformers rotates its halves."""
    return rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _their_name(module: str) -> str:
    if not module.startswith("blocks."):
        return _OUTSIDE[module]
    _, layer, inner = module.split(".", 2)
    return f"blk.{layer}.{_INSIDE[inner]}"


def _kind(tensor: _Tensor, wanted: GgufType) -> "gguf.GGMLQuantizationType":
    kinds: type[gguf.GGMLQuantizationType] = _library().GGMLQuantizationType
    if tensor.values.dim() == 1 or tensor.name.startswith("position_embd"):
        return kinds.F32
    if tensor.values.shape[1] % 32:
        return kinds.F16
    return kinds["Q8_0" if wanted == "q4_0" and not tensor.is_linear else wanted.upper()]


def _announce(writer: "gguf.GGUFWriter", tensor: _Tensor, kind: "gguf.GGMLQuantizationType") -> None:
    gguf = _library()
    shape = gguf.quants.quant_shape_to_byte_shape(tuple(tensor.values.shape), kind)
    dtype = torch.empty(0, dtype=torch.uint8).numpy().dtype
    writer.add_tensor_info(tensor.name, shape, dtype, math.prod(shape), raw_dtype=kind)


def _size_bytes(tensor: _Tensor, kind: "gguf.GGMLQuantizationType") -> int:
    return math.prod(_library().quants.quant_shape_to_byte_shape(tuple(tensor.values.shape), kind))


def _add_tokenizer(
    writer: "gguf.GGUFWriter", folder: Path, tokenizer: Tokenizer, config: ModelConfig
) -> None:
    path = folder / "tokenizer.json"
    document = read_json(path)
    special = tokenizer.special_tokens
    ids = document["model"]["vocab"] | special
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"'{path}' has {tokenizer.vocab_size} tokens, the weights have {config.vocab_size}",
            "is the tokenizer of the same checkpoint as the weights?",
        )
    tokens = [f"[PAD{id}]" for id in range(config.vocab_size)]
    types = [_UNUSED] * config.vocab_size
    for text, id in ids.items():
        tokens[id], types[id] = text, _CONTROL if text in special else _NORMAL
    merges = document["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(document, path))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    _add_sentinels(writer, tokenizer)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _add_sentinels(writer: "gguf.GGUFWriter", tokenizer: Tokenizer) -> None:
    keys, sentinels = _library().Keys.Tokenizer, tokenizer.sentinels
    writer.add_bos_token_id(sentinels.eos)
    writer.add_eos_token_id(sentinels.eos)
    writer.add_unk_token_id(sentinels.eos)
    turn_ends = [id for id in sentinels.own_ends if id != sentinels.eos]
    if turn_ends:
        writer.add_eot_token_id(turn_ends[-1])
    writer.add_add_bos_token(False)
    for key, id in (
        (keys.FIM_PRE_ID, sentinels.fim_prefix),
        (keys.FIM_SUF_ID, sentinels.fim_suffix),
        (keys.FIM_MID_ID, sentinels.fim_middle),
        (keys.FIM_PAD_ID, sentinels.fim_pad),
        (keys.FIM_REP_ID, sentinels.repo_name),
        (keys.FIM_SEP_ID, sentinels.file_sep),
    ):
        if id is not None:
            writer.add_uint32(key, id)


def _pre_tokenizer(document: dict[str, Any], path: Path) -> str:
    """llama.cpp's name for how text is cut before merging."""
    top = document.get("pre_tokenizer") or {}
    steps = top.get("pretokenizers", [top])
    kinds = [step.get("type") for step in steps]
    plain = all(
        step.get("individual_digits", True)
        and step.get("use_regex", True)
        and not step.get("add_prefix_space", False)
        for step in steps
    )
    if plain and kinds == ["Digits", "ByteLevel"]:
        return "starcoder"
    if plain and kinds == ["ByteLevel"]:
        return "gpt-2"
    for name, cuts in PRE_TOKENIZERS.items():
        if patterns(steps) and patterns(cuts) == patterns(steps):
            return name
    raise CheckpointError(
        f"'{path}' cuts text by {kinds}, for which llama.cpp has no name",
        f"supported: ByteLevel, with or without Digits before it, and {', '.join(PRE_TOKENIZERS)}",
    )
