"""`starcoder bench`: tokens per second of a model on this machine, beside what its memory allows."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from starcoder.cli.options import ModelOptions
from starcoder.cli.table import aligned, megabytes
from starcoder.errors import ConfigError
from starcoder.plan import Weights

if TYPE_CHECKING:
    from starcoder.engine.bench import BenchReport, Spread


@Parameter(name="*", group=Group("Bench", sort_key=1))
@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """What is timed, and how often."""

    prompt_tokens: int = 512
    """Tokens of the prompt whose prefill is timed."""
    max_tokens: int = 64
    """Tokens to decode."""
    rounds: int = 5
    """Rounds to take the median of."""
    json: Annotated[bool, Parameter(show_default=False)] = False
    """Print one JSON document instead of text."""

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 1), ("max_tokens", 2), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least {least}")


def run(*, options: BenchOptions = BenchOptions(), model: ModelOptions = ModelOptions()) -> None:
    """Time prefill and decode through the engine, and compare with this machine's memory.

    Decoding one sequence reads all weights for every token: the share of the
    machine's own read bandwidth tells how close to the bound it runs.

    $ starcoder bench --model ./sc2-3b-int4 --json
    """
    from time import perf_counter

    from starcoder import checkpoint
    from starcoder.engine import bench

    start = perf_counter()
    loaded = model.load()
    load_s = perf_counter() - start
    folder = checkpoint.resolve(model.model)
    config, stored = checkpoint.read_config(folder), checkpoint.scheme_of(folder)
    own: Weights = "float32" if loaded.engine.device.type == "cpu" else "bfloat16"
    weights = stored or model.quantize or model.dtype or own
    report = bench.measure(
        loaded,
        config,
        weights,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.max_tokens,
        rounds=options.rounds,
    )
    if options.json:
        about = {"model": model.model, "weights": weights, "num_parameters": config.num_parameters}
        print(json.dumps(about | {"load_s": round(load_s, 3)} | asdict(report)))
    else:
        print(f"{config.num_parameters / 1e6:,.1f}M parameters in {weights}, loaded in {load_s:.1f} s")
        print(_table(report))


def _table(report: "BenchReport") -> str:
    rows: list[tuple[str, ...]] = [
        (f"median of {report.rounds} rounds, {report.threads} threads", "median", "least", "largest"),
        _row(f"prefill of {report.prompt_tokens} tokens, tokens/s", report.prefill_tokens_per_s),
        _row(f"decode of {report.new_tokens} tokens, tokens/s", report.decode_tokens_per_s),
        _row("decode reads, GB/s", report.decode_gb_per_s),
    ]
    if report.machine_gb_per_s and report.share_of_bandwidth:
        rows += [
            _row("this machine reads, GB/s", report.machine_gb_per_s),
            _row("share of that", report.share_of_bandwidth, "{:.0%}"),
        ]
    peak = "" if report.peak_bytes is None else f"\npeak memory {megabytes(report.peak_bytes)}"
    return aligned(rows) + peak


def _row(name: str, spread: "Spread", form: str = "{:.1f}") -> tuple[str, ...]:
    return name, *(form.format(value) for value in (spread.median, spread.least, spread.largest))
