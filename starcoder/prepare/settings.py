"""What to prepare and how: the one place of its defaults."""

from dataclasses import dataclass
from typing import Literal

from starcoder.errors import ConfigError
from starcoder.prepare.dedup import DedupSettings
from starcoder.prepare.filters import FilterSettings
from starcoder.prepare.secrets import SecretSettings

Family = Literal["santacoder", "starcoder", "starcoder2"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSettings:
    """Validated when made: `ConfigError` names the field. Only `workers` does not change the result."""

    inputs: tuple[str, ...] = ()  # folders, repositories and URLs, each perhaps with @revision
    issues: tuple[str, ...] = ()  # JSON exports
    family: Family = "starcoder2"
    worktree: bool = False  # of repositories: files as they lie, instead of a revision's
    commits: bool = False  # small single-file changes as documents
    max_file_bytes: int = 1_000_000
    languages: tuple[str, ...] = ()  # all if empty
    vendored: bool = False  # take folders of other people's code too
    allow_licences: tuple[str, ...] = ()  # patterns; all if empty
    deny_licences: tuple[str, ...] = ()
    filters: FilterSettings = FilterSettings()
    benchmarks: tuple[str, ...] = ()  # files whose texts must not be in the data
    contamination: float = 0.5  # share of a benchmark text's 10-grams from which on a document is dropped
    secrets: SecretSettings = SecretSettings()
    dedup: DedupSettings = DedupSettings()
    order: Literal["dependency", "path"] = "dependency"
    split_by: Literal["file", "repository", "time"] = "file"
    validation_share: float = 0.05
    tokenizer: str | None = None  # a folder; None: the bundled model's
    pack_tokens: int = 0  # tokens of a packed row; 0: no token shards
    metadata_rate: float = 0.5  # how often packed documents show repository and path
    shard_bytes: int = 100_000_000
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if not self.inputs and not self.issues:
            raise ConfigError("there is nothing to prepare", "name folders, repositories or their URLs")
        for name, low in (("max_file_bytes", 1), ("shard_bytes", 1000), ("workers", 1), ("pack_tokens", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {low}")
        for name in ("validation_share", "metadata_rate", "contamination"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected between 0 and 1")
