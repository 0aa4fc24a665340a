"""`starcoder plan --finetune`: whether and how a step of training fits, with the bytes by part."""

import json
import re
from dataclasses import asdict, dataclass, replace

from starcoder import plan as planner
from starcoder.cli.table import aligned, megabytes, parse_size
from starcoder.config import ModelConfig
from starcoder.errors import ConfigError
from starcoder.train.memory import FinetunePlan, Method, Setup, fitting, usual_length, ways
from starcoder.train.memory import longest_seq_length as longest
from starcoder.train.memory import plan_finetune as plan
from starcoder.train.settings import Precision

_GPUS = re.compile(r"(?:(\d+)\s*x\s*)?(.+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FinetuneQuestion:
    """What the command line asked."""

    model: str | None
    method: Method
    gpus: str | None  # such as 6x15GB; None: a CPU
    memory: str | None  # of that
    seq_length: int | None  # as `starcoder finetune` chooses
    rank: int
    precision: Precision | None


def plan_finetune(config: ModelConfig, asked: FinetuneQuestion, *, as_json: bool) -> str:
    """The answer, as text or as one JSON document.

    Raises:
        ConfigError: sizes or lengths that cannot be.
    """
    seq_length = usual_length(config) if asked.seq_length is None else asked.seq_length
    for name, value in (("seq-length", seq_length), ("rank", asked.rank)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}; expected at least 1")
    if seq_length > config.max_positions:
        raise ConfigError(
            f"--seq-length is {seq_length}, the model has {config.max_positions} positions",
            f"--seq-length {config.max_positions}",
        )
    devices, memory_bytes = _devices(asked)
    setup = Setup(
        method=asked.method,
        seq_length=seq_length,
        precision=asked.precision or ("bfloat16" if asked.gpus else "float32"),
        devices=devices,
        rank=asked.rank,
        on_gpu=asked.gpus is not None,
    )
    found = fitting(config, setup, memory_bytes)
    shown = found or _least(config, setup)
    longest_rows = longest(config, setup, memory_bytes)
    others = {} if found else _other_methods(config, setup, memory_bytes)
    if as_json:
        document = {
            "model": asked.model,
            "num_parameters": config.num_parameters,
            "memory_bytes": memory_bytes,
            "fits": found is not None,
            "plan": asdict(shown) | {"total_bytes": shown.total_bytes},
            "longest_seq_length": longest_rows,
            "command": _command(asked.model, shown),
            "methods_that_fit": sorted(others),
        }
        return json.dumps(document)
    return _text(config, asked, shown, memory_bytes, longest_rows, others)


def _devices(asked: FinetuneQuestion) -> tuple[int, int]:
    """How many, and the bytes of each."""
    if asked.gpus is None:
        return 1, parse_size(asked.memory, "--memory") if asked.memory else planner.machine_bytes()
    if asked.memory is not None:
        raise ConfigError("both --gpus and --memory are given", "--gpus 6x15GB says both")
    match = _GPUS.fullmatch(asked.gpus.strip())
    count = int(match[1] or 1) if match else 0
    if match is None or count < 1:
        raise ConfigError(
            f"--gpus is {asked.gpus!r}; expected how many of which memory", "write it as 6x15GB"
        )
    return count, parse_size(match[2], "--gpus")


def _least(config: ModelConfig, setup: Setup) -> FinetunePlan:
    """The way that needs the least, to show what is missing."""
    return min((plan(config, way) for way in ways(setup)), key=lambda p: p.total_bytes)


def _other_methods(config: ModelConfig, setup: Setup, memory_bytes: int) -> dict[str, FinetunePlan]:
    methods: tuple[Method, ...] = ("lora", "qlora")
    found = {m: fitting(config, replace(setup, method=m), memory_bytes) for m in methods if m != setup.method}
    return {method: one for method, one in found.items() if one is not None}


def _command(model: str | None, one: FinetunePlan) -> str:
    """How this plan is run; what is learned and where it goes is the user's to say."""
    setup = one.setup
    launcher = f"torchrun --nproc_per_node {setup.devices} -m " if setup.devices > 1 else ""
    words = [f"{launcher}starcoder finetune"] + ([f"--model {model}"] if model else [])
    words.append(f"--data DATA --output RUN --method {setup.method} --precision {setup.precision}")
    words += [f"--rank {setup.rank}"] if setup.method != "full" else []
    words.append(f"--seq-length {setup.seq_length} --batch-size {setup.micro_batch}")
    words += [f"--sharding {setup.sharding}"] if setup.devices > 1 else []
    words += ["--checkpoint-activations"] if setup.recomputes else []
    words += ["--offload"] if setup.offloads else []
    return " ".join(words)


def _text(
    config: ModelConfig,
    asked: FinetuneQuestion,
    one: FinetunePlan,
    memory_bytes: int,
    longest_rows: int,
    others: dict[str, FinetunePlan],
) -> str:
    parts = [
        ("weights", one.weight_bytes),
        ("optimizer", one.optimizer_bytes),
        ("gradients", one.gradient_bytes),
        ("gathered", one.gathered_bytes),
        ("16-bit copies", one.cast_bytes),
        ("activations", one.activation_bytes),
        ("scratch", one.scratch_bytes),
        ("runtime", one.runtime_bytes),
        ("total", one.total_bytes),
    ]
    name, where = asked.model or "the bundled model", asked.gpus or f"{memory_bytes / 1e9:.1f} GB (CPU)"
    setup, each = one.setup, " on each device" if one.setup.devices > 1 else ""
    how = f"{setup.method} in {setup.precision}"
    how += ", in shares" if setup.sharding == "full" else ""
    how += ", activations computed again" if setup.recomputes else ""
    if one.fits(memory_bytes):
        host = f", with {megabytes(one.host_bytes)} of the CPU's memory" if one.host_bytes else ""
        verdict = (
            f"fits in {where}{host}; rows of up to {longest_rows} tokens fit\n{_command(asked.model, one)}"
        )
    else:
        hint = f"rows of up to {longest_rows} tokens fit" if longest_rows else "no length of rows fits"
        hint += f"; --finetune {next(iter(others))} fits" if others else ""
        verdict = f"does not fit in {where}, the least it takes is above; {hint}"
    return "\n".join(
        [
            f"{name}: {config.num_parameters / 1e9:.3g}B parameters, {how}, "
            f"{setup.micro_batch} x {setup.seq_length} tokens at a time{each}",
            aligned([(part, megabytes(size)) for part, size in parts if size]),
            verdict,
        ]
    )
