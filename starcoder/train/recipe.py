"""All settings of a fine-tuning run, and the folder that is claimed for them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from starcoder.adapters import AdapterSettings
from starcoder.errors import CheckpointError
from starcoder.files import write_whole
from starcoder.train import loop
from starcoder.train.documents import FimSettings
from starcoder.train.examples import FormatSettings
from starcoder.train.optimizer import OptimizerSettings
from starcoder.train.progress import Service
from starcoder.train.sources import SourceSettings

Method = Literal["lora", "qlora", "full", "dpo"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A whole fine-tuning run."""

    output: str
    source: SourceSettings
    model: str | None = None
    method: Method = "lora"
    seq_length: int = 2048
    epochs: float = 1.0
    max_steps: int | None = None  # None: as many as `epochs` take
    batch_size: int = 1  # rows at a time
    accumulation: int = 16  # times that before a step
    eval_every: int = 100
    save_every: int = 200
    keep_checkpoints: int = 2
    fim: FimSettings = field(default_factory=FimSettings)
    form: FormatSettings = field(default_factory=FormatSettings)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    quantize: Literal["int4", "int8", "nf4"] = "int4"  # of qlora's base
    precision: loop.Precision | None = None
    is_recomputed: bool = False
    neftune_alpha: float = 0.0
    device: str | None = None
    seed: int = 0
    report_to: tuple[Service, ...] = ()
    beta: float = 0.1  # dpo: how dear it is to leave the reference
    sharding: Literal["full", "none"] = "full"  # of several processes
    offload: bool = False  # sharded weights wait in the CPU's memory


# What may differ between a run and its resumption without changing what is learnt.
_FREE = ("save_every", "keep_checkpoints", "report_to", "device", "output")


def claim(recipe: Recipe, output: Path) -> None:
    """Write the recipe into the output folder, or check that the one there is the same."""
    path = output / "recipe.json"
    own = json.loads(json.dumps(asdict(recipe), default=str))
    has_checkpoints = any((output / "checkpoints").glob("step-*"))
    if path.exists() and has_checkpoints:
        there: Mapping[str, object] = json.loads(path.read_text("utf-8"))
        changed = sorted(k for k in own if k not in _FREE and own[k] != there.get(k))
        if changed:
            raise CheckpointError(
                f"{str(output)!r} holds a run of another recipe: {', '.join(changed)} differ",
                "go on with the same settings, or give another --output",
            )
    output.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(own, indent=1) + "\n")
