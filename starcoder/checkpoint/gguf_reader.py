"""GGUF file -> the folder that the other readers know, and its tensors by transformers' names.

The folder is made once for each file, in the user's cache: config.json, tokenizer.json and the chat template
from the file's metadata. Weights stay in the file: floats are mapped, and quantized matrices become floats
one at a time as they are read.

Limits: architectures starcoder, starcoder2, llama, qwen2 and qwen3; byte-level BPE; no split files.
Source: ggml-org/ggml: docs/gguf.md; ggml-org/llama.cpp: gguf-py/gguf/constants.py, src/llama-vocab.cpp (how
text is cut) and convert_hf_to_gguf.py (the order of rows of queries and keys).
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starcoder.config import Family
from starcoder.errors import CheckpointError, MissingExtraError
from starcoder.files import read_json, replace_atomically

GGUF_FILE = "gguf_file"  # of the folder's config.json
_FAMILIES: dict[str, Family] = {
    "starcoder": "gpt_bigcode",
    "starcoder2": "starcoder2",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TABLE = "gguf_tensors.json"
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # token types
_OUTSIDE = {
    "token_embd": ("transformer.wte", "model.embed_tokens"),
    "position_embd": ("transformer.wpe", ""),
    "output_norm": ("transformer.ln_f", "model.norm"),
    "output": ("lm_head", "lm_head"),
}
_INSIDE_BIGCODE = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_INSIDE_STARCODER2 = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_INSIDE_LLAMA = _INSIDE_STARCODER2 | {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_GPT2 = _BYTES | {"use_regex": True}
_CUT = _BYTES | {"use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _split(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# How text is cut, by llama.cpp's name. Source: the tokenizer.json of a model of each kind.
PRE_TOKENIZERS: dict[str, list[dict[str, object]]] = {
    **{name: [_DIGITS, _GPT2] for name in ("starcoder", "refact", "smollm", "command-r", "codeshell")},
    **{name: [_GPT2] for name in ("gpt-2", "mpt", "olmo")},
    **{name: [_split(_WORDS % r"\p{N}"), _CUT] for name in ("qwen2", "deepseek-r1-qwen")},
    **{name: [_split(_WORDS % r"\p{N}{1,3}"), _CUT] for name in ("llama-bpe", "llama3", "llama-v3")},
    "deepseek-coder": [
        *map(_split, (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")),
        _DIGITS,
        _CUT,
    ],
}


def patterns(steps: list[dict[str, Any]]) -> list[str]:
    """The regular expressions by which the steps of a pre-tokenizer cut text."""
    return [step["pattern"]["Regex"] for step in steps if "Regex" in step.get("pattern", {})]


def unpacked(path: Path) -> Path:
    """The folder of a GGUF file: config.json, tokenizer.json and the chat template from its metadata.

    Raises:
        CheckpointError: not GGUF, or a model or tokenizer that does not run here.
        MissingExtraError: the package `gguf` is not installed.
    """
    path = path.resolve()
    state = path.stat()
    key = hashlib.sha256(f"{_VERSION} {path} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = _cache() / f"{path.stem}-{key}"
    if folder.is_dir():
        return folder
    file = _Metadata(path)
    documents = {
        "config.json": file.config(),
        "tokenizer.json": file.tokenizer(),
        "tokenizer_config.json": file.tokenizer_config(),
        _TABLE: file.table(),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replace_atomically(folder) as part:
            part.mkdir()
            for name, document in documents.items():
                (part / name).write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    except OSError:
        if not folder.is_dir():  # else another process made it
            raise
    return folder


_VERSION = 1  # of what is written to the folder


def gguf_of(folder: Path) -> "GgufWeights | None":
    """The weights of the file that a folder was made from; None: it is a folder of its own."""
    if folder.parent != _cache():
        return None
    path = Path(str(read_json(folder / "config.json").get(GGUF_FILE)))
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing", "give the GGUF file where it is now")
    return GgufWeights(folder, path)


def _cache() -> Path:
    return Path.home() / ".cache" / "starcoder" / "gguf"


@dataclass(frozen=True)
class _Metadata:
    """What a file says of its model: text and numbers from outside, checked where they are used."""

    path: Path

    @cached_property
    def _reader(self) -> Any:
        gguf = _library()
        try:
            return gguf.GGUFReader(self.path)
        except (ValueError, KeyError, IndexError, OSError, UnicodeDecodeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"'{self.path}' cannot be read as GGUF: {reason}",
                "it may be partial; fetch it again",
            ) from None

    def _get(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        if field is None:
            if default is None:
                raise CheckpointError(f"'{self.path}' has no {key!r}", "it may be partial; fetch it again")
            return default
        return field.contents()

    def _count(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or value < 1:  # some models have a list, a number for each layer
            raise CheckpointError(
                f"'{self.path}' says {key} {value!r}; expected a whole number",
                "only models whose layers are alike run here",
            )
        return value

    @cached_property
    def architecture(self) -> str:
        found = self._get("general.architecture")
        if found not in _FAMILIES:
            raise CheckpointError(
                f"'{self.path}' holds a model of architecture {found!r}, which is not supported",
                f"supported: {', '.join(_FAMILIES)}",
            )
        return str(found)

    @cached_property
    def _tensors(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in self._reader.tensors}

    def config(self) -> dict[str, Any]:
        """config.json as transformers has it, and where the weights are."""
        name, family = self.architecture, _FAMILIES[self.architecture]
        if "rope_freqs.weight" in self._tensors:
            raise CheckpointError(
                f"'{self.path}' has its own rotary factors, which are not read",
                "take the checkpoint in safetensors",
            )
        heads = self._count(f"{name}.attention.head_count")
        kv_heads = self._count(f"{name}.attention.head_count_kv", heads)
        hidden = self._count(f"{name}.embedding_length")
        config: dict[str, Any] = {
            "model_type": family,
            "vocab_size": int(self._tensors["token_embd.weight"].shape[1]),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "eos_token_id": self._get("tokenizer.ggml.eos_token_id", 0),
            "bos_token_id": self._get("tokenizer.ggml.bos_token_id", 0),
            GGUF_FILE: str(self.path),
        }
        shared = {
            "layers": self._get(f"{name}.block_count"),
            "inner": self._get(f"{name}.feed_forward_length"),
            "positions": self._get(f"{name}.context_length"),
        }
        if family == "gpt_bigcode":
            return config | {
                "n_embd": hidden,
                "n_inner": shared["inner"],
                "n_layer": shared["layers"],
                "n_head": heads,
                "multi_query": kv_heads == 1,
                "n_positions": int(self._tensors["position_embd.weight"].shape[1]),
                "layer_norm_epsilon": _short(self._get(f"{name}.attention.layer_norm_epsilon")),
            }
        config |= {
            "hidden_size": hidden,
            "intermediate_size": shared["inner"],
            "num_hidden_layers": shared["layers"],
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": shared["positions"],
            "head_dim": self._count(f"{name}.attention.key_length", hidden // heads),
            "rope_parameters": self._rope(name),
            "sliding_window": None,  # llama.cpp has none for these
        }
        if family == "starcoder2":
            eps = _short(self._get(f"{name}.attention.layer_norm_epsilon"))
            return config | {"norm_epsilon": eps, "use_bias": "blk.0.attn_q.bias" in self._tensors}
        return config | {
            "rms_norm_eps": _short(self._get(f"{name}.attention.layer_norm_rms_epsilon")),
            "attention_bias": "blk.0.attn_output.bias" in self._tensors,
            "mlp_bias": "blk.0.ffn_down.bias" in self._tensors,
        }

    def _rope(self, name: str) -> dict[str, Any]:
        kind = self._get(f"{name}.rope.scaling.type", "none")
        rope = {"rope_theta": _short(self._get(f"{name}.rope.freq_base", 10000.0))}
        if kind == "none":
            return rope | {"rope_type": "default"}
        rope |= {"rope_type": kind, "factor": _short(self._get(f"{name}.rope.scaling.factor"))}
        original = self._get(f"{name}.rope.scaling.original_context_length", 0)
        return rope | ({"original_max_position_embeddings": original} if original else {})

    def tokenizer(self) -> dict[str, Any]:
        """tokenizer.json: byte-level BPE."""
        kind, cut = self._get("tokenizer.ggml.model"), self._get("tokenizer.ggml.pre", "default")
        if kind != "gpt2":
            raise CheckpointError(
                f"'{self.path}' has a tokenizer of kind {kind!r}; only byte-level BPE is read",
                "take the checkpoint in safetensors, if it has a tokenizer.json of byte-level BPE",
            )
        if cut not in PRE_TOKENIZERS:
            raise CheckpointError(
                f"'{self.path}' cuts text as {cut!r}, which is not known here",
                f"known: {', '.join(sorted(PRE_TOKENIZERS))}",
            )
        texts, merges = self._get("tokenizer.ggml.tokens"), self._get("tokenizer.ggml.merges")
        types = self._get("tokenizer.ggml.token_type", [1] * len(texts))
        added = [
            {"id": id, "content": text, "special": True, "normalized": False}
            | {"single_word": False, "lstrip": False, "rstrip": False}
            for id, (text, type) in enumerate(zip(texts, types, strict=True))
            if type in (_CONTROL, _USER_DEFINED)
        ]
        vocab = {text: id for id, text in enumerate(texts) if types[id] != _UNUSED}
        return {
            "version": "1.0",
            "added_tokens": added,
            "normalizer": {"type": "NFC"} if cut == "qwen2" else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[cut]},
            "decoder": _BYTES,
            "model": {
                "type": "BPE",
                "vocab": vocab,
                "merges": merges,
                "ignore_merges": cut.startswith("llama"),
            },
        }

    def tokenizer_config(self) -> dict[str, Any]:
        """tokenizer_config.json: the chat template, if there is one, and the end-of-text token."""
        template, texts = self._get("tokenizer.chat_template", ""), self._get("tokenizer.ggml.tokens")
        eos = texts[self._get("tokenizer.ggml.eos_token_id", 0)]
        return {"eos_token": eos} | ({"chat_template": template} if template else {})

    def table(self) -> dict[str, dict[str, object]]:
        """Where each tensor is in the file, by transformers' name."""
        return {
            theirs: {
                "type": tensor.tensor_type.name,
                "shape": [int(size) for size in reversed(tensor.shape)],
                "offset": int(tensor.data_offset),
                "size_bytes": int(tensor.n_bytes),
                "heads": self._turned(tensor.name),
            }
            for theirs, tensor in self._named()
        }

    def _named(self) -> Iterator[tuple[str, Any]]:
        is_bigcode = self.architecture == "starcoder"
        llama = _INSIDE_STARCODER2 if self.architecture == "starcoder2" else _INSIDE_LLAMA
        for name, tensor in self._tensors.items():
            module, _, kind = name.rpartition(".")
            if module in _OUTSIDE:
                yield f"{_OUTSIDE[module][not is_bigcode]}.{kind}", tensor
                continue
            _, layer, inner = module.split(".", 2) if module.count(".") >= 2 else ("", "", module)
            inside = (_INSIDE_BIGCODE if is_bigcode else llama).get(inner)
            prefix = "transformer.h" if is_bigcode else "model.layers"
            yield (name if inside is None else f"{prefix}.{layer}.{inside}.{kind}"), tensor

    def _turned(self, name: str) -> int:
        """How many heads have their rows in llama.cpp's order; 0: none.

        Negative for GPTBigCode without multi-query: queries of all heads, then keys, then values, where
        transformers has the three of each head.
        """
        if self.architecture == "starcoder" and ".attn_qkv." in name:
            heads = self._count("starcoder.attention.head_count")
            return 0 if self._count("starcoder.attention.head_count_kv", heads) == 1 else -heads
        if self.architecture != "llama" or not name.endswith((".weight", ".bias")):
            return 0
        key = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(name.rsplit(".", 2)[-2])
        return self._count(f"llama.attention.{key}", self._count("llama.attention.head_count")) if key else 0


class GgufWeights:
    """The tensors of the file that a folder was made from, by transformers' names."""

    def __init__(self, folder: Path, path: Path):
        self.path = path
        self._table = read_json(folder / _TABLE)
        self._bytes: Tensor | None = None  # the file, mapped

    @property
    def quantized_types(self) -> list[str]:
        """Names of the types of what is not floats, such as Q4_K."""
        return sorted({entry["type"] for entry in self._table.values()} - set(_FLOATS))

    def tensors(self) -> dict[str, Tensor]:
        """Floats mapped, and tensors on the meta device for what `read` converts."""
        return {name: self._mapped(entry) for name, entry in self._table.items()}

    def _mapped(self, entry: dict[str, Any]) -> Tensor:
        if entry["type"] in _FLOATS and not entry["heads"]:
            return self._floats(entry)
        return torch.empty(entry["shape"], dtype=_FLOATS.get(entry["type"], torch.float32), device="meta")

    def _raw(self, entry: dict[str, Any]) -> Tensor:
        if self._bytes is None:
            # Private: what is written to the tensors never reaches the file.
            size = self.path.stat().st_size
            self._bytes = torch.from_file(str(self.path), shared=False, size=size, dtype=torch.uint8)
        return self._bytes[entry["offset"] : entry["offset"] + entry["size_bytes"]]

    def _floats(self, entry: dict[str, Any]) -> Tensor:
        return self._raw(entry).view(_FLOATS[entry["type"]]).view(entry["shape"])

    def read(self, name: str) -> Tensor:
        """One tensor as floats, with rows as transformers has them.

        Raises:
            CheckpointError: a type that the package `gguf` does not read.
        """
        entry = self._table[name]
        shape, heads = entry["shape"], entry["heads"]
        out = self._floats(entry) if entry["type"] in _FLOATS else self._dequantized(name, entry)
        if heads > 0:  # llama.cpp rotates neighbours of a head where transformers rotates its halves
            return out.view(heads, -1, 2, *shape[1:]).transpose(1, 2).reshape(shape)
        return out if heads == 0 else out.view(3, -heads, -1, *shape[1:]).transpose(0, 1).reshape(shape)

    def _dequantized(self, name: str, entry: dict[str, Any]) -> Tensor:
        gguf = _library()
        kind = gguf.GGMLQuantizationType[entry["type"]]
        rows = self._raw(entry).view(entry["shape"][0], -1).numpy()
        try:
            return torch.from_numpy(gguf.quants.dequantize(rows, kind)).view(entry["shape"])
        except NotImplementedError:
            raise CheckpointError(
                f"'{self.path}' holds {name!r} as {entry['type']}, which is not read",
                "take a file in Q4_K_M, Q5_K_M, Q6_K, Q8_0 or F16",
            ) from None


def _short(value: float) -> float:
    """The decimal number that was stored as float32."""
    return float(f"{value:.7g}")


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("reading GGUF needs gguf, which is not installed", "gguf") from None
    return gguf
