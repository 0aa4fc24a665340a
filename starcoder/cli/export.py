"""`starcoder export`: a checkpoint as one GGUF file, for llama.cpp, Ollama and similar programs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from starcoder.cli.flags import Section
from starcoder.cli.options import OutputOptions
from starcoder.cli.table import megabytes
from starcoder.errors import ConfigError


def run(
    model: str | None = None,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    format: Literal["gguf"] = "gguf",
    type: Literal["f16", "q8_0", "q4_0"] = "f16",
    force: bool = False,
    printed: Annotated[OutputOptions, Section("Output")] = OutputOptions(),
) -> None:
    """Export weights and tokenizer of a checkpoint to one GGUF file that other programs run.

    Needs the extra: pip install 'starcoder-kit[gguf]'.

    $ starcoder export ./my-model --format gguf --type q8_0 --output my-model.gguf

    Args:
        model: Checkpoint folder or Hugging Face id; the bundled model by default.
        output: File to write.
        format: File format; gguf is the only one.
        type: f16 keeps 16 bits; q8_0 and q4_0 quantize the matrices as llama.cpp does.
        force: Replace the output if it exists.
    """
    from starcoder.checkpoint import export_gguf  # imports torch

    if output.is_dir() or not output.absolute().parent.is_dir():
        reason = "it is a folder" if output.is_dir() else "the folder does not exist"
        raise ConfigError(f"cannot write '{output}': {reason}", "give a file in an existing folder")
    if output.exists() and not force:
        raise ConfigError(f"'{output}' exists already", "give another path, or --force to replace it")
    printed.start_logging()
    report = export_gguf(model, output, type=type)
    if printed.json:
        print(json.dumps({"output": str(output), "format": format, "type": type} | asdict(report)))
    else:
        print(
            f"{report.num_parameters / 1e6:,.1f}M parameters in {report.num_tensors} tensors, "
            f"{megabytes(report.size_bytes)}, written to {output}"
        )
