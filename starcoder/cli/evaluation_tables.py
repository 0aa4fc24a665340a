"""How `starcoder evaluate` shows its results: tables, JSON, files of a folder, and the list of tasks."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from starcoder.files import write_whole

if TYPE_CHECKING:
    from starcoder.evaluate.results import Difference, Result


def report(results: Sequence["Result"], output: Path | None, *, as_json: bool, seconds: float) -> None:
    """Print the results, and write them where the user wants them."""
    from starcoder.evaluate import report as pages

    document = _document(results)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=2, ensure_ascii=False)
        write_whole(output / "results.json", text + "\n")
        write_whole(output / "report.html", pages.page(results))
    if as_json:
        print(json.dumps(document, ensure_ascii=False))
        return
    _print_table(results)
    for first, second, difference in _differences(results):
        found = difference.comparison
        change = found.difference
        print(
            f"{first.about.task}: {second.name} compared with {first.name}: {100 * change.mean:+.1f} points"
            f" (95 % {100 * change.low:+.1f} to {100 * change.high:+.1f}), p = {found.p_value:.3g};"
            f" {len(found.gained)} gained, {len(found.lost)} lost"
        )
    where = "" if output is None else f"; samples and report in {output}"
    print(f"{seconds:.1f} s{where}", file=sys.stderr)


def _document(results: Sequence["Result"]) -> dict[str, object]:
    differences = [
        {"task": first.about.task, "first": first.name, "second": second.name, **difference.document()}
        for first, second, difference in _differences(results)
    ]
    return {"results": [result.document() for result in results], "differences": differences}


def _differences(results: Sequence["Result"]) -> Iterator[tuple["Result", "Result", "Difference"]]:
    """Every other result of a task beside the first."""
    from starcoder.evaluate.results import differ

    for at, second in enumerate(results):
        first = next(one for one in results if one.about.task == second.about.task)
        if results.index(first) < at and first.scores() and second.scores():
            yield first, second, differ(first, second)


def _print_table(results: Sequence["Result"]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("task", "model", "score"):
        table.add_column(name)
    for name in ("%", "95 %", "problems", "published"):
        table.add_column(name, justify="right")
    table.add_column("failures")
    for result in results:
        for row in _rows(result):
            table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _rows(result: "Result") -> Iterator[tuple[str, ...]]:
    from starcoder.evaluate.recipes import published

    about, scores = result.about, result.scores()
    if not scores:
        yield about.task, result.name, "unavailable: no tool-chain here", "", "", "", "", ""
        return
    failed = result.document()["failures"]
    assert isinstance(failed, dict), "the document has failures by kind"
    failures = ", ".join(f"{count} {kind}" for kind, count in failed.items())
    num_problems = str(len(result.by_problem()))
    for at, (name, score) in enumerate(scores.items()):
        known = published(about.model, about.task, about.recipe.name) if name == "pass@1" else ()
        others = ", ".join(f"{one.score} ({one.recipe})" for one in known)
        bounds = f"{100 * score.low:.1f} to {100 * score.high:.1f}"
        first = (about.task, result.name) if at == 0 else ("", "")
        yield (
            *first,
            name,
            f"{100 * score.mean:.1f}",
            bounds,
            num_problems,
            others,
            failures if at == 0 else "",
        )
    for group, values in result.by_group().items():
        shares = ", ".join(
            f"{name} {100 * value:.1f}" for name, value in values.items() if name != "num_problems"
        )
        yield "", "", group, "", "", f"{values['num_problems']:.0f}", "", shares


def listing(*, as_json: bool) -> str:
    """The tasks, whether they can run here, and the recipes."""
    from starcoder.evaluate.recipes import RECIPES
    from starcoder.evaluate.sandbox.languages import available
    from starcoder.evaluate.tasks import TASKS

    runs = {task.name: not task.is_executed or available(task.language) for task in TASKS}
    own = {
        "my-repo": "lines, blocks and functions of your own repository",
        "perplexity": "bits per byte of files",
    }
    if as_json:
        tasks: list[dict[str, object]] = [
            {
                "task": task.name,
                "about": task.about,
                "language": task.language,
                "problems": task.num_problems,
                "available": runs[task.name],
            }
            for task in TASKS
        ]
        tasks += [{"task": name, "about": about, "available": True} for name, about in own.items()]
        recipes = [asdict(recipe) | {"hash": recipe.hash} for recipe in RECIPES]
        return json.dumps({"tasks": tasks, "recipes": recipes})
    rows = [("task", "problems", "here", "language", "what")]
    for task in TASKS:
        here = "yes" if runs[task.name] else "no tool-chain"
        rows.append((task.name, str(task.num_problems or ""), here, task.language, task.about))
    rows += [(name, "", "yes", "", about) for name, about in own.items()]
    recipes_rows = [("recipe", "hash", "what"), *((one.name, one.hash, one.about) for one in RECIPES)]
    return f"{_columns(rows)}\n\n{_columns(recipes_rows)}"


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
