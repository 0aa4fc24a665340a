"""StarCoder's full shape, 15.5B parameters, in int4 and int8: python benchmarks/full_size.py

Protocol: random weights, written once straight in packed form to --folder (24 GB of disk), never in full
precision anywhere; --gguf is a Q4_0 file of the same shape. A round runs in turn, each in a fresh process
with --threads threads: this engine from the mapped folder, then for int4 llama-bench with its defaults.
Both warm up, then read a prompt of 64 tokens and decode 16; ours decodes behind a prompt of 8, llama-bench
from nothing. Peak memory is what the system counted for the process, mapped pages included. Medians; ratios
are per round. --more adds rounds to those of an earlier run. The last line is one JSON document.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES, Numbers, packed_folder

from starcoder import checkpoint, plan
from starcoder.engine.engine import Engine
from starcoder.engine.settings import EngineSettings
from starcoder.kernels import describe, native
from starcoder.quantize import Scheme
from starcoder.request import CompletionRequest, SamplingParams

SHAPE = SHAPES["15b"]
SCHEMES: tuple[Scheme, ...] = ("int4", "int8")
RESULTS = Path(__file__).parent / "results" / "full_size.json"
PROMPT, NEW, SHORT = 64, 16, 8
GOAL_RATIO = 1.2  # of llama.cpp's decoding
MAX_PEAK_BYTES = int(0.65 * 16.4 * 2**30)  # of int4; llama.cpp's Q4_0 took 16.4 GiB
ORIGINAL_INT8_BYTES = 15_939.61e6  # that the first StarCoder README printed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(".cache/benchmarks"))
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--more", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure is not None:
        print(json.dumps(measure(options.measure)))
        return
    found = json.loads(RESULTS.read_text("utf-8"))["rounds"] if options.more and RESULTS.exists() else {}
    for scheme in options.schemes:
        folder = packed_folder(options.folder / f"15b-{scheme}", SHAPE, scheme)
        for number in range(options.rounds):
            row = one_round(folder, scheme, options)
            found.setdefault(scheme, []).append(row)
            print(f"{scheme} round {number + 1}: {row}", file=sys.stderr)
    result = report(found, options.threads)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


def measure(folder: Path) -> dict[str, float]:
    """Tokens per second of a quantized folder in this process."""
    start, rng = time.perf_counter(), random.Random(0)
    model = checkpoint.load(folder)
    engine = Engine(model, Numbers(), settings=EngineSettings(cache_bytes=1 << 28))  # type: ignore[arg-type]
    load_s = time.perf_counter() - start

    def times(length: int, new: int) -> list[float]:
        """When each new token came; the start first."""
        prompt = tuple(rng.randrange(100, 49000) for _ in range(length))
        request = CompletionRequest(tokens=prompt, sampling=SamplingParams(max_tokens=new, ignore_eos=True))
        return [time.perf_counter(), *(time.perf_counter() for _ in engine.generate([request]))]

    times(PROMPT, 2)  # reads every page of the file
    prefill, decode = times(PROMPT, 1), times(SHORT, NEW + 1)
    return {
        "load_s": load_s,
        "prefill": PROMPT / (prefill[1] - prefill[0]),
        "decode": NEW / (decode[-1] - decode[1]),
    }


def one_round(folder: Path, scheme: Scheme, options: argparse.Namespace) -> dict[str, float]:
    threads = options.threads
    text, peak = in_process([sys.executable, __file__, "--measure", folder, "--threads", threads])
    row: dict[str, float] = json.loads(text)
    row |= {"peak_bytes": peak, "bandwidth": bandwidth(threads)}
    row["share"] = row["decode"] * plan.read_bytes(SHAPE, scheme) / 1e9 / row["bandwidth"]
    if scheme == "int4" and options.gguf is not None:
        sizes = "-p", PROMPT, "-n", NEW, "-r", 1, "-t", threads
        text, peak = in_process([options.llama_bench, "-m", options.gguf, *sizes, "-o", "json"])
        prefill, decode = (each["avg_ts"] for each in json.loads(text))
        row |= {"their_prefill": prefill, "their_decode": decode, "their_peak_bytes": peak}
        row |= {"decode_ratio": row["decode"] / decode, "prefill_ratio": row["prefill"] / prefill}
    return {key: round(value, 3) for key, value in row.items()}


def in_process(command: Sequence[object]) -> tuple[str, int]:
    """What a command prints, and the peak of its resident memory in bytes."""
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None, "a pipe was asked for"
        text = child.stdout.read().decode()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, f"{command} failed with {child.returncode}"
    return text, usage.ru_maxrss * 1024


def bandwidth(threads: int) -> float:
    """GB/s of reading memory by the threads of the kernels, median of 5."""
    library = native.library()
    assert library is not None, "build the kernels first: pip install -e ."
    buffer = torch.ones(1 << 28, dtype=torch.uint8)
    rates = [library.sc_bandwidth(threads, buffer.data_ptr(), buffer.numel()) for _ in range(5)]
    return float(statistics.median(rates)) / 1e9


def report(rounds: dict[Scheme, list[dict[str, float]]], threads: int) -> dict[str, Any]:
    rows = {
        scheme: {"weight_bytes": plan.weight_bytes(SHAPE, scheme)}
        | {key: round(statistics.median(row[key] for row in found), 3) for key in found[0]}
        for scheme, found in rounds.items()
    }
    return {
        "benchmark": "full_size",
        "machine": {
            "cpu": platform.machine(),
            "num_cpus": os.cpu_count(),
            "threads": threads,
            "kernels": describe(),
            "torch": torch.__version__,
        },
        "num_parameters": SHAPE.num_parameters,
        "original_int8_bytes": ORIGINAL_INT8_BYTES,
        "goals": {"decode_ratio": GOAL_RATIO, "max_peak_bytes": MAX_PEAK_BYTES},
        "medians": rows,
        "rounds": rounds,
    }


if __name__ == "__main__":
    main()
