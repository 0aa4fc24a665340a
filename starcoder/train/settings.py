"""Settings of training that callers choose: data, formats, infills, optimizer. No torch."""

from dataclasses import dataclass, field
from typing import Literal

from starcoder.errors import ConfigError

Precision = Literal["float32", "bfloat16", "float16"]
Schedule = Literal["cosine", "wsd", "linear", "constant"]
Service = Literal["wandb", "tensorboard", "trackio"]
DocumentLayout = Literal["auto", "plain", "file", "repository"]

QUESTION = "Question: {prompt}\n\nAnswer: {completion}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSettings:
    """Where rows come from, and which of their columns count."""

    data: tuple[str, ...] = ()
    """JSONL, JSON, Parquet, CSV, TSV or text file, a folder of them or of source code, or a data set of the
    hub; repeat it for several."""
    weights: tuple[float, ...] = ()
    """How often an epoch holds each data set, in the order of --data; by default once."""
    subset: str | None = None
    """Part of a hub data set: a folder in it (data/finetune) or the name of a configuration."""
    split: str = "train"
    """Split of a hub data set."""
    streaming: bool = False
    """Read a hub data set while it is downloaded; needs --max-steps."""
    shuffle_buffer: int = 2000
    """Shuffle streamed rows within a buffer of so many; 1 keeps their order."""
    validation: str | None = None
    """Data to validate on; by default the data set's own split, or documents chosen by their hash."""
    validation_share: float = 0.05
    """Share of the documents to validate on if the data set has no split for it."""
    validation_documents: int | None = None
    """Maximum number of documents to validate on."""
    max_skipped_share: float = 0.05
    """Refuse to train if more than this share of the rows cannot be read; skipped.jsonl lists them."""
    validation_tokens: int = 65_536
    """Maximum number of tokens of one validation."""
    text_column: str | None = None
    """Column of plain documents; by default content or text."""
    prompt_column: str | None = None
    """Column of questions."""
    completion_column: str | None = None
    """Column of answers, the part that the model learns to write."""
    messages_column: str | None = None
    """Column of dialogues; by default messages or conversations."""

    def __post_init__(self) -> None:
        if self.shuffle_buffer < 1:
            raise ConfigError(f"shuffle_buffer is {self.shuffle_buffer}; expected at least 1")
        if not 0 <= self.max_skipped_share <= 1:
            raise ConfigError(f"max_skipped_share is {self.max_skipped_share}; expected 0 to 1")
        if any(weight <= 0 for weight in self.weights):
            raise ConfigError(f"weights are {self.weights}; expected numbers above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class FormatSettings:
    """How rows become text."""

    layout: DocumentLayout = "auto"
    """Layout of code: with paths as the family was trained, where the rows have them, or plain."""
    metadata_rate: float = 0.5
    """Share of the documents that show repository and path."""
    template: str = QUESTION
    """Template of questions and answers, with {prompt} and {completion} or the columns' own names."""
    learn_prompts: bool = False
    """Learn to write questions as well as answers."""
    chat_template: str | None = None
    """Jinja file; by default the tokenizer's own template, or StarChat's, whose tokens are added."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FimSettings:
    """How often documents are turned into infills, and in which order of their parts.

    Source: AST-FIM, arXiv:2506.00204, for spans of whole syntax.
    """

    rate: float = field(default=0.5, metadata={"flag": "fim_rate"})
    """Share of the code that is turned into infills."""
    spm_rate: float = field(default=0.5, metadata={"flag": "fim_spm_rate"})
    """Share of the infills that have the suffix first."""
    syntax_rate: float = field(default=0.0, metadata={"flag": "fim_syntax_rate"})
    """Share of the infills of Python that remove a whole piece of syntax."""

    def __post_init__(self) -> None:
        for name in ("rate", "spm_rate", "syntax_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"fim_{name} is {getattr(self, name)}; expected 0 to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """How weights are updated. `muon_learning_rate` None trains everything with AdamW."""

    learning_rate: float = 3e-3
    """Peak learning rate; full fine-tuning needs a tenth of an adapter's or less."""
    muon_learning_rate: float | None = None  # of matrices inside blocks
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    """Weight decay of matrices; vectors have none."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after warm-up."""
    warmup_steps: int | None = None
    """Number of steps in which the learning rate rises; by default 3 % of all steps."""
    decay_share: float = 0.3
    """With --schedule wsd: share of the steps in which the learning rate falls."""
    final_share: float = 0.0
    """Learning rate at the end, as a share of the peak."""
    clip_norm: float = 1.0
    """Scale gradients down to this norm."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps its state in 8 bits; it needs bitsandbytes and a GPU."""
