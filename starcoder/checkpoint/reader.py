"""Checkpoint folder -> `Transformer`, tensor by tensor, without ever holding the weights twice."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from starcoder.checkpoint import packed
from starcoder.checkpoint.adapter import load_adapter
from starcoder.checkpoint.files import (
    DOWNLOAD_AGAIN,
    first_line,
    map_tensors,
    quantized_elsewhere,
    read_config,
    scheme_of,
    weight_files,
)
from starcoder.checkpoint.gguf_reader import gguf_of
from starcoder.checkpoint.hub import resolve, resolve_adapter
from starcoder.checkpoint.names import (
    EMBEDDING,
    HEAD,
    is_computed,
    is_interleaved,
    their_names,
    their_rows,
    with_prefix,
    without_prefix,
)
from starcoder.config import ModelConfig
from starcoder.errors import CheckpointError, ConfigError
from starcoder.kernels.memory import Arena, read_in_large_pages
from starcoder.kernels.packed import Packed
from starcoder.model import Transformer
from starcoder.quantize import (
    LayerReport,
    Method,
    QuantizedEmbedding,
    QuantizedLinear,
    Report,
    Scheme,
    expect,
    quantize_with_error,
    require_finite,
)
from starcoder.quantize import quantize as round_weights

log = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Mapped pages count as memory of this process until they are unmapped; this much may wait for it.
_MAX_WAITING_BYTES = 32 << 20


def load(
    model: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    quantize: Scheme | None = None,
    adapter: str | Path | None = None,
) -> Transformer:
    """The network of a local folder or hub id, with its weights, in eval mode.

    `dtype` None takes the dtype of the checkpoint's embedding, on every device. Peak memory is at most
    1.15 times the weights (`benchmarks/load_memory.py`). On the CPU, tensors that need no conversion stay
    mapped: that loads in milliseconds where a copy takes a second per gigabyte, and multiplies as fast.
    The price: files must be replaced by renaming, as every tool does, never overwritten in place.

    `quantize` packs each matrix as it is read, so that beside the packed ones only one is in memory; a
    folder that is quantized needs no word and stays mapped. `dtype` is then that of norms and biases:
    float32 on a CPU, bfloat16 elsewhere if None.

    `adapter` is a folder or hub id in PEFT's format. It is merged in the dtype of the weights, which then all
    lie in memory, before they are rounded: the network runs as fast as without.

    Raises:
        CheckpointError: no such checkpoint, or its files are missing, broken, of another family or shape.
        ConfigError: this machine has no such device, the folder is quantized otherwise, or is quantized
            where an adapter goes on.
    """
    target = _usable(device)
    folder = resolve(model)
    if (stored := scheme_of(folder)) is not None:
        if adapter is not None:
            raise unmergeable(model, stored)
        if quantize not in (None, stored):
            raise _quantized_already(model, stored)
        network = _empty(read_config(folder))
        packed.read(network, folder, stored, device=target, dtype=_float_dtype(target, dtype))
        return network.eval()
    weights = _Weights(folder)
    if adapter is not None:
        _fill_adapted(weights, resolve_adapter(adapter), quantize, target, dtype)
    elif quantize is None:
        _fill(weights, target, dtype)
    else:
        _quantize(weights, quantize, "search", target, _float_dtype(target, dtype))
    return weights.network.eval()


def quantize(model: str | Path, scheme: Scheme, *, method: Method = "search") -> tuple[Transformer, Report]:
    """Quantize a checkpoint in memory, a matrix at a time, and say what rounding cost; `save` writes it.

    Raises:
        CheckpointError: as `load`.
        ConfigError: the checkpoint is quantized already.
    """
    folder = resolve(model)
    stored = scheme_of(folder)
    if stored is not None:
        raise _quantized_already(model, stored)
    weights = _Weights(folder)
    layers: list[LayerReport] = []

    def note(name: str, matrix: Packed, error: float) -> None:
        size = matrix.size_bytes
        layers.append(LayerReport(name, matrix.scheme, matrix.columns, matrix.inputs, size, error))

    _quantize(weights, scheme, method, torch.device("cpu"), torch.float32, note)
    network = weights.network
    floats = sum(parameter.nbytes for parameter in network.parameters())
    size_bytes = floats + sum(layer.size_bytes for layer in layers)
    return network.eval(), Report(tuple(layers), network.config.num_parameters, size_bytes)


def default_scheme(model: str | Path | None) -> Scheme | None:
    """How to keep weights where nothing is asked for: int8 for quantized GGUF, to save memory.

    Raises:
        CheckpointError: as `load`.
    """
    source = gguf_of(resolve(model))
    if source is None or not source.quantized_types:
        return None
    log.warning(
        "%s holds %s: kept as int8; --dtype float32 computes with what is stored, exactly, in more memory",
        source.path,
        ", ".join(source.quantized_types),
    )
    return "int8"


def unmergeable(model: str | Path | None, stored: Scheme) -> ConfigError:
    """That an adapter does not go into rounded weights."""
    return ConfigError(
        f"'{model}' is quantized to {stored}, and an adapter is merged into weights that are not",
        "give the checkpoint that it was made from; --quantize then rounds what is merged",
    )


def _quantized_already(model: str | Path, stored: Scheme) -> ConfigError:
    return ConfigError(
        f"'{model}' is quantized already, to {stored}",
        "use it as it is, or quantize the checkpoint that it was made from",
    )


def _empty(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


def _shapes(network: Transformer) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in network.named_parameters()}


def _fill(weights: "_Weights", device: torch.device, dtype: torch.dtype | None) -> None:
    network = weights.network
    shapes = _shapes(network)
    state = {name: weights.take(name, shape, device, dtype) for name, shape in shapes.items()}
    if network.config.tied_embeddings:
        state[HEAD] = state[EMBEDDING]
    network.load_state_dict(state, assign=True)
    network.tie()


def _fill_adapted(
    weights: "_Weights",
    adapter: Path,
    scheme: Scheme | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> None:
    floats = dtype if scheme is None else _float_dtype(device, dtype)
    _fill(weights, device, None if scheme else dtype)
    network = weights.network
    load_adapter(network, adapter).merge()
    if scheme is not None:
        round_weights(network, scheme)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(floats)


def _quantize(
    weights: "_Weights",
    scheme: Scheme,
    method: Method,
    device: torch.device,
    dtype: torch.dtype,
    note: Callable[[str, Packed, float], None] | None = None,
) -> None:
    """Fill the network with packed matrices; `note` sees each and its error."""
    network = weights.network
    shapes = _shapes(network)
    expect(network, scheme)
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        module_name, _, kind = name.rpartition(".")
        module = network.get_submodule(module_name)
        if kind == "bias" or not isinstance(module, QuantizedLinear | QuantizedEmbedding):
            state[name] = weights.take(name, shape, device, dtype)
            continue
        weight, wanted = weights.once(name, shape).to(device), module.packed
        matrix, error = quantize_with_error(weight, wanted.scheme, wanted.group_size, method, weights.arena)
        require_finite(module_name, error)
        state |= {f"{module_name}.data": matrix.data, f"{module_name}.scales": matrix.scales}
        if note is not None:
            note(module_name, matrix, error)
    packed.assign(network, state, dtype)


def _float_dtype(device: torch.device, dtype: torch.dtype | None) -> torch.dtype:
    """Of what a quantized network does not quantize."""
    if device.type != "cpu":
        return dtype or torch.bfloat16
    if dtype not in (None, torch.float32):
        raise ConfigError(
            f"dtype {str(dtype).removeprefix('torch.')} does not go with quantized weights on a CPU",
            "leave dtype out: what is not quantized is float32 there",
        )
    return torch.float32


def _usable(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        hint = "choose cpu, or install a PyTorch that supports the device"
        raise ConfigError(f"device {str(device)!r} cannot be used: {first_line(error)}", hint) from None


class _Weights:
    """The tensors of a checkpoint folder, to be taken by our names, and the network that they are for."""

    def __init__(self, folder: Path):
        self._config = read_config(folder)
        self._gguf = gguf_of(folder)
        self._tensors: dict[str, Tensor] = {}  # by their name without prefix; mapped, so nearly free
        self._origins: dict[str, tuple[Path, str]] = {}  # the same -> file and full name
        for path in weight_files(folder):
            tensors = map_tensors(path) if self._gguf is None else self._gguf.tensors()
            for full_name, tensor in tensors.items():
                name = without_prefix(self._config, full_name)
                self._tensors[name], self._origins[name] = tensor, (path, full_name)
        if any(name.endswith(".qweight") for name in self._tensors):
            raise quantized_elsewhere(folder)
        if self._config.tied_embeddings:
            self._settle_head(folder)
        self.network = _empty(self._config)
        self._check_names(folder, list(_shapes(self.network)))
        self._own_dtype = self._tensors[their_names(self._config, EMBEDDING)[0]].dtype
        self.arena = Arena()  # for what does not stay mapped
        self._waiting: dict[str, Tensor] = {}
        self._waiting_file, self._waiting_bytes = folder, 0

    def _settle_head(self, folder: Path) -> None:
        """Some writers of tied weights keep both names, some the head's alone; two that differ are both kept.

        transformers 5 keeps a head that differs as well, whatever config.json says.
        """
        (embedding,), (head,) = their_names(self._config, EMBEDDING), their_names(self._config, HEAD)
        if head not in self._tensors:
            return
        if embedding in self._tensors and not torch.equal(self._tensors[embedding], self._tensors[head]):
            log.warning("%s ties head and embedding, but stores two that differ: both are kept", folder)
            self._config = replace(self._config, tied_embeddings=False)
            return
        tensor, origin = self._tensors.pop(head), self._origins.pop(head)
        self._tensors.setdefault(embedding, tensor)
        self._origins.setdefault(embedding, origin)

    def _check_names(self, folder: Path, our_names: list[str]) -> None:
        wanted = {theirs for name in our_names for theirs in their_names(self._config, name)}
        missing = sorted(wanted - self._tensors.keys())
        if missing:
            name = with_prefix(self._config, missing[0])
            more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
            hint = DOWNLOAD_AGAIN
            if len(missing) == len(wanted) and self._tensors:
                _, stored = self._origins[min(self._tensors)]
                hint = f"the weights are of another model, or have other names, such as {stored!r}"
            elif any(".lora_" in name or ".base_layer." in name for name in self._tensors):
                hint = "an adapter was saved with its model and not merged; merge it with PEFT first"
            raise CheckpointError(f"checkpoint '{folder}' has no tensor {name!r}{more}", hint)
        foreign = sorted(name for name in self._tensors.keys() - wanted if not is_computed(name))
        if foreign:
            path, name = self._origins[foreign[0]]
            more = f" (and {len(foreign) - 1} more)" if foreign[1:] else ""
            raise CheckpointError(
                f"'{path}' holds a tensor {name!r}{more} that config.json has no place for",
                "weights and config.json are of different models, or an adapter was not merged",
            )

    def once(self, name: str, shape: torch.Size) -> Tensor:
        """Our parameter in its own dtype, to use and forget: the next call gives its pages back."""
        (their_name, *more) = their_names(self._config, name)
        if more or is_interleaved(self._config, name):
            return self.take(name, shape, torch.device("cpu"), None)
        self._check(their_name, tuple(shape))
        return self._read(their_name)

    def take(self, name: str, shape: torch.Size, device: torch.device, dtype: torch.dtype | None) -> Tensor:
        """Our parameter: mapped where the file has it as it is, else in memory of its own."""
        theirs = their_names(self._config, name)
        rows = their_rows(self._config, name, shape)
        for their_name, num_rows in zip(theirs, rows, strict=True):
            self._check(their_name, (num_rows, *shape[1:]))
        dtype = dtype or self._own_dtype
        tensor = self._tensors[theirs[0]]
        is_interleaved_qkv = is_interleaved(self._config, name)
        is_converted = len(theirs) > 1 or is_interleaved_qkv or dtype != tensor.dtype or device.type != "cpu"
        if not is_converted and tensor.is_contiguous() and not tensor.is_meta:
            read_in_large_pages([tensor])
            return tensor
        out = self.arena.empty(shape, dtype, device)
        if is_interleaved_qkv:
            N, H = self._config.num_heads, self._config.head_size
            source = self._read(theirs[0]).view(N, 3, H, *shape[1:])
            out.view(3, N, H, *shape[1:]).copy_(source.transpose(0, 1))
        else:
            for part, their_name in zip(torch.split(out, rows), theirs, strict=True):
                part.copy_(self._read(their_name))
        return out

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        tensor, (path, full_name) = self._tensors[name], self._origins[name]
        found = tuple(tensor.shape)
        if found != shape:
            raise CheckpointError(
                f"'{path}': tensor {full_name!r} has shape {found}, config.json asks for {shape}",
                "weights and config.json are of different models",
            )
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"'{path}': tensor {full_name!r} is {tensor.dtype}, which is not supported",
                "supported: float32, bfloat16 and float16; take the checkpoint that is not quantized",
            )

    def _read(self, name: str) -> Tensor:
        """A tensor to copy from and forget, over a map that is renewed so that its pages are given back."""
        path, full_name = self._origins[name]
        if self._gguf is not None:
            return self._gguf.read(full_name)
        if path != self._waiting_file or self._waiting_bytes > _MAX_WAITING_BYTES:
            self._waiting = {}
            self._waiting, self._waiting_file, self._waiting_bytes = map_tensors(path), path, 0
        tensor = self._waiting[full_name]
        self._waiting_bytes += tensor.nbytes
        return tensor
