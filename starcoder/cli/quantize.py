"""`starcoder quantize`: a checkpoint with int8 or int4 weights, and the error of the quantization."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from starcoder.cli.flags import Section
from starcoder.cli.options import OutputOptions
from starcoder.cli.table import aligned, megabytes

if TYPE_CHECKING:
    from starcoder.quantize import LayerReport, Report

_PARTS = ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")


def run(
    model: str | None = None,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    scheme: Literal["int8", "int4"] = "int4",
    method: Literal["search", "nearest"] = "search",
    threads: int | None = None,
    printed: Annotated[OutputOptions, Section("Output")] = OutputOptions(),
) -> None:
    """Quantize the weights and write a checkpoint; report its size and the error of every matrix.

    The new folder is memory-mapped when it is loaded with --model. Quantizing needs
    memory for the result and one matrix of the original.

    $ starcoder quantize bigcode/starcoder2-3b --scheme int4 --output ./sc2-3b-int4

    Args:
        model: Checkpoint folder or Hugging Face id; the bundled model by default.
        output: Folder to write the checkpoint to.
        scheme: int4 is half the size of int8 and nearly twice as fast; int8 is almost lossless.
        method: search tries several scales for each group of int4 weights; nearest is faster.
        threads: Number of CPU threads; torch's choice by default.
    """
    import torch

    from starcoder.checkpoint import quantize_folder
    from starcoder.errors import ConfigError

    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; expected at least 1")
    if threads is not None:
        torch.set_num_threads(threads)
    printed.start_logging()
    report = quantize_folder(model, output, scheme, method=method)
    if printed.json:
        print(json.dumps(_document(report, scheme, output)))
        return
    print(_table(report))
    print(
        f"{report.num_parameters / 1e6:,.1f}M parameters in {megabytes(report.size_bytes)}, "
        f"{report.bits_per_weight:.2f} bits each, written to {output}"
    )


def _document(report: "Report", scheme: str, output: Path) -> dict[str, object]:
    return {
        "output": str(output),
        "scheme": scheme,
        "num_parameters": report.num_parameters,
        "size_bytes": report.size_bytes,
        "bits_per_weight": round(report.bits_per_weight, 4),
        "layers": [asdict(layer) for layer in report.layers],
    }


def _table(report: "Report") -> str:
    """Relative errors: a line for each block, one for every matrix outside of them."""
    blocks: dict[str, dict[str, LayerReport]] = {}
    rows: list[tuple[str, ...]] = [("matrix", "scheme", "size", "error", "", "", "")]
    for layer in report.layers:
        if layer.name.startswith("blocks."):
            _, number, part = layer.name.split(".", 2)
            blocks.setdefault(number, {})[part] = layer
        else:
            rows.append((layer.name, layer.scheme, megabytes(layer.size_bytes), _percent(layer), "", "", ""))
    rows.append(("block", "scheme", "size", *(part.rpartition(".")[2] for part in _PARTS)))
    for number, parts in blocks.items():
        size = megabytes(sum(layer.size_bytes for layer in parts.values()))
        errors = (_percent(parts[part]) for part in _PARTS)
        rows.append((number, parts[_PARTS[0]].scheme, size, *errors))
    return aligned(rows)


def _percent(layer: "LayerReport") -> str:
    return f"{100 * layer.error:.2f} %"
