"""One self-contained HTML page of results: scores, what differs between runs, every problem with its answers.

Text of problems and models is escaped; the page loads nothing and follows the reader's light or dark theme.
"""

from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from string import Template

from starcoder.evaluate.results import Difference, Result, differ, environment
from starcoder.evaluate.samples import Sample
from starcoder.evaluate.scores import failures

_TEMPLATE = Path(__file__).parent / "report.html"
_MOST_ANSWERS = 5  # different ones shown of a problem and a run
_MOST_CHARACTERS = 4000  # of a prompt or an answer


def page(results: Sequence[Result], *, title: str = "Evaluation") -> str:
    """The page of one or more results; results of the same task stand side by side, the first as the base."""
    ordered = sorted(results, key=lambda result: result.about.task)
    body = [
        _task(task, list(group)) for task, group in groupby(ordered, key=lambda result: result.about.task)
    ]
    return Template(_TEMPLATE.read_text("utf-8")).substitute(title=escape(title), body="\n".join(body))


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _task(task: str, results: Sequence[Result]) -> str:
    base, *others = results
    differences = [(other, differ(base, other)) for other in others if base.scores() and other.scores()]
    return "\n".join(
        [
            f"<section><h2>{escape(task)}</h2>",
            _scores(results),
            *(_comparison(base, other, difference) for other, difference in differences),
            _about(results),
            _tools(results, is_compared=bool(differences)),
            *_problems(results, [difference for _, difference in differences]),
            "</section>",
        ]
    )


def _scores(results: Sequence[Result]) -> str:
    names = list({name: None for result in results for name in result.scores()})
    rows = [["run", *names, "95 % of " + names[0] if names else "", "problems", "samples", "failures"]]
    for result in results:
        scores = result.scores()
        kinds: dict[str, int] = {}
        for sample in result.samples:
            if sample.verdict is not None and not sample.verdict.passed:
                kinds[sample.verdict.kind] = kinds.get(sample.verdict.kind, 0) + 1
        first = next(iter(scores.values()), None)
        rows.append(
            [
                result.name,
                *(percent(scores[name].mean) if name in scores else "" for name in names),
                "unavailable here" if first is None else f"{percent(first.low)} to {percent(first.high)}",
                str(len({sample.problem for sample in result.samples})),
                str(len(result.samples)),
                ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda x: -x[1])),
            ]
        )
    return _table(rows)


def _comparison(base: Result, other: Result, difference: Difference) -> str:
    found = difference.comparison
    flips = [
        f"<p>{label}: " + (", ".join(_link(name, base) for name in difference.names(at)) or "none") + "</p>"
        for label, at in (("Gained", found.gained), ("Lost", found.lost))
    ]
    change = found.difference
    return (
        f"<h3>{escape(other.name)} beside {escape(base.name)}</h3>"
        f"<p>{100 * change.mean:+.1f} points over {len(difference.problems)} problems (95 % from"
        f" {100 * change.low:+.1f} to {100 * change.high:+.1f}), paired test p = {found.p_value:.3g}.</p>"
        + "".join(flips)
    )


def _about(results: Sequence[Result]) -> str:
    rows = [["run", "recipe", "seed", "dtype", "data", "isolation", "made"]]
    for result in results:
        about = result.about
        layers = "nothing was run"
        if result.isolation is not None:
            missing = result.isolation.missing
            layers = ", ".join(result.isolation.reached) + (
                f"; missing: {', '.join(missing)}" if missing else ""
            )
        recipe = f"{about.recipe.name} {about.recipe.hash}"
        made = ", ".join(f"{name} {value}" for name, value in environment().items() if value)
        data = f"{about.data_origin} {about.data_sha256[:12]}"
        rows.append([result.name, recipe, str(about.seed), about.dtype, data, layers, made])
    return f"<details><summary>How it was run</summary>{_table(rows)}</details>"


def _tools(results: Sequence[Result], *, is_compared: bool) -> str:
    """Buttons that show problems by what became of them, and by kind of failure."""
    states = [("", "all"), ("passed", "passed"), ("partly", "partly passed"), ("failed", "failed")]
    states += [("flip", "flipped")] * is_compared
    kinds = failures(one.verdict for result in results for one in result.samples if one.verdict)
    states += [(kind, f"{kind} ({count})") for kind, count in kinds.items()]
    buttons = "".join(
        f'<button data-state="{state}" aria-pressed="{"false" if state else "true"}">{label}</button> '
        for state, label in states
    )
    return f'<div class="tools">{buttons}<input type="search" placeholder="name" aria-label="name"></div>'


def _problems(results: Sequence[Result], differences: Sequence[Difference]) -> list[str]:
    base = results[0]
    flipped = {
        name for one in differences for name in one.names([*one.comparison.gained, *one.comparison.lost])
    }
    shares = [result.per_problem() for result in results]
    asked = {sample.problem for sample in base.samples}
    rows = []
    for problem in base.problems:
        if problem.id not in asked:
            continue
        share = [some.get(problem.id) for some in shares]
        last = share[-1]
        state = "passed" if last == 1 else "partly" if last else "failed"
        kinds = {
            sample.verdict.kind
            for sample in results[-1].samples
            if sample.problem == problem.id and sample.verdict and not sample.verdict.passed
        }
        marks = " ".join(
            f'<span class="{_color(one)}">{"-" if one is None else percent(one)}</span>' for one in share
        )
        answers = "".join(
            f"<h3>{escape(result.name)}</h3>" * (len(results) > 1)
            + _answers([sample for sample in result.samples if sample.problem == problem.id])
            for result in results
        )
        after = (
            f'<pre class="soft">{_short(problem.request.suffix, end=False)}</pre>'
            if problem.request.suffix
            else ""
        )
        known = (
            f"<p class=soft>known answer</p><pre>{_short(problem.reference)}</pre>"
            if problem.reference
            else ""
        )
        rows.append(
            f'<details id="{_anchor(problem.id, base)}" data-name="{escape(problem.id.lower())}"'
            f' data-kinds="{" ".join(sorted(kinds))}"'
            f' data-state="{state}{" flip" if problem.id in flipped else ""}">'
            f"<summary><code>{escape(problem.id)}</code> <span class=right>{marks}</span></summary>"
            f"<pre>{_short(problem.request.prefix)}</pre>{after}{answers}{known}</details>"
        )
    return rows


def _answers(samples: Sequence[Sample]) -> str:
    """Different answers, each with how often it came and what became of it."""
    by_text: dict[str, list[Sample]] = {}
    for sample in samples:
        by_text.setdefault(sample.text, []).append(sample)
    shown = list(by_text.values())[:_MOST_ANSWERS]
    parts = [
        f"<p>{_verdict(some[0])}{f' ({len(some)} times)' if len(some) > 1 else ''}"
        f" <span class=soft>{escape(some[0].finish_reason)}</span></p>"
        f'<pre><span class="new">{_short(some[0].text, end=False)}</span></pre>'
        for some in shown
    ]
    left = len(by_text) - len(shown)
    return "".join(parts) + (f"<p class=soft>and {left} other answers</p>" if left else "")


def _verdict(sample: Sample) -> str:
    verdict = sample.verdict
    if verdict is None:
        scores = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in sample.scores.items())
        return f'<span class="{"good" if sample.scores.get("exact_match") else "bad"}">{scores}</span>'
    detail = f": {escape(verdict.detail)}" if verdict.detail else ""
    color = "good" if verdict.passed else "part" if verdict.held else "bad"
    shown = [("input", verdict.input), ("expected", verdict.expected), ("found", verdict.found)]
    rows = [(name, text) for name, text in shown if text]
    table = _table([[name for name, _ in rows], [text for _, text in rows]]) if rows else ""
    return f'<span class="{color}">{verdict.kind}</span>{detail}{table}'


def _color(share: float | None) -> str:
    return "bad" if not share else "good" if share == 1 else "part"


def _short(text: str | None, *, end: bool = True) -> str:
    """Escaped, and of a long text its end or its start."""
    text = text or ""
    if len(text) <= _MOST_CHARACTERS:
        return escape(text)
    return "…" + escape(text[-_MOST_CHARACTERS:]) if end else escape(text[:_MOST_CHARACTERS]) + "…"


def _anchor(problem: str, result: Result) -> str:
    return escape(f"{result.about.task}/{problem}", quote=True)


def _link(problem: str, result: Result) -> str:
    return f'<a href="#{_anchor(problem, result)}"><code>{escape(problem)}</code></a>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f'<div class="wide"><table><tr>{cells}</tr>{lines}</table></div>'
