"""Which model runs where, how much an engine takes on at once, and its figures. No torch."""

from dataclasses import dataclass
from typing import Literal

from starcoder.errors import ConfigError

DType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """Which weights, and where they run: the arguments of `starcoder.load`."""

    model: str | None = None
    """Checkpoint folder or Hugging Face id, such as bigcode/starcoder2-3b; the bundled model by default."""
    adapter: str | None = None
    """Adapter that `starcoder finetune` or PEFT trained on this model: a folder or a Hugging Face id."""
    dtype: DType | None = None
    """Data type of the weights; by default float32 on a CPU and as stored elsewhere."""
    quantize: Literal["int8", "int4"] | None = None
    """Quantize the weights while loading; `starcoder quantize` does it once for all runs."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps or auto: CUDA, then MPS where it works, then the CPU."""
    threads: int | None = None
    """Number of CPU threads; torch's choice by default."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; expected at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchSettings:
    """What a benchmark of the engine measures."""

    prompt_tokens: int = 512
    """Number of tokens of the prompt whose prefill is measured."""
    max_tokens: int = 64
    """Number of tokens to decode."""
    rounds: int = 5
    """Number of rounds; the median is reported."""

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 1), ("max_tokens", 2), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {least}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """How much the engine takes on at once."""

    block_size: int = 16  # tokens per cache block
    cache_bytes: int | None = None
    """Bytes of the key-value cache; by default eight full contexts, at most a quarter of the memory."""
    max_step_tokens: int = 512
    """Maximum number of tokens of one forward pass; longer prompts are prefilled in chunks."""
    max_sequences: int = 64
    """Maximum number of sequences that run at the same time."""
    max_queue: int = 1024
    """Maximum number of requests that wait; further ones are refused."""
    max_sessions: int = 256
    """Number of editing sessions whose last request is kept."""
    prepare: bool = False
    """While idle, complete what an editing session asks next if its last completion is accepted."""
    drafts: int = 0
    """Maximum length in tokens of a draft, for greedy requests; 0 is off."""

    def __post_init__(self) -> None:
        for name in ("block_size", "max_step_tokens", "max_sequences", "max_queue", "max_sessions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.drafts < 0:
            raise ConfigError(f"drafts is {self.drafts}; expected 0 (off) or more")
        if self.max_sequences > self.max_step_tokens:
            raise ConfigError(
                f"max_sequences {self.max_sequences} is above max_step_tokens {self.max_step_tokens}",
                "every running sequence needs a token in each step",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """Where the engine stands now, and totals since it was made."""

    num_waiting: int
    num_running: int
    num_blocks: int
    num_held_blocks: int
    num_steps: int
    num_preemptions: int
    computed_tokens: int  # that went through the network, prompts and completions
    generated_tokens: int
    drafted_tokens: int
    accepted_tokens: int  # of those drafted
    num_repeated: int  # requests of sessions that were answered without the model
    num_sessions: int  # that are remembered
