"""What to prepare and how: the one place of its defaults."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from starcoder.errors import ConfigError
from starcoder.prepare.filters import FilterSettings
from starcoder.prepare.secrets import SecretSettings
from starcoder.repos.languages import check_language_map, known_language

Family = Literal["santacoder", "starcoder", "starcoder2"]

_RECALL = 0.99  # of the bands of a signature, at the similarity itself
_TRAINED_RATES: dict[Family, float] = {"santacoder": 0.0, "starcoder": 0.2, "starcoder2": 0.5}


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupSettings:
    """When two documents are the same. Validated when made: `ConfigError` names the field.

    Source of the defaults: the StarCoder paper's near-deduplication, arXiv 2305.06161 section 3.
    """

    similarity: float = 0.7
    """Jaccard similarity of token shingles at and above which documents are near duplicates."""
    num_permutations: int = 256
    """Length of a document's MinHash signature."""
    shingle_tokens: int = 5
    """Number of tokens of a shingle."""
    seed: int = 0  # of the signatures' hash functions

    def __post_init__(self) -> None:
        if not 0.1 <= self.similarity <= 1:
            raise ConfigError(f"similarity is {self.similarity}; expected between 0.1 and 1")
        if not 16 <= self.num_permutations <= 4096:
            raise ConfigError(f"num_permutations is {self.num_permutations}; expected 16 to 4096")
        if not 1 <= self.shingle_tokens <= 100:
            raise ConfigError(f"shingle_tokens is {self.shingle_tokens}; expected 1 to 100")

    @property
    def rows(self) -> int:
        """Numbers of a band: as many as still let documents at the threshold meet, so few others do."""
        for rows in range(min(20, self.num_permutations), 1, -1):
            if 1 - (1 - self.similarity**rows) ** (self.num_permutations // rows) >= _RECALL:
                return rows
        return 1

    @property
    def num_bands(self) -> int:
        return self.num_permutations // self.rows


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSettings:
    """Validated when made: `ConfigError` names the field. `workers` and `ray` do not change the result."""

    inputs: tuple[str, ...] = ()  # folders, repositories and URLs, each perhaps with @revision
    family: Family = "starcoder2"
    """Model family whose layout commits, issues and packed tokens have."""
    issues: tuple[Path, ...] = ()
    """JSON exports of issues and pull requests, as GitHub's API returns them, with `comments` as a list."""
    commits: bool = False
    """Add small commits that change one file, as documents: the change with up to 30 lines around it."""
    commits_per_file: int = 10
    """Maximum number of commits that change the same file; the newest are kept."""
    notebook_scripts: bool = False
    """Add each notebook as a script too: its code, with the text as comments."""
    worktree: bool = False
    """Read the files of repositories from disk, with what is neither committed nor ignored."""
    languages: tuple[str, ...] = ()
    """Read files of these languages only, such as Python or C++."""
    language_map: tuple[str, ...] = ()
    """Languages of further files, as PATTERN=LANGUAGE: `*.inc=PHP`, `.tpl=HTML` or `conf/*=INI`."""
    vendored: bool = False
    """Include folders of third-party code."""
    max_file_bytes: int = 1_000_000
    """Leave out larger files."""
    allow_license: tuple[str, ...] = ()
    """Accept these SPDX identifiers only, or patterns such as BSD-*; `unknown` matches a missing license."""
    deny_license: tuple[str, ...] = ()
    """Leave out files under these SPDX identifiers or patterns."""
    filters: FilterSettings = FilterSettings()
    """Quality filters"""
    benchmark: tuple[Path, ...] = ()
    """Benchmark files whose texts must not occur in the data set."""
    contamination: float = 0.5
    """Share of a benchmark text's 10-grams at and above which a document is dropped."""
    secrets: SecretSettings = SecretSettings()
    """Secrets and personal data"""
    base: Path | None = None
    """Data set that `prepare` wrote before: leave out repositories at a commit that it has, and documents
    equal or similar to its own."""
    dedup: DedupSettings = DedupSettings()
    """Duplicates"""
    order: Literal["dependency", "path"] = "dependency"
    """Order of a repository's files: imported files first, or by path."""
    split_by: Literal["file", "repository", "time"] = "file"
    """What becomes validation data: some files, whole repositories, or the files changed last."""
    held_out: tuple[str, ...] = ()
    """Names of repositories, or patterns of names, whose documents all become validation data."""
    max_repository_bytes: int = 0
    """Leave out what a repository has beyond this, so that none dominates; 0 sets no limit."""
    validation_share: float = 0.05
    """Share of the documents for validation; of their bytes with --split-by repository."""
    tokenizer: Path | None = None
    """Folder of the tokenizer that counts and packs; the bundled model's by default."""
    pack_tokens: int = 0
    """Also write rows of so many tokens for pretraining; 0 writes none."""
    metadata_rate: float | None = None
    """Share of packed documents that show repository and path; by default as in the family's training."""
    shard_bytes: int = 100_000_000
    """Size of a Parquet file."""
    seed: int = 0
    """Seed of splits and layouts."""
    workers: int = 1
    """Number of processes."""
    ray: bool = False
    """Find duplicates with Ray Data, on the cluster of RAY_ADDRESS or on this machine."""

    def __post_init__(self) -> None:
        for name, low in (
            ("max_file_bytes", 1),
            ("commits_per_file", 1),
            ("shard_bytes", 1000),
            ("workers", 1),
            ("pack_tokens", 0),
        ):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {low}")
        for name in ("validation_share", "metadata_rate", "contamination"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected between 0 and 1")
        object.__setattr__(self, "languages", tuple(map(known_language, self.languages)))
        check_language_map(self.language_map)
        if self.family == "santacoder" and (self.commits or self.issues):
            raise ConfigError(
                "SantaCoder was not trained on commits or issues and has no tags for them",
                "prepare files alone, or give the --family of the model to train",
            )

    @property
    def shown_rate(self) -> float:
        """`metadata_rate`, or as often as the family's own training showed repository and path.

        Source: arXiv 2305.06161, section 5.1 (StarCoder); arXiv 2402.19173, section 5 (Starcoder2).
        """
        return _TRAINED_RATES[self.family] if self.metadata_rate is None else self.metadata_rate
