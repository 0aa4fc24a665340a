"""Writes what was measured from benchmarks/results/*.json: python benchmarks/table.py

docs/measured.md has all of it, README.md the rows people judge by. Each result file has a function in
`rows.py`; a file that is not there yet has no rows. A test holds that both documents are up to date.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rows
from goals import missed
from rows import Row

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
BEGIN = "<!-- measured: written by benchmarks/table.py -->\n"
END = "<!-- end of measured -->\n"

Rows = Callable[[dict[str, Any]], Sequence[Row]]


SECTIONS: Mapping[str, Mapping[str, Rows]] = {
    "Running a model": {
        "engine": rows.engine,
        "decode": rows.decode,
        "full_size": rows.full_size,
        "kernels": rows.kernels,
        "cold_start": rows.cold_start,
        "load_memory": rows.load_memory,
    },
    "Rounding weights": {"quality": rows.quality},
    "Serving": {"serve": rows.serve},
    "Fine-tuning": {"train": rows.train, "finetune_memory": rows.finetune_memory},
    "Evaluating": {"evaluate": rows.evaluate, "evaluate_generation": rows.evaluate_generation},
    "Preparing data": {"prepare": rows.prepare, "dedup": rows.dedup},
    "The bundled model": {"nano": rows.nano},
}
HEADLINES: Mapping[str, Rows] = {
    "cold_start": rows.cold_start,
    "engine": lambda report: rows.engine(report)[:1],
    "decode": rows.decode_beside_llama,
    "full_size": lambda report: rows.full_size(report)[:1],
    "serve": lambda report: rows.serve(report)[-2:],
    "train": lambda report: rows.train(report)[:1],
    "evaluate": lambda report: rows.evaluate(report)[1:2],
    "prepare": rows.prepare,
}


def table(reports: Mapping[str, dict[str, Any]], functions: Mapping[str, Rows]) -> str:
    """The rows of those reports that are there, in Markdown, each with the script it comes from."""
    lines = ["| what | here | for comparison | script |", "|---|---|---|---|"]
    for name, rows_of in functions.items():
        if name in reports:
            lines += [f"| {' | '.join(row)} | `{name}.py` |" for row in rows_of(reports[name])]
    return "\n".join([*lines, ""])


def machines(reports: Mapping[str, dict[str, Any]]) -> str:
    """The sentence that tells where this was measured."""
    told = set[str]()
    for report in reports.values():
        machine = report.get("versions", {}) | report.get("machine", {})
        if machine:
            told.add(f"{machine['num_cpus']} cores ({machine['cpu']}), torch {machine['torch']}")
    return f"Measured on {'; '.join(sorted(told))}.\n"


def pages(results: Path = RESULTS) -> dict[Path, str]:
    """Both documents as they should be, by their paths."""
    reports = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(results.glob("*.json"))}
    unknown = reports.keys() - {name for section in SECTIONS.values() for name in section}
    assert not unknown, f"{sorted(unknown)} have no function in {Path(__file__).name}"
    told = machines(reports)
    everything = [f"\n## {title}\n\n{table(reports, section)}" for title, section in SECTIONS.items()]
    written = {
        ROOT / "README.md": f"{table(reports, HEADLINES)}\n{told}\n{missed(reports)}",
        ROOT / "docs" / "measured.md": f"{told}\n{missed(reports)}{''.join(everything)}",
    }
    return {path: replaced(path, measured) for path, measured in written.items()}


def replaced(path: Path, measured: str) -> str:
    """The document with what stands between its markers replaced."""
    before, _, rest = path.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{path.name} has nothing between {BEGIN!r} and {END!r}"
    return before + BEGIN + measured + END + after


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
