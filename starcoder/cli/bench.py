"""`starcoder bench`: tokens per second of a model on this machine, compared with its memory bandwidth."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from starcoder.cli import options
from starcoder.cli.flags import Section
from starcoder.cli.table import aligned, megabytes
from starcoder.engine.settings import BenchSettings, ModelSettings
from starcoder.plan import Weights

if TYPE_CHECKING:
    from starcoder.engine.bench import BenchReport, Spread


def run(
    *,
    settings: Annotated[BenchSettings, Section("Benchmark")] = BenchSettings(),
    model: Annotated[ModelSettings, Section("Model")] = ModelSettings(),
    output: Annotated[options.OutputOptions, Section("Output")] = options.OutputOptions(),
) -> None:
    """Measure prefill and decoding, and compare them with this machine's memory bandwidth.

    Decoding one sequence reads all weights for every token. The share of the
    machine's own read bandwidth shows how close decoding is to that limit.

    $ starcoder bench --model ./sc2-3b-int4 --json
    """
    from time import perf_counter

    from starcoder import checkpoint
    from starcoder.engine import bench

    output.start_logging()
    start = perf_counter()
    loaded = options.load(model)
    load_s = perf_counter() - start
    folder = checkpoint.resolve(model.model)
    config, stored = checkpoint.read_config(folder), checkpoint.scheme_of(folder)
    own: Weights = "float32" if loaded.engine.device.type == "cpu" else "bfloat16"
    weights = stored or model.quantize or model.dtype or own
    report = bench.measure(loaded, config, weights, settings)
    if output.json:
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
