"""Reads and writes the two files of an adapter as PEFT does. Source: PEFT `utils/save_and_load.py`."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from starcoder.adapters.kinds import require_peft, targets_of
from starcoder.adapters.settings import Layout, Tables
from starcoder.errors import CheckpointError
from starcoder.files import replace_atomically, write_whole

if TYPE_CHECKING:
    from peft import PeftConfig

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def read_config(folder: Path, layout: Layout, tables: Tables) -> "tuple[PeftConfig, object]":
    """The config without what it says of tables, and its `trainable_token_indices`."""
    require_peft()
    from peft import PeftConfig

    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"'{folder}' has no {CONFIG}, so it is not an adapter")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of words that a newer PEFT has
            config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {str(error).splitlines()[0]}") from None
    saved = sorted(getattr(config, "modules_to_save", None) or ())
    if foreign := [module for module in saved if not any(name.endswith(module) for name in tables.names)]:
        raise CheckpointError(
            f"'{path}' has modules_to_save: {foreign[0]}, weights beside the adapter that are not supported",
            "merge it with PEFT, and give the merged model",
        )
    indices = getattr(config, "trainable_token_indices", None)
    for word in ("modules_to_save", "trainable_token_indices"):
        if hasattr(config, word):
            setattr(config, word, None)
    if hasattr(config, "ensure_weight_tying"):
        config.ensure_weight_tying = False
    if getattr(config, "target_modules", None) == "all-linear":
        config.target_modules = targets_of((), layout)  # type: ignore[attr-defined]
    return config, indices


def read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        hint = "adapters in .bin files are not read; save it again with a newer PEFT"
        raise CheckpointError(f"'{folder}' has no {WEIGHTS}", hint)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {str(error).splitlines()[0]}") from None


def write(folder: Path, state: Mapping[str, Tensor], config: "PeftConfig") -> None:
    """Write both files, each whole or not at all."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    with replace_atomically(folder / WEIGHTS) as part:
        save_file(tensors, part, metadata={"format": "pt"})
    write_whole(folder / CONFIG, json.dumps(plain(config.to_dict()), indent=2, sort_keys=True) + "\n")


def plain(value: object) -> object:
    """As JSON holds it; sets in a fixed order."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(v) for v in value)  # type: ignore[type-var]
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return getattr(value, "value", value)
