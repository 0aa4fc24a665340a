"""The files of a checkpoint folder: its config, which files hold the weights, and their mapped tensors."""

import pickle
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from starcoder.checkpoint.gguf_reader import gguf_of
from starcoder.config import ModelConfig
from starcoder.errors import CheckpointError
from starcoder.files import FETCH_LFS, LFS_POINTER, read_json
from starcoder.kernels.packed import Scheme

QUANTIZATION = "quantization_config"  # of config.json
METHOD, VERSION = "starcoder", 2  # of our own layout
DOWNLOAD_AGAIN = "the download may be partial; fetch the checkpoint again"


def weight_files(folder: Path) -> list[Path]:
    """The weight files: safetensors whole or sharded, else `.bin` whole or sharded.

    Raises:
        CheckpointError: there are none, or the index is broken or names a missing shard.
    """
    if (gguf := gguf_of(folder)) is not None:
        return [gguf.path]
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        whole, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            return _shards(index)
    if any(folder.glob("*.safetensors")) and (folder / "quantize_config.json").is_file():
        raise quantized_elsewhere(folder)
    raise CheckpointError(
        f"checkpoint '{folder}' has neither model.safetensors nor pytorch_model.bin, whole or sharded",
        DOWNLOAD_AGAIN,
    )


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"'{index}' has no weight_map", DOWNLOAD_AGAIN)
    paths = []
    for name in sorted({str(value) for value in weight_map.values()}):
        if Path(name).name != name or Path(name).suffix not in (".safetensors", ".bin"):
            raise CheckpointError(
                f"'{index}' names the shard {name!r}",
                "a shard is a .safetensors or .bin file beside its index",
            )
        if not (index.parent / name).is_file():
            raise CheckpointError(f"'{index}' names the shard {name!r}, which is missing", DOWNLOAD_AGAIN)
        paths.append(index.parent / name)
    return paths


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weight file over one private memory map; a page is read when it is used.

    Raises:
        CheckpointError: the file is broken, or holds more than tensors.
    """
    try:
        with path.open("rb") as raw:  # safetensors calls a file that may not be read missing
            start = raw.read(64)
    except PermissionError:
        raise _forbidden(path) from None
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"'{path}' holds Python objects besides tensors, which are never loaded",
            "convert it to safetensors with the tool that wrote it",
        ) from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read: {first_line(error)}", _broken_hint(path, start)
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"'{path}' is not a flat dictionary of tensors", "expected a model's state dict"
        )
    return state


def _forbidden(path: Path) -> CheckpointError:
    return CheckpointError(f"'{path}' may not be read", "give this user the right to read it")


def _broken_hint(path: Path, start: bytes) -> str:
    if start.startswith(LFS_POINTER):
        return f"the file is a Git LFS pointer; {FETCH_LFS}"
    if path.suffix == ".bin" and not start.startswith(b"PK"):
        return "the file is broken or older than PyTorch 1.6; convert it to safetensors"
    return f"the file has {path.stat().st_size} bytes; {DOWNLOAD_AGAIN}"


def read_config(folder: Path) -> ModelConfig:
    """The numbers in `folder`'s config.json.

    Raises:
        CheckpointError: it is missing, not JSON, or not of these families.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise _no_config(folder)
    config = read_json(path)
    if scheme_of(folder) is not None:
        del config[QUANTIZATION]
    try:
        found = ModelConfig.from_hf(config)
    except CheckpointError as error:
        raise CheckpointError(f"'{path}' {error.message.removeprefix('config.json ')}", error.hint) from None
    if (folder / "quantize_config.json").is_file():  # how AutoGPTQ said it before config.json did
        raise quantized_elsewhere(folder)
    return found


def _no_config(folder: Path) -> CheckpointError:
    """Says what a folder is that is no checkpoint."""
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        model = base if isinstance(base, str) and base else "MODEL"
        return CheckpointError(
            f"'{folder}' is an adapter, not a model", f"use it with --model {model} --adapter {folder}"
        )
    if files := sorted(folder.glob("*.gguf")):
        names = ", ".join(file.name for file in files)
        return CheckpointError(f"'{folder}' holds several models: {names}", f"give one file: {files[0]}")
    return CheckpointError(
        f"'{folder}' has no config.json, so it is not a checkpoint",
        "give the folder that holds config.json and the weights",
    )


def quantized_elsewhere(folder: Path) -> CheckpointError:
    """That GPTQ or AWQ wrote the weights."""
    return CheckpointError(
        f"'{folder}' holds weights quantized by GPTQ or AWQ, which are not read",
        "take the checkpoint that it was made from, and quantize it here with `starcoder quantize`",
    )


def scheme_of(folder: Path) -> Scheme | None:
    """How the weights of a folder are quantized by us; None: they are not.

    Raises:
        CheckpointError: config.json is broken, or says it in a way that this version does not know.
    """
    path = folder / "config.json"
    entry = read_json(path).get(QUANTIZATION) if path.is_file() else None
    if not isinstance(entry, dict) or entry.get("quant_method") != METHOD:
        return None
    scheme, version = entry.get("scheme"), entry.get("version")
    if version != VERSION or scheme not in get_args(Scheme):
        raise CheckpointError(
            f"'{path}' says scheme {scheme!r} of layout version {version!r}, which this version cannot read",
            "upgrade starcoder, or quantize the original checkpoint again",
        )
    return "int4" if scheme == "int4" else "int8"


def first_line(error: Exception) -> str:
    """What an error of another library says, short enough for one of our two lines."""
    return (str(error).splitlines() or [type(error).__name__])[0]
