"""A run tells its figures to the file, to the console and to the services it is asked to."""

from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from starcoder.errors import ConfigError
from starcoder.train.progress import Progress, connect, read_metrics, require


class Told:
    def __init__(self) -> None:
        self.rows: list[tuple[int, Mapping[str, float]]] = []
        self.is_finished = False

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self.rows.append((step, row))

    def finish(self) -> None:
        self.is_finished = True


def test_every_step_is_told_with_its_share_of_the_peak(tmp_path: Path) -> None:
    told, console = Told(), Console(record=True, file=StringIO(), width=120)
    progress = Progress(tmp_path, console, peak_tokens_per_s=400.0, trackers=(told,), line_every_s=0)
    progress.start(0, 2, 10)
    for step in (1, 2):
        progress.step(step, {"loss": 2.0, "tokens": 10 * step, "tokens_per_s": 100.0})
    progress.finish()
    assert [step for step, _ in told.rows] == [1, 2]
    assert told.is_finished
    assert [row["mfu"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0.25, 0.25]
    assert "step 2/2  loss 2.000  100 tokens/s  MFU 25%  0 min left" in console.export_text()


def test_a_service_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trackio", None)
    with pytest.raises(ConfigError, match="needs trackio"):
        require("trackio")


def test_services_are_told_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, object]] = []

    class Service:
        def init(self, **options: object) -> None:
            calls.append(("init", options["name"]))

        def log(self, row: dict[str, float], step: int) -> None:
            calls.append(("log", step))

        def finish(self) -> None:
            calls.append(("finish", None))

    monkeypatch.setitem(__import__("sys").modules, "wandb", Service())
    tracker = connect("wandb", tmp_path / "mine", {})
    tracker.log(3, {"loss": 1.0})
    tracker.finish()
    assert calls == [("init", "mine"), ("log", 3), ("finish", None)]
