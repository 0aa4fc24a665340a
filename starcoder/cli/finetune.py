"""`starcoder finetune`: train a model further on your own code, questions or dialogues."""

import json as json_format
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from starcoder.cli.large_pages import ask_for_large_pages
from starcoder.errors import ConfigError

if TYPE_CHECKING:
    from starcoder.train.finetune import Recipe, Result

_FLAG = Parameter(show_default=False)
_STOPPED = 128 + signal.SIGTERM  # what a shell reports for a program that the signal ended


def _old(*names: str, hidden: bool = False) -> Parameter:
    """The flag's names in the original project's scripts, and with underscores."""
    return Parameter(alias=[f"--{name}" for name in names], show_default=None if not hidden else False)


@Parameter(name="*", group=Group("Model", sort_key=1))
@dataclass(frozen=True, kw_only=True, slots=True)
class ModelGroup:
    """What is trained."""

    model: Annotated[str | None, Parameter(alias=["-m", "--model_path"])] = None
    """A checkpoint folder or a Hugging Face id; the bundled model if not given."""
    method: Literal["lora", "qlora", "full", "dpo"] = "lora"
    """lora: an adapter; qlora: one on rounded weights; full: all weights; dpo: one from preferences."""
    quantize: Literal["int4", "int8", "nf4"] = "int4"
    """What qlora rounds the weights to; nf4 is bitsandbytes' and needs a GPU."""
    adapter_kind: str = "lora"
    """lora, dora, rslora, pissa, olora or a method of PEFT."""
    rank: Annotated[int, _old("lora_r")] = 16
    """Rank of the adapter's matrices."""
    alpha: Annotated[float, _old("lora_alpha")] = 32.0
    """The adapter counts alpha / rank times."""
    dropout: Annotated[float, _old("lora_dropout")] = 0.0
    """Share of an adapter's inputs left out at random; doubles what is kept for gradients."""
    beta: float = 0.1
    """dpo: how dear it is to leave the model as it was."""
    targets: tuple[str, ...] = ()
    """Layers to adapt, by their names in transformers; all linear ones but the head if not given."""


@Parameter(name="*", group=Group("Data", sort_key=2))
@dataclass(frozen=True, kw_only=True, slots=True)
class DataGroup:
    """What is learnt."""

    data: Annotated[str, _old("dataset_name")] = ""
    """JSONL, Parquet, CSV or text files, a folder of them or of sources, or a data set of the hub."""
    subset: str | None = None
    """Of a hub data set: a folder in it (data/finetune) or a configuration's name."""
    split: str = "train"
    """Of a hub data set."""
    streaming: Annotated[bool, _FLAG] = False
    """Read a hub data set as it is downloaded; needs --max-steps."""
    shuffle_buffer: Annotated[int, _old("shuffle_buffer")] = 2000
    """Streamed rows are shuffled within so many; 1 keeps their order."""
    validation: str | None = None
    """Data to validate on; the set's own or documents by their hash if not given."""
    validation_share: float = 0.05
    """Share of the documents to validate on where the set has none for it."""
    validation_documents: Annotated[int | None, _old("size_valid_set")] = None
    """Documents to validate on at most."""
    validation_tokens: int = 65_536
    """Tokens read at every validation at most."""
    text_column: str | None = None
    """Column of plain documents; content or text if not given."""
    prompt_column: Annotated[str | None, _old("input_column_name")] = None
    """Column of questions."""
    completion_column: Annotated[str | None, _old("output_column_name")] = None
    """Column of answers, which are what is learnt."""
    messages_column: str | None = None
    """Column of dialogues; messages or conversations if not given."""


@Parameter(name="*", group=Group("Documents", sort_key=3))
@dataclass(frozen=True, kw_only=True, slots=True)
class FormatGroup:
    """How rows become tokens."""

    seq_length: Annotated[int | None, _old("seq_length")] = None
    """Tokens in a row, into which documents are packed; 2048, or all that the model has, if not given."""
    layout: Literal["auto", "plain", "file", "repository"] = "auto"
    """Of code: with the paths the family was trained with, where the rows have them, or plain."""
    metadata_rate: float = 0.5
    """How often repository and path are shown."""
    fim_rate: float = 0.5
    """Share of code turned into infills."""
    fim_spm_rate: float = 0.5
    """Share of the infills with the suffix first."""
    fim_syntax_rate: float = 0.5
    """Share of the infills of Python that lack a whole piece of syntax."""
    template: str | None = None
    """Of questions and answers, with {prompt} and {completion}; Question: ..., Answer: ... if not given."""
    learn_prompts: Annotated[bool, _FLAG] = False
    """Learn questions as well as answers."""
    chat_template: str | None = None
    """A jinja file; the tokenizer's own if not given, or StarChat's, whose tokens are added."""


@Parameter(name="*", group=Group("Training", sort_key=4))
@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingGroup:
    """How it is learnt."""

    epochs: float = 1.0
    """Times over the data."""
    max_steps: Annotated[int | None, _old("max_steps")] = None
    """Optimizer steps; as many as --epochs take if not given."""
    batch_size: Annotated[int, _old("batch_size")] = 1
    """Rows at a time; halved where memory runs out."""
    gradient_accumulation_steps: Annotated[int, _old("gradient_accumulation_steps")] = 16
    """Batches to a step."""
    learning_rate: Annotated[float, _old("learning_rate")] = 1e-4
    """Peak learning rate; a tenth of this or less suits full fine-tuning."""
    schedule: Annotated[Literal["cosine", "linear", "constant", "wsd"], _old("lr_scheduler_type")] = "cosine"
    """How the rate falls after warm-up."""
    warmup_steps: Annotated[int | None, _old("num_warmup_steps")] = None
    """Steps in which the rate rises; 3 % of all if not given."""
    weight_decay: Annotated[float, _old("weight_decay")] = 0.05
    """Of matrices."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps a quarter of the state; it needs bitsandbytes and a GPU."""
    neftune_alpha: float = 0.0
    """Noise on embeddings (NEFTune); 5 is usual, 0 is none."""
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    """Of matrix products; the best the device has if not given."""
    checkpoint_activations: Annotated[bool, _FLAG] = False
    """Compute activations again for gradients: a third more work, a fraction of the memory."""
    seed: int = 0
    """Of order, infills, dropout and splits."""


@Parameter(name="*", group=Group("Run", sort_key=5))
@dataclass(frozen=True, kw_only=True, slots=True)
class RunGroup:
    """Where it runs and what it leaves."""

    output: Annotated[str | None, Parameter(alias=["-o", "--output_dir"])] = None
    """Folder of the run: the adapter or model, metrics, plot, samples. The same command resumes."""
    eval_every: Annotated[int, _old("eval_freq")] = 100
    """Steps between validations."""
    save_every: Annotated[int, _old("save_freq")] = 200
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; the best is kept beside them."""
    report_to: tuple[Literal["wandb", "tensorboard", "trackio"], ...] = ()
    """Services told of every step; metrics.jsonl is always written."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps or auto; the best there is if not given."""
    sharding: Literal["full", "none"] = "full"
    """Under torchrun: shares of weights, gradients and optimizer (full) or a copy for each process (none)."""
    offload: Annotated[bool, _FLAG] = False
    """Under torchrun: shares wait in the CPU's memory."""
    threads: int | None = None
    """CPU threads; torch's choice if not given."""
    verify_packing: Annotated[bool, _FLAG] = False
    """Compare packed with separate documents on this model and data, and train nothing."""
    json: Annotated[bool, _FLAG] = False
    """Print one JSON document at the end instead of the folder."""
    verbose: Annotated[bool, Parameter(alias="-v", show_default=False)] = False
    """Log each stage on stderr."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class OldGroup:
    """Flags of the original scripts that say nothing here: accepted, so that old command lines run."""

    bf16: Annotated[bool, Parameter(show=False)] = False
    no_fp16: Annotated[bool, Parameter(alias="--no_fp16", show=False)] = False
    no_gradient_checkpointing: Annotated[bool, Parameter(alias="--no_gradient_checkpointing", show=False)] = (
        False
    )
    log_freq: Annotated[int | None, Parameter(alias="--log_freq", show=False)] = None
    num_workers: Annotated[int | None, Parameter(alias="--num_workers", show=False)] = None
    local_rank: Annotated[int | None, Parameter(alias=["--local_rank"], show=False)] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneOptions:
    """All settings of a run."""

    model: ModelGroup = ModelGroup()
    data: DataGroup = DataGroup()
    form: FormatGroup = FormatGroup()
    training: TrainingGroup = TrainingGroup()
    run: RunGroup = RunGroup()
    old: OldGroup = OldGroup()

    def __post_init__(self) -> None:
        counts = {
            "seq-length": self.form.seq_length,
            "batch-size": self.training.batch_size,
            "gradient-accumulation-steps": self.training.gradient_accumulation_steps,
            "eval-every": self.run.eval_every,
            "save-every": self.run.save_every,
            "keep-checkpoints": self.run.keep_checkpoints,
            "threads": self.run.threads,
            "shuffle-buffer": self.data.shuffle_buffer,
            "max-steps": self.training.max_steps,
        }
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ConfigError(f"--{name} is {count}; expected at least 1")
        for name, rate in (("fim-rate", self.form.fim_rate), ("fim-spm-rate", self.form.fim_spm_rate)):
            if not 0 <= rate <= 1:
                raise ConfigError(f"--{name} is {rate}; expected 0 to 1")


def run(config: Path | None = None, *, options: FinetuneOptions = FinetuneOptions()) -> None:
    """Train a model further: on code, on questions and answers, or on dialogues.

    Shows three samples with what will be learnt, then trains. The output folder
    holds the adapter (or, with --method full, the model), metrics.jsonl, loss.png
    and completions from before and after. The same command goes on after a kill.

    $ starcoder finetune --data ./my-repository --output runs/mine

    $ starcoder finetune --data pairs.jsonl --prompt-column question --completion-column answer -o runs/qa

    $ starcoder finetune recipes/repo.toml

    Args:
        config: TOML file with options of the same names; the command line goes before it.
    """
    import logging

    ask_for_large_pages()
    import torch
    from rich.console import Console

    from starcoder.train import finetune

    if options.run.verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if options.run.threads:
        torch.set_num_threads(options.run.threads)
    console = Console(stderr=True)
    recipe = _recipe(options)
    if options.run.verify_packing:
        report = finetune.check_packing(recipe, console)
        print(json_format.dumps(asdict(report) | {"is_equal": report.is_equal}))
        if not report.is_equal:
            raise SystemExit(1)
        return
    result = finetune.run(recipe, console, should_stop=_terminated())
    if not result.outcome.is_complete:
        console.print(f"stopped at step {result.outcome.step}; the same command goes on", highlight=False)
        raise SystemExit(_STOPPED)
    if os.environ.get("RANK", "0") == "0":  # of several processes one tells
        print(json_format.dumps(_document(result)) if options.run.json else result.folder)


def _terminated() -> "_Flag":
    """Whether the process was told to end: it finishes its step and writes a checkpoint first."""
    flag = _Flag()
    signal.signal(signal.SIGTERM, flag.set)
    return flag


class _Flag:
    def __init__(self) -> None:
        self._is_set = False

    def set(self, *_: object) -> None:
        self._is_set = True

    def __call__(self) -> bool:
        return self._is_set


def _document(result: "Result") -> dict[str, object]:
    return {
        "output": str(result.folder),
        "steps": result.outcome.step,
        "held_out_loss_before": result.held_out_before,
        "held_out_loss_after": result.held_out_after,
        "best": result.outcome.best,
    }


def _usual_length(model: str | None) -> int:
    from starcoder import checkpoint
    from starcoder.train.memory import usual_length

    return usual_length(checkpoint.read_config(checkpoint.resolve_config(model)))


def _recipe(options: FinetuneOptions) -> "Recipe":
    from starcoder.adapters import AdapterSettings
    from starcoder.train.documents import FimSettings
    from starcoder.train.examples import QUESTION, FormatSettings
    from starcoder.train.finetune import Recipe
    from starcoder.train.optimizer import OptimizerSettings
    from starcoder.train.sources import SourceSettings

    model, data, form = options.model, options.data, options.form
    training, chosen = options.training, options.run
    if chosen.output is None and not chosen.verify_packing:
        raise ConfigError("there is no folder to write to", "--output names one, such as runs/mine")
    warmup = training.warmup_steps
    if warmup is None:
        warmup = max(1, round(0.03 * (training.max_steps or 300)))
    return Recipe(
        output=chosen.output or "unused",
        source=SourceSettings(**asdict(data)),
        model=model.model,
        method=model.method,
        seq_length=form.seq_length or _usual_length(model.model),
        epochs=training.epochs,
        max_steps=training.max_steps,
        batch_size=training.batch_size,
        accumulation=training.gradient_accumulation_steps,
        eval_every=chosen.eval_every,
        save_every=chosen.save_every,
        keep_checkpoints=chosen.keep_checkpoints,
        fim=FimSettings(rate=form.fim_rate, spm_rate=form.fim_spm_rate, syntax_rate=form.fim_syntax_rate),
        form=FormatSettings(
            layout=form.layout,
            metadata_rate=form.metadata_rate,
            template=form.template or QUESTION,
            chat_template=form.chat_template,
            learn_prompts=form.learn_prompts,
        ),
        adapter=AdapterSettings(
            kind=model.adapter_kind,
            rank=model.rank,
            alpha=model.alpha,
            dropout=model.dropout,
            targets=model.targets,
            seed=training.seed,
        ),
        optimizer=OptimizerSettings(
            learning_rate=training.learning_rate,
            betas=(0.9, 0.999),
            weight_decay=training.weight_decay,
            schedule=training.schedule,
            warmup_steps=warmup,
            clip_norm=training.clip_norm,
            is_8bit=training.optimizer == "adamw8bit",
        ),
        quantize=model.quantize,
        precision=training.precision,
        is_recomputed=training.checkpoint_activations,
        neftune_alpha=training.neftune_alpha,
        device=chosen.device,
        seed=training.seed,
        report_to=chosen.report_to,
        beta=model.beta,
        sharding=chosen.sharding,
        offload=chosen.offload,
    )
