"""The files of a checkpoint folder: which hold the weights, and their tensors over a memory map."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from starcoder.errors import CheckpointError

DOWNLOAD_AGAIN = "the download may be partial; fetch the checkpoint again"


def weight_files(folder: Path) -> list[Path]:
    """The weight files: safetensors whole or sharded, else `.bin` whole or sharded.

    Raises:
        CheckpointError: there are none, or the index is broken or names a missing shard.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        whole, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            return _shards(index)
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
    if start.startswith(b"version https://git-lfs"):
        return "the file is a Git LFS pointer; run `git lfs pull` in its folder"
    if path.suffix == ".bin" and not start.startswith(b"PK"):
        return "the file is broken or older than PyTorch 1.6; convert it to safetensors"
    return f"the file has {path.stat().st_size} bytes; {DOWNLOAD_AGAIN}"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: it is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError:
        raise _forbidden(path) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{path}' is not JSON: {first_line(error)}", DOWNLOAD_AGAIN) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' is not a JSON object", DOWNLOAD_AGAIN)
    return value


def first_line(error: Exception) -> str:
    """What an error of another library says, short enough for one of our two lines."""
    return (str(error).splitlines() or [type(error).__name__])[0]
