"""Checkpoint folder -> quantized folder that stands alone: weights, config.json and tokenizer."""

from pathlib import Path

from starcoder.checkpoint.files import read_json
from starcoder.checkpoint.hub import resolve
from starcoder.checkpoint.reading import quantize
from starcoder.checkpoint.writing import save
from starcoder.errors import ConfigError
from starcoder.files import copy_model_files, replace_atomically
from starcoder.quantize import Method, Report, Scheme


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
