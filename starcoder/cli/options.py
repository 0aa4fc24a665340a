"""Options that several verbs share, each default taken from the place that owns it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from starcoder.errors import ConfigError
from starcoder.request import Layout, SamplingParams

if TYPE_CHECKING:
    from starcoder.engine.local import Model
    from starcoder.engine.settings import EngineSettings

_DEFAULT = SamplingParams()
# For values that may be any text, such as "-", "-- a comment" or "->".
TEXT = Parameter(allow_leading_hyphen=True, show_default=False)
_FLAG = Parameter(show_default=False)


@Parameter(name="*", group=Group("Model", sort_key=2))
@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """Which weights, and where they run."""

    model: Annotated[str | None, Parameter(alias="-m")] = None
    """A checkpoint folder or a Hugging Face id (bigcode/starcoder2-3b); the bundled model if not given."""
    adapter: str | None = None
    """What `starcoder finetune` or PEFT made of this model: a folder or a Hugging Face id."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights; float32 on a CPU and as stored elsewhere if not given."""
    quantize: Literal["int8", "int4"] | None = None
    """Round the weights as they are read; `starcoder quantize` does it once for all times."""
    device: str | None = None
    """cpu, cuda, cuda:1 or auto; cpu if not given."""
    threads: int | None = None
    """CPU threads; torch's choice if not given."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads is {self.threads}; expected at least 1")

    def load(self, settings: "EngineSettings | None" = None) -> "Model":
        """The model in an engine. Raises: ConfigError, CheckpointError: as `starcoder.load`."""
        from starcoder.engine import local  # imports torch

        return local.load(
            self.model,
            device=self.device,
            dtype=self.dtype,
            quantize=self.quantize,
            adapter=self.adapter,
            threads=self.threads,
            settings=settings,
        )


@Parameter(name="*", group=Group("Sampling", sort_key=1))
@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """How tokens are chosen and when they end."""

    max_tokens: int = _DEFAULT.max_tokens
    """Tokens to make at most."""
    temperature: float = _DEFAULT.temperature
    """0 always takes the most probable token; higher is more varied."""
    top_p: float = _DEFAULT.top_p
    """Keep the most probable tokens that together have this probability."""
    top_k: int = _DEFAULT.top_k
    """Keep this many of the most probable tokens; 0 keeps all."""
    stop: Annotated[tuple[str, ...], TEXT] = _DEFAULT.stop
    """End before this text; may be given several times."""
    seed: int | None = _DEFAULT.seed
    """Makes sampling repeatable."""
    n: Annotated[int, Parameter(name="--n")] = _DEFAULT.n
    """Samples to make of one prompt."""
    logprobs: int | None = _DEFAULT.logprobs
    """With --json: log-probability of each token, and of this many alternatives."""
    ignore_eos: Annotated[bool, _FLAG] = _DEFAULT.ignore_eos
    """Go on past the model's own end of text."""
    layout: Layout = "auto"
    """Order of an infill's parts: prefix-suffix-middle, suffix-prefix-middle, or the model's own."""

    def params(self) -> SamplingParams:
        """As the engine takes them.

        Raises:
            RequestError: a value out of its range.
        """
        return SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop,
            seed=self.seed,
            n=self.n,
            logprobs=self.logprobs,
            ignore_eos=self.ignore_eos,
        )


@Parameter(name="*", group=Group("Output", sort_key=3))
@dataclass(frozen=True, kw_only=True, slots=True)
class OutputOptions:
    """What is shown, and how."""

    json: Annotated[bool, _FLAG] = False
    """Print one JSON document instead of text."""
    echo: Annotated[bool | None, Parameter(negative="--no-echo")] = None
    """Show the prompt around the completion; on a terminal if not given."""
    verbose: Annotated[bool, Parameter(alias="-v", show_default=False)] = False
    """Report tokens and times on stderr."""
    config: Path | None = None
    """TOML file with options of the same names; the command line goes before it."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class AskOptions:
    """All that a verb takes that asks a model for a completion."""

    sampling: SamplingOptions = SamplingOptions()
    model: ModelOptions = ModelOptions()
    output: OutputOptions = OutputOptions()

    def __post_init__(self) -> None:
        if self.sampling.logprobs is not None and not self.output.json:
            raise ConfigError("--logprobs shows only in JSON", "add --json")
