"""What to prepare and how: the one place of its defaults."""

from dataclasses import dataclass
from typing import Literal

from starcoder.errors import ConfigError
from starcoder.prepare.dedup import DedupSettings
from starcoder.prepare.filters import FilterSettings
from starcoder.prepare.secrets import SecretSettings
from starcoder.repos.languages import languages

Family = Literal["santacoder", "starcoder", "starcoder2"]

_TRAINED_RATES: dict[Family, float] = {"santacoder": 0.0, "starcoder": 0.2, "starcoder2": 0.5}


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSettings:
    """Validated when made: `ConfigError` names the field. `workers` and `ray` do not change the result."""

    inputs: tuple[str, ...] = ()  # folders, repositories and URLs, each perhaps with @revision
    issues: tuple[str, ...] = ()  # JSON exports
    family: Family = "starcoder2"
    worktree: bool = False  # of repositories: files as they lie, instead of a revision's
    commits: bool = False  # small single-file changes as documents
    max_file_bytes: int = 1_000_000
    languages: tuple[str, ...] = ()  # all if empty
    vendored: bool = False  # take folders of other people's code too
    allow_licenses: tuple[str, ...] = ()  # patterns; all if empty
    deny_licenses: tuple[str, ...] = ()
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
    metadata_rate: float | None = None  # how often packed documents show repository and path; the family's
    shard_bytes: int = 100_000_000
    seed: int = 0
    workers: int = 1
    ray: bool = False  # find duplicates on a Ray cluster

    def __post_init__(self) -> None:
        if not self.inputs and not self.issues:
            raise ConfigError("there is nothing to prepare", "name folders, repositories or their URLs")
        for name, low in (("max_file_bytes", 1), ("shard_bytes", 1000), ("workers", 1), ("pack_tokens", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {low}")
        for name in ("validation_share", "metadata_rate", "contamination"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected between 0 and 1")
        for language in self.languages:
            if language not in languages():
                meant = [name for name in languages() if name.lower() == language.lower()]
                hint = f"is it {meant[0]}?" if meant else f"the languages are {', '.join(languages())}"
                raise ConfigError(f"there is no language {language!r}", hint)
        if self.family == "santacoder" and (self.commits or self.issues):
            raise ConfigError(
                "SantaCoder learnt no commits and no issues, and has no tags for them",
                "take files alone, or name the --family of the model to train",
            )

    @property
    def shown_rate(self) -> float:
        """`metadata_rate`, or as often as the family's own training showed repository and path.

        Source: arXiv 2305.06161, section 5.1 (StarCoder); arXiv 2402.19173, section 5 (Starcoder2).
        """
        return _TRAINED_RATES[self.family] if self.metadata_rate is None else self.metadata_rate
