"""The result of a task: what was run, scores with their intervals, failures by kind; as JSON."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean

from starcoder.errors import DISTRIBUTION
from starcoder.evaluate.problems import Problem
from starcoder.evaluate.recipes import Recipe, published
from starcoder.evaluate.samples import Sample
from starcoder.evaluate.sandbox.verdicts import Isolation
from starcoder.evaluate.scores import Comparison, Interval, compare, failures, interval, pass_at_k

KS = (1, 10, 100)


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What makes two runs the same run."""

    task: str
    model: str
    recipe: Recipe
    data_sha256: str
    data_origin: str = ""
    seed: int = 0
    limit: int | None = None
    quantize: str = "none"
    dtype: str = ""
    samples_sha256: str = ""  # of anybody's samples that were judged, of which no recipe is known

    @property
    def fingerprint(self) -> str:
        """A hash of all that moves a result: a log of samples goes on only under the same one."""
        fields = asdict(self) | {"recipe": self.recipe.hash, "data_origin": ""}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def environment() -> dict[str, str]:
    """Where and when a result was made: versions, machine, date (UTC) and the revision of this code."""
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "starcoder": version(DISTRIBUTION),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": str(os.cpu_count()),
    }
    for name in ("torch", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | {"revision": _revision()}


def _revision() -> str:
    """The commit of the source tree that this package runs from; empty if it is installed from a wheel."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return ""
    import pygit2

    try:
        return str(pygit2.Repository(str(folder)).head.target)
    except (pygit2.GitError, KeyError):
        return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A task that was run, whole."""

    about: About
    problems: tuple[Problem, ...]
    samples: tuple[Sample, ...]
    isolation: Isolation | None = None  # None: nothing was executed
    seconds: float = 0.0
    ks: tuple[int, ...] = KS
    accepts_unconfirmed: bool = False  # whether `unconfirmed` counts as a pass

    @property
    def name(self) -> str:
        """The model, and how it was quantized."""
        quantize = self.about.quantize
        return self.about.model if quantize == "none" else f"{self.about.model}, {quantize}"

    def by_problem(self) -> dict[str, list[Sample]]:
        """Samples of each problem that has some, but those whose language cannot run here."""
        groups: dict[str, list[Sample]] = {}
        for sample in self.samples:
            if sample.verdict is None or sample.verdict.kind != "unavailable":
                groups.setdefault(sample.problem, []).append(sample)
        return groups

    @property
    def is_unavailable(self) -> bool:
        """Whether no sample could be judged, for want of a tool-chain: neither passed nor failed."""
        return bool(self.samples) and not self.by_problem()

    def scores(self) -> dict[str, Interval]:
        """Every score by name, the most telling first: pass@k, or what compared texts have."""
        groups = self.by_problem()
        if not groups:
            return {}
        found: dict[str, Interval] = {}
        ks = [k for k in self.ks if k <= min(map(len, groups.values()))]
        if self.isolation is not None and self.can_confirm:
            found = {f"pass@{k}": interval(_passes(groups, k, is_confirmed=self._is_strict)) for k in ks}
        if self.isolation is not None and (not self.can_confirm or self._has_unconfirmed()):
            found |= {f"unconfirmed@{k}": interval(_passes(groups, k, is_confirmed=False)) for k in ks}
        names = {name: None for group in groups.values() for sample in group for name in sample.scores}
        return found | {name: interval(_means(groups, name)) for name in names if _means(groups, name)}

    @property
    def can_confirm(self) -> bool:
        """Whether the tests of this task can run apart from the candidate."""
        program = self.problems[0].program("") if self.problems else None
        in_container = self.isolation is not None and "container" in self.isolation.reached
        return program is not None and program.language == "python" and not in_container

    @property
    def _is_strict(self) -> bool:
        """Whether only confirmed verdicts count as passes."""
        return self.can_confirm and not self.accepts_unconfirmed

    def _has_unconfirmed(self) -> bool:
        return any(sample.verdict and sample.verdict.kind == "unconfirmed" for sample in self.samples)

    def by_group(self) -> dict[str, dict[str, float]]:
        """Scores of each group of problems, where the task has groups."""
        groups = {problem.id: problem.group for problem in self.problems if problem.group}
        found: dict[str, dict[str, float]] = {}
        for group in dict.fromkeys(groups.values()):
            chosen = {key: value for key, value in self.by_problem().items() if groups.get(key) == group}
            names = {name: None for some in chosen.values() for sample in some for name in sample.scores}
            tests = {}
            if self.isolation is not None and chosen:
                name = "pass@1" if self.can_confirm else "unconfirmed@1"
                tests = {name: fmean(_passes(chosen, 1, is_confirmed=self._is_strict))}
            found[group] = tests | {name: fmean(_means(chosen, name)) for name in names}
            found[group]["num_problems"] = len(chosen)
        return found

    def per_problem(self) -> dict[str, float]:
        """The first score of each problem: the share of samples that pass, or that match exactly."""
        groups = self.by_problem()
        if self.isolation is not None:
            values = _passes(groups, 1, is_confirmed=self._is_strict)
        else:
            values = [
                fmean(sample.scores.get("exact_match", 0.0) for sample in some) for some in groups.values()
            ]
        return dict(zip(groups, values, strict=True))

    def document(self) -> dict[str, object]:
        """All of it but the samples, for JSON. Shares are from 0 to 1; published numbers are in percent."""
        about, recipe = self.about, self.about.recipe
        scores = self.scores()
        out: dict[str, object] = {
            "task": about.task,
            "model": about.model,
            "quantize": about.quantize,
            "dtype": about.dtype,
            **{name: round(score.mean, 6) for name, score in scores.items()},
            "intervals": {
                name: [round(score.low, 6), round(score.high, 6)] for name, score in scores.items()
            },
            "num_problems": len({sample.problem for sample in self.samples}),
            "num_samples": len(self.samples),
            "failures": dict(failures(sample.verdict for sample in self.samples if sample.verdict)),
            "recipe": None if about.samples_sha256 else {**asdict(recipe), "hash": recipe.hash},
            "samples_sha256": about.samples_sha256 or None,
            "num_problems_of_task": len(self.problems),
            "data": {"origin": about.data_origin, "sha256": about.data_sha256},
            "seed": about.seed,
            "fingerprint": about.fingerprint,
            "seconds": round(self.seconds, 3),
            "environment": environment(),
            "published": [asdict(one) for one in published(about.model, about.task, recipe.name)],
        }
        if self.is_unavailable:
            out["unavailable"] = True
        if self.isolation is not None:
            out["isolation"] = asdict(self.isolation) | {"holds": self.isolation.by_guarantee()}
        if groups := self.by_group():
            out["groups"] = {
                name: {key: round(value, 6) for key, value in group.items()} for name, group in groups.items()
            }
        return out


@dataclass(frozen=True, slots=True)
class Difference:
    """Two results over the problems that both have, and the names of those problems."""

    problems: tuple[str, ...]
    comparison: Comparison

    def names(self, positions: Sequence[int]) -> list[str]:
        return [self.problems[at] for at in positions]

    def document(self) -> dict[str, object]:
        difference = self.comparison.difference
        return {
            "difference": round(difference.mean, 6),
            "interval": [round(difference.low, 6), round(difference.high, 6)],
            "p_value": self.comparison.p_value,
            "gained": self.names(self.comparison.gained),
            "lost": self.names(self.comparison.lost),
        }


def differ(first: Result, second: Result) -> Difference:
    """How the second result differs from the first, by the first score of each problem."""
    one, two = first.per_problem(), second.per_problem()
    shared = tuple(name for name in one if name in two)
    return Difference(shared, compare([one[name] for name in shared], [two[name] for name in shared]))


def _passes(groups: Mapping[str, Sequence[Sample]], k: int, *, is_confirmed: bool = True) -> list[float]:
    def counts(sample: Sample) -> bool:
        verdict = sample.verdict
        return verdict is not None and (verdict.passed or (verdict.held and not is_confirmed))

    return [pass_at_k(len(some), sum(map(counts, some)), k) for some in groups.values()]


def _means(groups: Mapping[str, Sequence[Sample]], name: str) -> list[float]:
    return [
        fmean(sample.scores[name] for sample in some) for some in groups.values() if name in some[0].scores
    ]
