"""`starcoder plan`: how much memory a model needs, before anything is loaded."""

import json
from dataclasses import asdict
from typing import Annotated, Literal

from starcoder import plan as planner
from starcoder.adapters.settings import AdapterSettings
from starcoder.cli.flags import Section
from starcoder.cli.options import OutputOptions
from starcoder.cli.plan_finetune import FinetuneQuestion, plan_finetune
from starcoder.cli.table import aligned, megabytes, parse_size
from starcoder.config import ModelConfig
from starcoder.errors import ConfigError
from starcoder.plan import CHOICES, KNOWN, Plan, Weights
from starcoder.train import memory as planning


def run(
    model: str | None = None,
    /,
    *,
    quantize: Literal["int8", "int4"] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    context: int | None = None,
    sequences: int = 1,
    memory: str | None = None,
    finetune: planning.Method | None = None,
    gpus: str | None = None,
    seq_length: int | None = None,
    rank: int = AdapterSettings().rank,
    printed: Annotated[OutputOptions, Section("Output")] = OutputOptions(),
) -> None:
    """Show the memory for weights, cache and activations, whether it fits, and what would.

    BigCode's models are known without a network; of other models of the hub only
    config.json is downloaded.

    $ starcoder plan bigcode/starcoder --quantize int8
    $ starcoder plan bigcode/starcoder2-15b --memory 16GB --context 4096

    $ starcoder plan bigcode/starcoder --finetune qlora --gpus 1x24GB --seq-length 2048

    Args:
        model: Checkpoint folder or Hugging Face id; the bundled model by default.
        quantize: Plan for quantized weights.
        dtype: Plan for weights of this data type; float32 by default.
        context: Number of tokens of a prompt with its completion; all that the model takes by default.
        sequences: Number of sequences that run or stay cached at the same time.
        memory: Memory to fit into, such as 24GB; this machine's by default.
        finetune: Plan a training step of `starcoder finetune` with this --method.
        gpus: With --finetune: number and memory of the GPUs, such as 6x15GB; this machine's CPU by default.
        seq_length: With --finetune: number of tokens in a row; by default as `starcoder finetune`.
        rank: With --finetune: rank of the adapter.
    """
    if finetune is not None:
        given = {"quantize": quantize, "context": context}
        for name in (name for name, value in given.items() if value):
            raise ConfigError(f"--{name} is for running a model, not for --finetune", "--seq-length, --dtype")
        config, stored = _config(model)
        if stored is not None:
            raise ConfigError("the model is quantized already", "plan the one that it was made from")
        asked_for = FinetuneQuestion(model, finetune, gpus, memory, seq_length, rank, dtype)
        print(plan_finetune(config, asked_for, as_json=printed.json))
        return
    if gpus is not None:
        raise ConfigError("--gpus goes with --finetune", "--memory says what a CPU has")
    if quantize and dtype:
        raise ConfigError("both --quantize and --dtype are given", "weights are of one kind; give one")
    for name, value in (("context", context), ("sequences", sequences)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")
    config, stored = _config(model)
    asked = planner.plan(
        config, quantize or dtype or stored or "float32", context=context, sequences=sequences
    )
    memory_bytes = parse_size(memory, "--memory") if memory else planner.machine_bytes()
    use = planner.largest_fitting(asked, config, memory_bytes)
    name = model or "the bundled model"
    if printed.json:
        print(json.dumps(_document(name, config, asked, use, memory_bytes)))
    else:
        print(_text(name, config, asked, use, memory_bytes))


def _config(model: str | None) -> tuple[ModelConfig, Weights | None]:
    """The model's numbers, and the scheme if it is a quantized folder."""
    from pathlib import Path

    if model in KNOWN and not Path(model).exists():
        return KNOWN[model], None
    from starcoder import checkpoint  # imports torch

    folder = checkpoint.resolve_config(model)
    return checkpoint.read_config(folder), checkpoint.scheme_of(folder)


def _document(
    model: str, config: ModelConfig, asked: Plan, use: Plan | None, memory_bytes: int
) -> dict[str, object]:
    return {
        "model": model,
        "num_parameters": config.num_parameters,
        "memory_bytes": memory_bytes,
        "plan": _fields(asked, memory_bytes),
        "use": None if use is None else _fields(use, memory_bytes),
        "choices": [
            _fields(_other(config, asked, weights), memory_bytes)
            | {"longest_context": _longest(config, asked, weights, memory_bytes)}
            for weights in CHOICES
        ],
    }


def _fields(one: Plan, memory_bytes: int) -> dict[str, object]:
    return asdict(one) | {"total_bytes": one.total_bytes, "fits": one.fits(memory_bytes)}


def _other(config: ModelConfig, asked: Plan, weights: Weights) -> Plan:
    return planner.plan(config, weights, context=asked.context, sequences=asked.sequences)


def _longest(config: ModelConfig, asked: Plan, weights: Weights, memory_bytes: int) -> int:
    return planner.longest_context(config, weights, memory_bytes, sequences=asked.sequences)


def _text(model: str, config: ModelConfig, asked: Plan, use: Plan | None, memory_bytes: int) -> str:
    parts = [
        ("weights", asked.weight_bytes),
        ("cache", asked.cache_bytes),
        ("activations", asked.scratch_bytes),
        ("runtime", asked.runtime_bytes),
        ("total", asked.total_bytes),
    ]
    rows = [("weights as", "weights", "total", "longest context")]
    for weights in CHOICES:
        other = _other(config, asked, weights)
        longest = _longest(config, asked, weights, memory_bytes)
        sizes = megabytes(other.weight_bytes), megabytes(other.total_bytes)
        rows.append((weights, *sizes, str(longest) if longest else "does not fit"))
    several = f"{asked.sequences} sequences of " if asked.sequences > 1 else ""
    return "\n".join(
        [
            f"{model}: {config.num_parameters / 1e9:.3g}B parameters in {asked.weights}, "
            f"{several}{asked.context} tokens",
            aligned([(name, megabytes(size)) for name, size in parts]),
            _verdict(asked, use, config, memory_bytes),
            "",
            aligned(rows),
        ]
    )


def _verdict(asked: Plan, use: Plan | None, config: ModelConfig, memory_bytes: int) -> str:
    memory = f"{memory_bytes / 1e9:.1f} GB"
    if asked.fits(memory_bytes):
        return f"fits in {memory}"
    if use is None:
        least = planner.plan(config, "int4", context=1).total_bytes / planner.USABLE_SHARE
        return f"does not fit in {memory}, nor does any choice: use {least / 1e9:.1f} GB or a smaller model"
    kind = "--quantize" if use.weights in ("int8", "int4") else "--dtype"
    context = f" --context {use.context}" if use.context < asked.context else ""
    return f"does not fit in {memory}, use {kind} {use.weights}{context}"
