"""How much an engine takes on at once, and where it stands."""

from dataclasses import dataclass

from starcoder.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """How much the engine takes on at once."""

    block_size: int = 16  # tokens per cache block
    cache_bytes: int | None = None  # None: eight full contexts, at most a quarter of the memory
    max_step_tokens: int = 512  # of one forward pass: longer prompts are prefilled in chunks
    max_sequences: int = 64  # that run at the same time
    max_queue: int = 1024  # that wait; more are a CapacityError
    max_sessions: int = 256  # whose last request is remembered
    prepare: bool = False  # while idle, complete what a session will ask if its last answer is accepted
    drafts: int = 0  # most tokens of a draft, for greedy requests; 0 is off

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
