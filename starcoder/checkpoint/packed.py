"""Quantized checkpoint folders: our own layout, mapped from the file straight into packed layers.

Tensors have the names of our own network, for q, k and v are one matrix here. docs/quantization.md
describes the files for other readers.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from starcoder.checkpoint.files import (
    DOWNLOAD_AGAIN,
    METHOD,
    QUANTIZATION,
    VERSION,
    map_tensors,
    weight_files,
)
from starcoder.errors import CheckpointError
from starcoder.files import read_json
from starcoder.kernels.memory import read_in_large_pages
from starcoder.kernels.ops import require_promise
from starcoder.model import Transformer
from starcoder.quantize import QuantizedEmbedding, QuantizedLinear, Scheme, expect

_ALIGNMENT = 64  # bytes of a cache line: so much the kernels read at once
_TYPE_NAMES = {torch.uint8: "U8", torch.float32: "F32"}
_QUANTIZE_AGAIN = "quantize the original checkpoint again"


def scheme_in(model: Transformer) -> Scheme | None:
    """How the linear layers of a network are quantized; None: they are not."""
    return model.head.packed.scheme if isinstance(model.head, QuantizedLinear) else None


def entry_of(model: Transformer) -> dict[str, object]:
    """What config.json says of a quantized network: enough to read the packed bytes without this code."""
    matrices = {
        name: {"scheme": module.packed.scheme, "group_size": module.packed.group_size}
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear | QuantizedEmbedding) and not name.startswith("blocks.")
    }
    qkv = model.get_submodule("blocks.0.attention.qkv")
    assert isinstance(qkv, QuantizedLinear), "all linear layers are quantized or none"
    matrices["blocks"] = {"scheme": qkv.packed.scheme, "group_size": qkv.packed.group_size}
    return {
        "quant_method": METHOD,
        "version": VERSION,
        "scheme": scheme_in(model),
        "matrices": matrices,
    }


def read(
    network: Transformer,
    folder: Path,
    scheme: Scheme,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Fill a `network` on the meta device from a quantized folder. On the CPU all weights stay mapped.

    `dtype` is that of norms and biases; what is stored is float32.

    Raises:
        CheckpointError: tensors are missing, foreign or of another shape, or groups of another size.
    """
    expect(network, scheme)
    _check_groups(network, folder)
    wanted = _stored(network)
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        found |= map_tensors(path)
    _check(found, wanted, folder)
    if device.type == "cpu":
        read_in_large_pages(found.values())
    for name, module in network.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding) and f"{name}.data" in found:
            matrix = replace(module.packed, data=found[f"{name}.data"], scales=found[f"{name}.scales"])
            require_promise(matrix, name)
    state = {
        name: tensor.to(device, dtype if tensor.dtype == torch.float32 else tensor.dtype)
        for name, tensor in found.items()
    }
    assign(network, state, dtype)


def assign(network: Transformer, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Give an expecting `network` its tensors, less those of a tied head; `dtype` is of what it computes."""
    if network.config.tied_embeddings:
        state |= {f"head.{kind}": state[f"embed.{kind}"] for kind in ("data", "scales")}
    network.load_state_dict(state, assign=True)
    for module in network.modules():
        if isinstance(module, QuantizedEmbedding):
            module.dtype = dtype


def _stored(network: Transformer) -> dict[str, Tensor]:
    """The tensors of a folder by name: a tied head is its embedding and stored once."""
    is_tied = network.config.tied_embeddings
    state: dict[str, Tensor] = network.state_dict()
    return {name: tensor for name, tensor in state.items() if not (is_tied and name.startswith("head."))}


def _check_groups(network: Transformer, folder: Path) -> None:
    entry = read_json(folder / "config.json")[QUANTIZATION]
    ours, theirs = entry_of(network)["matrices"], entry.get("matrices")
    if theirs != ours:
        raise CheckpointError(
            f"'{folder / 'config.json'}' describes quantized matrices {theirs!r}, expected {ours!r}",
            f"another version of starcoder wrote it; {_QUANTIZE_AGAIN}",
        )


def _check(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], folder: Path) -> None:
    for names, what in (
        (wanted.keys() - found.keys(), "has no tensor"),
        (found.keys() - wanted.keys(), "holds a tensor that config.json has no place for:"),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise CheckpointError(f"checkpoint '{folder}' {what} {min(names)!r}{more}", DOWNLOAD_AGAIN)
    for name, tensor in wanted.items():
        shapes = tuple(found[name].shape), tuple(tensor.shape)
        types = found[name].dtype, tensor.dtype
        if len({*shapes}) > 1 or len({*types}) > 1:
            raise CheckpointError(
                f"checkpoint '{folder}': tensor {name!r} is {shapes[0]} of {types[0]}, "
                f"config.json asks for {shapes[1]} of {types[1]}",
                f"weights and config.json are of different models; {_QUANTIZE_AGAIN}",
            )


def write(model: Transformer, path: Path) -> None:
    """Write the tensors of a quantized network to one safetensors file, without a second copy of any.

    Packed bytes come first and the header ends on a cache line, so every line of a mapped matrix is whole.
    Source: huggingface/safetensors: README.md, "Format".
    """
    tensors = sorted(_stored(model).items(), key=lambda item: (_rank(item[0]), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors:
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {"dtype": _TYPE_NAMES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in tensors:
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tofile(file)


def _rank(name: str) -> int:
    """Order in the file: sizes that are whole cache lines, then scales, then floats."""
    _, _, kind = name.rpartition(".")
    return ("data", "scales").index(kind) if kind in ("data", "scales") else 2
