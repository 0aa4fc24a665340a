"""`starcoder export`: a checkpoint as one GGUF file, for llama.cpp, Ollama and their like."""

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from starcoder.cli.table import megabytes
from starcoder.errors import ConfigError


def run(
    model: str | None = None,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    format: Literal["gguf"] = "gguf",
    type: Literal["f16", "q8_0", "q4_0"] = "f16",
    force: Annotated[bool, Parameter(show_default=False)] = False,
    json: Annotated[bool, Parameter(show_default=False)] = False,
) -> None:
    """Write weights and tokenizer of a checkpoint to one file that other programs run.

    Needs the extra: pip install 'starcoder-kit[gguf]'.

    $ starcoder export ./my-model --format gguf --type q8_0 --output my-model.gguf

    Args:
        model: A checkpoint folder or a Hugging Face id; the bundled model if not given.
        output: The file to write.
        format: gguf is the only one.
        type: f16 keeps all; q8_0 and q4_0 round the matrices as llama.cpp does.
        force: Replace the output if it exists.
        json: Print one JSON document instead of text.
    """
    from starcoder.checkpoint import export_gguf  # imports torch

    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ConfigError(f"cannot write '{output}'", "give the path of a file in a folder that exists")
    if output.exists() and not force:
        raise ConfigError(f"'{output}' exists already", "give another path, or --force to replace it")
    report = export_gguf(model, output, type=type)
    if json:
        print(json_format.dumps({"output": str(output), "format": format, "type": type} | asdict(report)))
    else:
        print(
            f"{report.num_parameters / 1e6:,.1f}M parameters in {report.num_tensors} tensors, "
            f"{megabytes(report.size_bytes)}, written to {output}"
        )
