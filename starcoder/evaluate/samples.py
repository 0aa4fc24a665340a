"""Samples: what a model answered and how it was judged, in memory and as JSON lines that outlive a kill.

A line has a sample's own fields, or only those that came later (its verdict); lines of the same sample are
read as one. So a run appends and never rewrites until it ends. The fields `task_id` and `completion`, or
`solution` for whole programs, are those of human-eval and EvalPlus.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast, get_args

from starcoder.errors import ConfigError
from starcoder.evaluate.sandbox.verdicts import Kind, Verdict
from starcoder.files import read_jsonl, write_jsonl

Key = tuple[str, int]  # problem and number of the sample


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
        self._file.write(json.dumps(fields, ensure_ascii=False) + "\n")
        self._file.flush()


def write(path: Path, samples: Iterable[Sample]) -> None:
    """A file of samples, there as a whole or not at all."""
    write_jsonl(path, map(_fields, samples))


def read(path: Path) -> list[Sample]:
    """Samples of a file, ours or another's, or of a folder as EvalPlus writes it (`HumanEval_0/0.py`).

    Samples without a number are numbered in their order, problem by problem.

    Raises:
        ConfigError: not such a file.
    """
    if path.is_dir():
        rows = _folder(path)
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
        merged.setdefault((problem, number), {}).update(row)
    return [_sample(key, row, path) for key, row in merged.items()]


def read_log(path: Path) -> list[Sample]:
    """The samples of a run that was killed, less what it left of its last line; modifies the file so.

    Raises:
        ConfigError: not a log of samples.
    """
    _drop_torn_line(path)
    return read(path)


def _sample(key: Key, row: Mapping[str, object], path: Path) -> Sample:
    is_whole = "completion" not in row
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
        case {"kind": str(kind), "detail": str(detail), "seconds": float(seconds)} if kind in get_args(Kind):
            return Verdict(cast("Kind", kind), detail, seconds)
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
        fields["verdict"] = {"kind": verdict.kind, "detail": verdict.detail, "seconds": seconds}
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
