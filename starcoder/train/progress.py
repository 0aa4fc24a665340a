"""What a run tells while it runs: a progress bar, `metrics.jsonl`, and loss plots at the end."""

import json
import logging
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)
from rich.text import Text

from starcoder.errors import ConfigError
from starcoder.files import read_jsonl, write_jsonl
from starcoder.train.settings import Service

log = logging.getLogger(__name__)

_SMOOTHING = 0.9


class Tracker(Protocol):
    """A service that is told of every step."""

    def log(self, step: int, row: Mapping[str, float]) -> None: ...

    def finish(self) -> None: ...


def tell(console: Console, message: str | Text) -> None:
    """Print a message as it is: numbers not coloured, brackets no markup, lines not wrapped."""
    console.print(message, highlight=False, markup=False, soft_wrap=True)


class Progress:
    """Writes one line of `metrics.jsonl` per step and shows the run on `console`.

    A console that is no terminal gets one line every `line_every_s` seconds instead of a bar. With
    `peak_tokens_per_s`, what the device would do at its peak, the share of it is shown as MFU.
    """

    def __init__(
        self,
        output: Path,
        console: Console,
        *,
        line_every_s: float = 30.0,
        peak_tokens_per_s: float | None = None,
        trackers: tuple[Tracker, ...] = (),
    ):
        self.path, self.console, self.line_every_s = output / "metrics.jsonl", console, line_every_s
        self.peak_tokens_per_s, self.trackers = peak_tokens_per_s, trackers
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._smooth, self._num_seen, self._held_out, self._last_line_s = 0.0, 0, "", 0.0

    def start(self, first: int, last: int, tokens_per_step: int) -> None:
        """Begin at step `first` of `last`; metrics of steps after `first`, from a killed run, are dropped."""
        self.first, self.last, self.tokens_per_step = first, last, tokens_per_step
        kept = [row for row in read_metrics(self.path) if row["step"] <= first]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(self.path, kept)
        self._started_s = time.perf_counter()
        if self.console.is_terminal:
            self._bar = Bar(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=last, completed=first)
            self._bar.start()

    def step(self, step: int, row: dict[str, float]) -> None:
        """Record one finished step."""
        row = {"step": step, "time": time.time(), **row}
        if self.peak_tokens_per_s:
            row["mfu"] = row["tokens_per_s"] / self.peak_tokens_per_s
        for tracker in self.trackers:
            tracker.log(step, row)
        with self.path.open("a") as file:
            file.write(json.dumps({k: round(v, 6) for k, v in row.items()}) + "\n")
        # A plain mean at first: the first steps' losses, the highest, would else be shown for long.
        weight = min(_SMOOTHING, self._num_seen / (self._num_seen + 1))
        self._num_seen += 1
        self._smooth = weight * self._smooth + (1 - weight) * row["loss"]
        if "held_out_loss" in row:
            self._held_out = f"  held-out {row['held_out_loss']:.3f}"
        line = f"loss {self._smooth:.3f}{self._held_out}  {row['tokens_per_s']:,.0f} tokens/s"
        line += f"  MFU {row['mfu']:.0%}" if "mfu" in row else ""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, description=line)
        elif time.perf_counter() - self._last_line_s > self.line_every_s or step == self.last:
            self._last_line_s = time.perf_counter()
            per_step_s = (time.perf_counter() - self._started_s) / (step - self.first)
            left_min = (self.last - step) * per_step_s / 60
            tell(self.console, f"step {step}/{self.last}  {line}  {left_min:.0f} min left")

    def finish(self) -> None:
        """Close the bar and, where matplotlib is installed, draw `loss.png` beside the metrics."""
        if self._bar is not None:
            self._bar.stop()
        for tracker in self.trackers:
            tracker.finish()
        try:
            plot_loss(self.path, self.path.with_name("loss.png"))
        except ImportError:
            log.info("matplotlib is not installed: no loss.png")


class Silent(Progress):
    """Tells nothing: what all processes of a run but the first have."""

    def start(self, first: int, last: int, tokens_per_step: int) -> None: ...

    def step(self, step: int, row: dict[str, float]) -> None: ...

    def finish(self) -> None: ...


def require(service: Service) -> None:
    """Raises: ConfigError: the service's package is not installed."""
    if find_spec(service) is None:
        raise ConfigError(f"--report-to {service} needs {service}", f"pip install {service}")


def connect(service: Service, output: Path, settings: Mapping[str, object]) -> Tracker:
    """A tracker for this run, named after its folder; callers `require` it before."""
    if service == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        return _TensorBoard(SummaryWriter(str(output / "tensorboard")))
    module: Any = __import__(service)
    module.init(project="starcoder", name=output.name, config=dict(settings))
    return _Module(module)


class _Module:
    """wandb, and trackio, which has the same functions."""

    def __init__(self, module: Any):
        self._module = module

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self._module.log(dict(row), step=step)

    def finish(self) -> None:
        self._module.finish()


class _TensorBoard:
    def __init__(self, writer: Any):
        self._writer = writer

    def log(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line cut off by a kill is left out."""
    return list(read_jsonl(path, skips_torn_line=True)) if path.exists() else []


def plot_loss(metrics: Path, picture: Path) -> None:
    """Draw training and held-out loss over tokens seen."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = read_metrics(metrics)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    most = max((row["tokens"] for row in rows), default=0)
    size, unit = (1e6, "million tokens") if most > 1e6 else (1e3, "thousand tokens")
    tokens = [row["tokens"] / size for row in rows]
    width, alpha = (0.5, 0.5) if len(rows) > 300 else (1.0, 1.0)
    axes.plot(tokens, [row["loss"] for row in rows], lw=width, alpha=alpha, label="train")
    held = [(row["tokens"] / size, row["held_out_loss"]) for row in rows if "held_out_loss" in row]
    if held:
        axes.plot(*zip(*held, strict=True), marker=".", label="held out")
    axes.set(xlabel=unit, ylabel="loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
