"""The dataset's card: its figures as dataset.json, as README.md with the hub's metadata, and as plots."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from starcoder.files import write_whole
from starcoder.prepare.ingest import Row
from starcoder.prepare.plan import Plan
from starcoder.prepare.records import Dropped, Listing
from starcoder.prepare.settings import PrepareSettings
from starcoder.repos import git

Figures = dict[str, Any]

_TITLES = {
    "splits": ("Splits", "split"),
    "languages": ("Languages", "language"),
    "repositories": ("Repositories", "repository"),
    "licenses": ("Licenses", "license"),
    "kinds": ("Kinds of documents", "kind"),
}


def reasons(dropped: Iterable[Dropped]) -> dict[str, int]:
    """How many documents were left out for each reason, most first."""
    return _counted(one.reason for one in dropped)


def figures(
    settings: PrepareSettings,
    listings: Sequence[Listing],
    dropped: Sequence[Dropped],
    seen: Sequence[Row],
    plan: Plan,
) -> Figures:
    """Everything the card says. The same inputs and settings give the same figures.

    `dropped` is all that was left out, `seen` the documents that were compared with one another.
    """
    kept = {split: plan.rows(split) for split in plan.shards}
    every = [row for part in kept.values() for row in part]
    copies = [one for one in dropped if one.duplicate_of]
    num_late = len(seen) - len(every)  # dropped documents that had been read whole
    across = sum(not one.duplicate_of.startswith(f"{one.repository}:") for one in copies)
    return {
        "family": settings.family,
        "seed": settings.seed,
        "split_by": settings.split_by,
        "order": settings.order,
        "tokenizer": "bundled" if settings.tokenizer is None else settings.tokenizer.name,
        "threshold": settings.dedup.similarity,
        "num_permutations": settings.dedup.num_permutations,
        "num_seen": len(seen) + len(dropped) - num_late,
        "num_documents": len(every),
        "num_characters": sum(row.num_characters for row in every),
        "num_tokens": sum(row.num_tokens for row in every),
        "dropped": reasons(dropped),
        "duplicates": {
            "exact": sum(one.reason == "exact duplicate" for one in copies),
            "near": sum(one.reason == "near duplicate" for one in copies),
            "across_repositories": across,
        },
        "masked": _counted(kind for row in every for kind, n in row.masked.items() for _ in range(n)),
        "encodings": _counted(row.encoding for row in every),
        "splits": {split: _sums(part) for split, part in kept.items()},
        "languages": _grouped(every, "language"),
        "repositories": _grouped(every, "repository"),
        "licenses": _grouped(every, "license"),
        "kinds": _grouped(every, "kind"),
        "revisions": {x.repository.name: x.repository.revision for x in listings if x.repository.revision},
        "inputs": [git.public_url(text) if git.is_url(text) else Path(text).name for text in settings.inputs],
        "token_histogram": _histogram(row.num_tokens for row in every),
    }


def write(figures: Figures, folder: Path) -> None:
    """Write README.md, the plots if matplotlib is there, and dataset.json under `folder`."""
    has_plots = _plot(figures, folder / "plots")
    write_whole(folder / "README.md", (_metadata(figures) + text(figures, has_plots)).encode())
    write_whole(folder / "dataset.json", json.dumps(figures, indent=1).encode() + b"\n")


def text(figures: Figures, has_plots: bool = False) -> str:
    """The card without the hub's metadata, as Markdown."""
    f = figures
    lines = [
        "# Source code prepared for training",
        "",
        f"{f['num_documents']:,} documents, {f['num_characters']:,} characters, {f['num_tokens']:,} tokens "
        f"(tokenizer: {f['tokenizer']}), made of {f['num_seen']:,} inputs by `starcoder prepare`.",
        f"Family: {f['family']}. Split by {f['split_by']}. Files of a repository in {f['order']} order. "
        f"Seed {f['seed']}.",
        "",
    ]
    for key, (title, name) in _TITLES.items():
        rows = [
            (group, f"{n['documents']:,}", f"{n['characters']:,}", f"{n['tokens']:,}")
            for group, n in f[key].items()
        ]
        lines += _table(title, (name, "documents", "characters", "tokens"), rows)
    counted = {
        "Left out": ("reason", f["dropped"]),
        "Masked secrets and personal data": ("kind", f["masked"]),
        "Encodings": ("encoding", f["encodings"]),
        "Tokens of a document": ("up to", f["token_histogram"]),
    }
    for title, (name, counts) in counted.items():
        lines += _table(title, (name, "count"), [(key, f"{n:,}") for key, n in counts.items()])
    lines += [
        f"Near duplicates: MinHash of {f['num_permutations']} permutations, Jaccard of 5-token shingles from "
        f"{f['threshold']} on; {f['duplicates']['across_repositories']:,} of the duplicates stood in another "
        "repository than their original.",
        "",
    ]
    lines += _table("Revisions", ("repository", "commit"), list(f["revisions"].items()))
    if has_plots:
        lines += ["![languages](plots/languages.png)", "![tokens of a document](plots/tokens.png)", ""]
    return "\n".join(lines)


def _metadata(figures: Figures) -> str:
    """The YAML that the hub and `datasets` read."""
    splits = [f"  - split: {name}\n    path: data/{name}-*.parquet" for name in figures["splits"]]
    lines = ["---", "pretty_name: Prepared source code", "task_categories:", "- text-generation"]
    lines += [
        "language:",
        "- code",
        "tags:",
        "- code",
        f"size_categories:\n- {_size(figures['num_documents'])}",
    ]
    lines += ["configs:", "- config_name: default", "  default: true", "  data_files:", *splits]
    if figures.get("packed_rows"):
        packed = [s.replace("data/", "packed/data/") for s in splits]
        lines += ["- config_name: packed", "  data_files:", *packed]
    return "\n".join([*lines, "---", "", ""])


def _size(count: int) -> str:
    """Source: huggingface/hub-docs: datasetcard.md, `size_categories`."""
    limits = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for limit, name in limits if count < limit), "1M<n<10M")


def _sums(rows: Sequence[Row]) -> dict[str, int]:
    return {
        "documents": len(rows),
        "characters": sum(row.num_characters for row in rows),
        "tokens": sum(row.num_tokens for row in rows),
    }


def _grouped(rows: Sequence[Row], column: str) -> dict[str, dict[str, int]]:
    """Sums by a column's values, largest first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(getattr(row, column)), []).append(row)
    sums = {name: _sums(part) for name, part in groups.items()}
    return dict(sorted(sums.items(), key=lambda item: (-item[1]["characters"], item[0])))


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _histogram(counts: Iterable[int]) -> dict[str, int]:
    """How many documents have up to 64, 128, ... tokens, and more than half of that."""
    bins: Counter[int] = Counter()
    for count in counts:
        bins[max(64, 1 << max(0, count - 1).bit_length())] += 1
    return {str(limit): bins[limit] for limit in sorted(bins)}


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = [f"## {title}", "", f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [*lines, *(f"| {' | '.join(row)} |" for row in cells), ""]


def _plot(figures: Figures, folder: Path) -> bool:
    """Bars of the languages and of the documents' lengths; False where matplotlib is not there."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    languages = {name: sums["tokens"] for name, sums in list(figures["languages"].items())[:15]}
    for name, bars, across, upwards in (
        ("languages", languages, "", "tokens"),
        ("tokens", figures["token_histogram"], "tokens of a document, up to", "documents"),
    ):
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.bar(range(len(bars)), list(bars.values()), color="#4477aa")
        axes.set_xticks(range(len(bars)), list(bars), rotation=45, ha="right")
        axes.set_xlabel(across)
        axes.set_ylabel(upwards)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / f"{name}.png", dpi=90, metadata={"Software": None})
    return True
