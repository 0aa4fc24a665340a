"""`starcoder pretrain RECIPE`: from a prepared data set to a checkpoint folder that transformers loads.

Stages, each kept on disk under the output folder and skipped when it is there: tokenizer,
training (resumable), export.
"""

import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console

from starcoder import checkpoint
from starcoder.config import ModelConfig
from starcoder.errors import ConfigError
from starcoder.files import copy_model_files
from starcoder.model import Transformer
from starcoder.tokenizer import Tokenizer
from starcoder.train import distributed, loop
from starcoder.train.checkpoints import Checkpoints
from starcoder.train.documents import read_texts
from starcoder.train.packing import Batch, PackedDocuments
from starcoder.train.progress import Progress, Silent
from starcoder.train.settings import FimSettings, OptimizerSettings
from starcoder.train.vocabulary import train_tokenizer

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """Where documents come from: a folder that `starcoder prepare` wrote, a JSONL file, or Python files."""

    train: str | None = None
    held_out: str | None = None  # None: the validation split of a prepared `train`
    held_out_tokens: int = 100_000
    tokenizer: str | None = None  # a folder; None: one is trained on the training data
    tokenizer_characters: int = 50_000_000  # training text the tokenizer is trained on
    seq_length: int = 1024
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A whole pretraining run, as read from TOML; each table is one of these fields."""

    output: str
    model: ModelConfig
    training: loop.LoopSettings
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    data: DataSettings = field(default_factory=DataSettings)
    fim: FimSettings = field(default_factory=FimSettings)
    threads: int | None = None
    device: str = "cpu"

    @classmethod
    def read(cls, path: Path) -> "Recipe":
        """Read a TOML recipe.

        Raises:
            ConfigError: no such file, not TOML, or a key that does not exist.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read recipe {str(path)!r}: {error.strerror}") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not TOML: {error}") from None
        tables = {
            "model": ModelConfig,
            "training": loop.LoopSettings,
            "optimizer": OptimizerSettings,
            "data": DataSettings,
            "fim": FimSettings,
        }
        parts: dict[str, Any] = {
            name: _build(kind, table.pop(name), name) for name, kind in tables.items() if name in table
        }
        return _build(cls, {**table, **parts}, "the recipe")


def _build(kind: type[T], values: dict[str, Any], where: str) -> T:
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]  # only called with dataclasses
    for key in values:
        if key not in known:
            raise ConfigError(f"{where} has no key {key!r}", f"known keys: {', '.join(sorted(known))}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {str(error).partition(') ')[2] or error}") from None


def run(recipe: Recipe, console: Console) -> Path:
    """Carry out `recipe`, continuing an earlier run of it that was interrupted; the exported folder.

    Under `torchrun` all processes train one model, each on its share of every step's rows.

    Raises:
        ConfigError: the recipe does not fit its data, or its rows do not divide among the processes.
    """
    if not torch.distributed.is_torchelastic_launched():
        return _run(recipe, console, None)
    with distributed.processes(recipe.device, distributed.Replicas) as group:
        return _run(recipe, Console(quiet=True) if group.rank else console, group)


def _run(recipe: Recipe, console: Console, group: distributed.Processes | None) -> Path:
    output = Path(recipe.output)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    if group is not None and recipe.training.batch_size % group.size:
        raise ConfigError(
            f"{recipe.training.batch_size} rows a step do not divide among {group.size} processes",
            f"make [training] batch_size a multiple of {group.size}",
        )
    if group is not None and group.rank > 0:
        group.wait()  # the first process makes what is missing
    texts, held_out = _documents(recipe.data)
    folder = _tokenizer(recipe, texts, output, console)
    if group is not None and group.rank == 0:
        group.wait()
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > recipe.model.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {recipe.model.vocab_size}",
            "raise [model] vocab_size or use another tokenizer",
        )
    model = Transformer(recipe.model)
    model.initialize(torch.Generator().manual_seed(recipe.data.seed))
    model.to(recipe.device)
    console.print(
        f"{recipe.model.num_parameters / 1e6:.2f} M parameters, {len(texts):,} documents, "
        f"{sum(map(len, texts)) / 1e6:.0f} M characters",
        highlight=False,
    )
    data = PackedDocuments(
        texts, tokenizer, seq_length=recipe.data.seq_length, fim=recipe.fim, seed=recipe.data.seed
    )
    loop.train(
        model,
        data,
        recipe.training,
        recipe.optimizer,
        output,
        held_out=held_out_batches(held_out, tokenizer, recipe.data),
        progress=Progress(output, console) if group is None or group.rank == 0 else Silent(output, console),
        group=group,
        checkpoints=None if group is None else _checkpoints(recipe, output, group),
    )
    export = output / "model"
    if group is not None and group.rank > 0:
        return export
    checkpoint.save(model.cpu(), export)
    copy_model_files(folder, export)
    return export


def _checkpoints(recipe: Recipe, output: Path, group: distributed.Processes) -> Checkpoints:
    return distributed.ReplicatedCheckpoints(
        output / "checkpoints", group, keep=recipe.training.keep_checkpoints
    )


def held_out_batches(texts: Sequence[str], tokenizer: Tokenizer, settings: DataSettings) -> list[Batch]:
    """About `held_out_tokens` tokens of the held-out documents, left to right."""
    plain = PackedDocuments(texts, tokenizer, seq_length=settings.seq_length, fim=FimSettings(rate=0), seed=0)
    rows = math.ceil(settings.held_out_tokens / settings.seq_length)
    return [plain.next_batch(min(8, rows - at)) for at in range(0, rows, 8)]


def _documents(settings: DataSettings) -> tuple[list[str], list[str]]:
    """What to train on and what is held out."""
    if settings.train is None:
        raise ConfigError("the recipe names no data", "[data] train names what `starcoder prepare` wrote")
    held_out = Path(settings.held_out or settings.train)
    return read_texts(Path(settings.train)), read_texts(held_out, split="validation")


def _tokenizer(recipe: Recipe, texts: Sequence[str], output: Path, console: Console) -> Path:
    if recipe.data.tokenizer:
        return Path(recipe.data.tokenizer)
    folder = output / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        console.print(f"training a tokenizer of {recipe.model.vocab_size} tokens ...", highlight=False)
        sample = _sample(texts, recipe.data.tokenizer_characters)
        train_tokenizer(sample, recipe.model.vocab_size, folder, recipe.model.max_positions)
    return folder


def _sample(texts: Sequence[str], characters: int) -> Iterable[str]:
    """Documents spread evenly over `texts`, `characters` in all."""
    every = max(1, sum(map(len, texts)) // characters)
    return texts[::every]
