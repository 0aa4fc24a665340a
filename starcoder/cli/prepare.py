"""`starcoder prepare`: your own repositories and folders as a clean, documented data set to train on."""

import json as json_format
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter

from starcoder.errors import ConfigError

if TYPE_CHECKING:
    from starcoder.prepare.settings import PrepareSettings

_FLAG = Parameter(show_default=False)


@Parameter(name="*", group=Group("Taking", sort_key=1))
@dataclass(frozen=True, kw_only=True, slots=True)
class TakingGroup:
    """What is taken."""

    issues: tuple[Path, ...] = ()
    """JSON exports of issues and pull requests, as GitHub's API gives them with `comments` as a list."""
    commits: Annotated[bool, _FLAG] = False
    """Small commits that change one file, as documents of their own."""
    worktree: Annotated[bool, _FLAG] = False
    """Files of repositories as they lie, with what is not committed and not ignored."""
    languages: tuple[str, ...] = ()
    """Only these, such as Python or C++."""
    vendored: Annotated[bool, _FLAG] = False
    """Folders of other people's code too."""
    max_file_bytes: int = 1_000_000
    """Larger files are left out."""
    allow_license: tuple[str, ...] = ()
    """Only these SPDX identifiers, or patterns such as BSD-*; unknown is what nothing tells."""
    deny_license: tuple[str, ...] = ()
    """None of these."""


@Parameter(name="*", group=Group("Cleaning", sort_key=2))
@dataclass(frozen=True, kw_only=True, slots=True)
class CleaningGroup:
    """What is left out or masked."""

    skip_filter: tuple[str, ...] = ()
    """Quality filters not to use, such as json_yaml."""
    benchmark: tuple[Path, ...] = ()
    """Benchmark files whose texts must not be in the data."""
    leave_secrets: tuple[str, ...] = ()
    """Kinds of secrets not to mask, such as email or ip."""
    detect_secrets: Annotated[bool, _FLAG] = False
    """Let detect-secrets look as well; much slower."""
    similarity: float = 0.7
    """Jaccard similarity from which on documents are near duplicates."""


@Parameter(name="*", group=Group("Writing", sort_key=3))
@dataclass(frozen=True, kw_only=True, slots=True)
class WritingGroup:
    """What is written."""

    order: Literal["dependency", "path"] = "dependency"
    """Of a repository's files: imported ones first, or by path."""
    split_by: Literal["file", "repository", "time"] = "file"
    """What goes to validation: some files, whole repositories, or the files changed last."""
    validation_share: float = 0.05
    """Of documents, or of bytes if by repository."""
    tokenizer: Path | None = None
    """Folder of the tokenizer that counts and packs; the bundled model's if not given."""
    pack_tokens: int = 0
    """Write rows of so many tokens for pretraining as well."""
    metadata_rate: float | None = None
    """How often packed documents show repository and path; as in the family's training if not given."""
    seed: int = 0
    """Of splits and layouts."""
    workers: int = 0
    """Processes; one for each CPU if 0."""
    ray: Annotated[bool, _FLAG] = False
    """Find duplicates with Ray Data, on the cluster that RAY_ADDRESS names or on this machine."""


def run(
    *inputs: str,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    family: Literal["santacoder", "starcoder", "starcoder2"] = "starcoder2",
    taking: TakingGroup = TakingGroup(),
    cleaning: CleaningGroup = CleaningGroup(),
    writing: WritingGroup = WritingGroup(),
    explain: Annotated[Path | None, Parameter(show_default=False)] = None,
    json: Annotated[bool, _FLAG] = False,
) -> None:
    """Make a data set of repositories and folders: collected, cleaned, deduplicated, split, documented.

    Nothing leaves this machine. A run that was stopped goes on where it was when the same command is given.

    $ starcoder prepare ~/code/service ~/code/lib@v2 https://example.com/app.git --output data/mine
    $ starcoder prepare --explain data/mine
    $ starcoder finetune --data data/mine

    Args:
        inputs: Folders, git repositories and URLs, each with @REVISION if not its HEAD.
        output: The new folder.
        family: The models whose layout commits, issues and packed tokens have.
        explain: Show the card of a folder that was prepared: what was taken, left out and masked.
        json: Print the figures as one JSON document.
    """
    from starcoder.cli.evaluating import Progress
    from starcoder.prepare import card
    from starcoder.prepare.pipeline import prepare, read_figures

    if explain is not None:
        figures = read_figures(explain)
        print(json_format.dumps(figures) if json else card.text(figures))
        return
    if output is None:
        raise ConfigError("there is no folder to write to", "--output names a new one")
    settings = _settings(inputs, family, taking, cleaning, writing)
    with Progress("preparing") as progress:
        figures = prepare(settings, output, tell=lambda stage, done, total: progress(done, total, stage))
    if json:
        print(json_format.dumps({"output": str(output), **figures}))
        return
    print(
        f"{figures['num_documents']:,} of {figures['num_seen']:,} documents, "
        f"{figures['num_tokens']:,} tokens, written to {output}; "
        f"starcoder prepare --explain {output} tells the rest"
    )


def _settings(
    inputs: tuple[str, ...],
    family: Literal["santacoder", "starcoder", "starcoder2"],
    taking: TakingGroup,
    cleaning: CleaningGroup,
    writing: WritingGroup,
) -> "PrepareSettings":
    from starcoder.prepare.dedup import DedupSettings
    from starcoder.prepare.filters import FilterSettings
    from starcoder.prepare.secrets import SecretSettings
    from starcoder.prepare.settings import PrepareSettings

    return PrepareSettings(
        inputs=inputs,
        issues=tuple(map(str, taking.issues)),
        family=family,
        worktree=taking.worktree,
        commits=taking.commits,
        max_file_bytes=taking.max_file_bytes,
        languages=taking.languages,
        vendored=taking.vendored,
        allow_licenses=taking.allow_license,
        deny_licenses=taking.deny_license,
        filters=FilterSettings(skip=frozenset(cleaning.skip_filter)),
        benchmarks=tuple(map(str, cleaning.benchmark)),
        secrets=SecretSettings(
            leave=frozenset(cleaning.leave_secrets), detect_secrets=cleaning.detect_secrets
        ),
        dedup=DedupSettings(threshold=cleaning.similarity),
        order=writing.order,
        split_by=writing.split_by,
        validation_share=writing.validation_share,
        tokenizer=str(writing.tokenizer) if writing.tokenizer else None,
        pack_tokens=writing.pack_tokens,
        metadata_rate=writing.metadata_rate,
        seed=writing.seed,
        workers=writing.workers or os.cpu_count() or 1,
        ray=writing.ray,
    )
