"""`Transformer` -> checkpoint folder: one that transformers loads, or our own layout if it is quantized."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from starcoder.checkpoint import packed
from starcoder.checkpoint.files import QUANTIZATION, read_config
from starcoder.checkpoint.gguf_reader import GGUF_FILE
from starcoder.checkpoint.hub import resolve
from starcoder.checkpoint.names import is_interleaved, their_names, their_rows, with_prefix
from starcoder.checkpoint.reader import quantize
from starcoder.errors import ConfigError
from starcoder.files import copy_model_files, read_json, replace_atomically, require_space
from starcoder.model import Transformer
from starcoder.plan import weight_bytes
from starcoder.quantize import Method, Report, Scheme

# A shard is in memory twice while it is written.
_MAX_SHARD_BYTES = 2_000_000_000


def save(
    model: Transformer,
    folder: Path,
    *,
    max_shard_bytes: int = _MAX_SHARD_BYTES,
    extra_config: Mapping[str, object] | None = None,
) -> None:
    """Write config.json and safetensors, several above `max_shard_bytes`; makes `folder` if needed.

    `extra_config` adds to config.json or overrides it, for example `eos_token_id`, which is 0 otherwise; the
    size of the vocabulary and whether the head is tied are always the model's.
    Every file is written under another name and renamed when all are complete, so a failure leaves
    what was there before; weights of an earlier save that this one does not replace are removed.
    A quantized network becomes a folder of one file in our own layout, which only this package reads.

    Raises:
        ConfigError: the disk has no room.
        OSError: as from writing.
    """
    stored = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    require_space(folder, sum(stored.values()))
    folder.mkdir(parents=True, exist_ok=True)
    own = model.config.to_hf()
    config = own | {"dtype": str(model.norm.weight.dtype).removeprefix("torch.")} | dict(extra_config or {})
    config |= {key: own[key] for key in ("vocab_size", "tie_word_embeddings")}
    config.pop(GGUF_FILE, None)
    with _Replacement(folder) as replacement:
        if packed.scheme_in(model) is None:
            _write_weights(model, replacement, max_shard_bytes)
        else:
            packed.write(model, replacement.path("model.safetensors"))
            config[QUANTIZATION] = packed.entry_of(model)
        replacement.write_json("config.json", config)
    replacement.remove_earlier()


def quantize_folder(
    model: str | Path | None, output: Path, scheme: Scheme, *, method: Method = "search"
) -> Report:
    """Write a quantized copy of a checkpoint to `output`, which appears when it is whole, or not at all.

    Raises:
        CheckpointError: as `load`.
        ConfigError: the checkpoint is quantized already, or there is something at `output`.
    """
    require_free(output)
    folder = resolve(model)
    require_space(output, weight_bytes(read_config(folder), scheme))
    network, report = quantize(folder, scheme, method=method)
    with replace_atomically(output) as part:
        save(network, part, extra_config=read_json(folder / "config.json"))
        copy_model_files(folder, part)
        require_free(output)
    return report


def require_free(output: Path) -> None:
    """Raises: ConfigError: there is something at `output`."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"there is something at '{output}' already", "give a folder that is new or empty")


class _Replacement(ExitStack):
    """New files of a folder, under temporary names until the block ends without an error."""

    def __init__(self, folder: Path):
        super().__init__()
        self._folder, self._names = folder, set[str]()

    def path(self, name: str) -> Path:
        """Where to write the file that will be called `name`."""
        self._names.add(name)
        return self.enter_context(replace_atomically(self._folder / name))

    def write_json(self, name: str, value: object) -> None:
        self.path(name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    def remove_earlier(self) -> None:
        """Remove the weights of an earlier save that were not replaced."""
        for pattern in ("model*.safetensors", "model*.safetensors.index.json"):
            for path in self._folder.glob(pattern):
                if path.name not in self._names:
                    path.unlink()


def _write_weights(model: Transformer, replacement: _Replacement, max_shard_bytes: int) -> None:
    shards = list(_plan_shards(model, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = (
            f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        )
        tensors = {theirs: tensor for name in names for theirs, tensor in _their_tensors(model, name)}
        _save_file(tensors, replacement.path(file))
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        metadata = {"total_size": sum(parameter.nbytes for parameter in model.parameters())}
        index = {"metadata": metadata, "weight_map": weight_map}
        replacement.write_json("model.safetensors.index.json", index)


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # the library has no OSError
        number = errno.ENOSPC if "No space left" in str(error) else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from None


def _plan_shards(model: Transformer, max_shard_bytes: int) -> Iterator[list[str]]:
    shard: list[str] = []
    size_bytes = 0
    for name, parameter in model.named_parameters():
        if shard and size_bytes + parameter.nbytes > max_shard_bytes:
            yield shard
            shard, size_bytes = [], 0
        shard.append(name)
        size_bytes += parameter.nbytes
    yield shard


def _their_tensors(model: Transformer, name: str) -> Iterator[tuple[str, Tensor]]:
    """Our parameter as Hugging Face's tensors: the way back from `load`."""
    config = model.config
    tensor = model.get_parameter(name).detach().cpu()
    rows = their_rows(config, name, tensor.shape)
    if is_interleaved(config, name):
        per_head = tensor.view(3, config.num_heads, config.head_size, *tensor.shape[1:])
        tensor = per_head.transpose(0, 1).flatten(0, 2)
    for theirs, part in zip(their_names(config, name), torch.split(tensor, rows), strict=True):
        # A copy, for safetensors refuses tensors that share storage, as q, k and v do here.
        yield with_prefix(config, theirs), part.clone(memory_format=torch.contiguous_format)
