"""All settings of a fine-tuning run, and the folder that is claimed for them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from starcoder.adapters.settings import AdapterSettings
from starcoder.errors import CheckpointError, ConfigError
from starcoder.files import write_whole
from starcoder.train.settings import (
    FimSettings,
    FormatSettings,
    OptimizerSettings,
    Precision,
    Service,
    SourceSettings,
)

Method = Literal["lora", "qlora", "full", "dpo"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A whole fine-tuning run."""

    output: str = ""
    """Folder of the run: the adapter or model, metrics, plot and samples. The same command resumes it."""
    model: str | None = None
    """Checkpoint folder or Hugging Face id; the bundled model by default."""
    method: Method = "lora"
    """lora: train an adapter; qlora: one on quantized weights; full: all weights; dpo: from preferences."""
    init_adapter: str | None = None
    """Adapter to continue from, a folder or id: to learn preferences after fine-tuning, or from more data."""
    quantize: Literal["int4", "int8", "nf4"] = "int4"
    """Quantization of qlora's base model; nf4 is bitsandbytes' and needs a GPU."""
    beta: float = 0.1
    """With --method dpo: strength of the KL penalty towards the reference model."""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """Adapter"""
    source: SourceSettings = field(default_factory=SourceSettings)
    """Data"""
    form: FormatSettings = field(default_factory=FormatSettings)
    """Documents"""
    fim: FimSettings = field(default_factory=lambda: FimSettings(syntax_rate=0.5))
    """Infills"""
    optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(learning_rate=1e-4, betas=(0.9, 0.999), weight_decay=0.05)
    )
    """Optimizer"""
    seq_length: int = 2048
    """Number of tokens in a row, into which documents are packed."""
    epochs: float = 1.0
    """Number of passes over the data."""
    max_steps: int | None = None
    """Number of optimizer steps; by default as many as --epochs take."""
    batch_size: int = 1
    """Number of rows in a forward pass; halved when memory runs out."""
    accumulation: int = field(default=16, metadata={"flag": "gradient_accumulation_steps"})
    """Number of forward passes in a step."""
    neftune_alpha: float = 0.0
    """Noise on embeddings (NEFTune); 5 is usual, 0 is off."""
    precision: Precision | None = None
    """Data type of matrix products; by default the best that the device has."""
    is_recomputed: bool = field(default=False, metadata={"flag": "checkpoint_activations"})
    """Recompute activations for gradients: a third more work, a fraction of the memory."""
    seed: int = 0
    """Seed of order, infills, dropout and splits."""
    eval_every: int = 100
    """Number of steps between validations."""
    save_every: int = 200
    """Number of steps between checkpoints."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep; the best one is kept in addition."""
    report_to: tuple[Service, ...] = ()
    """Service that receives the metrics of every step; metrics.jsonl is always written."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps or auto: CUDA, then MPS where it works, then the CPU."""
    sharding: Literal["full", "none"] = "full"
    """Under torchrun: shard weights, gradients and optimizer (full), or replicate them (none)."""
    offload: bool = False
    """Under torchrun: keep the shards in the CPU's memory."""

    def __post_init__(self) -> None:
        if self.init_adapter is not None and self.method == "full":
            raise ConfigError("--method full trains no adapter", "merge --init-adapter first, or choose lora")
        counts = ("seq_length", "batch_size", "accumulation", "eval_every", "save_every", "keep_checkpoints")
        for name in (*counts, "max_steps"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ConfigError(f"{name} is {count}; expected at least 1")


# What may differ between a run and its resumption without changing what is learned.
_FREE = ("save_every", "keep_checkpoints", "report_to", "device", "output")
# What a finished or stopped run may be given to be lengthened; the learning rate then follows the new length.
_LENGTHS = ("epochs", "max_steps")


def claim(recipe: Recipe, output: Path) -> None:
    """Write the recipe into the output folder, or check that the one there is the same."""
    path = output / "recipe.json"
    own = json.loads(json.dumps(asdict(recipe), default=str))
    has_checkpoints = any((output / "checkpoints").glob("step-*"))
    if path.exists() and has_checkpoints:
        there: Mapping[str, object] = json.loads(path.read_text("utf-8"))
        changed = sorted(k for k in own if k not in (*_FREE, *_LENGTHS) and own[k] != there.get(k))
        if changed:
            raise CheckpointError(
                f"{str(output)!r} holds a run of another recipe: {', '.join(changed)} differ",
                "use the same settings, or give another --output",
            )
    output.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(own, indent=1) + "\n")
