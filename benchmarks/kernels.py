"""The native kernels alone, beside torch's float32 matmul: python benchmarks/kernels.py

Protocol: for every instruction set that this processor runs, scheme and matrix: one row, as in decoding, over
so many copies of the matrix that no cache holds them, in GB/s of packed bytes and as a share of the bandwidth
measured in the same round; and 512 rows, as in prefill, in GOP/s (two per weight and row), beside torch's
float32. Medians of --rounds. The portable variant shows what a processor without any of them gets; its 512
rows are 64. The last line is one JSON document.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from starcoder.kernels import native
from starcoder.kernels.ops import native_linear
from starcoder.kernels.packed import Packed, Scheme
from starcoder.quantize import quantize_matrix

# The widest layer of each shape: outputs, inputs.
MATRICES = {"164m up": (3072, 768), "1b up": (8192, 2048), "15b up": (24576, 6144)}
SCHEMES: tuple[Scheme, ...] = ("int4", "int8")
ROWS, PORTABLE_ROWS = 512, 64
STREAMED_BYTES = 256 << 20


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def bandwidth(threads: int) -> float:
    """GB/s of reading memory, median of 3."""
    library, buffer = native.library(), torch.ones(STREAMED_BYTES, dtype=torch.uint8)
    assert library is not None, "build the kernels first: pip install -e ."
    rates = [library.sc_bandwidth(threads, buffer.data_ptr(), buffer.numel()) for _ in range(3)]
    return float(statistics.median(rates)) / 1e9


def copies(packed: Packed) -> list[Packed]:
    count = -(-STREAMED_BYTES // packed.size_bytes)
    return [replace(packed, data=packed.data.clone(), scales=packed.scales.clone()) for _ in range(count)]


def measure(matrix: Packed, variant: str, threads: int, rounds: int) -> dict[str, Any]:
    """The row of one matrix and variant."""
    many, lone = copies(matrix), torch.randn(1, matrix.inputs)
    num_rows = ROWS if variant != "portable" else PORTABLE_ROWS
    batch = torch.randn(num_rows, matrix.inputs)
    found: dict[str, list[float]] = {"gb_per_s": [], "share": [], "gop_per_s": []}

    def stream() -> None:
        for each in many:
            native_linear(lone, each, threads=threads, variant=variant)

    for number in range(rounds + 1):
        peak, stream_s = bandwidth(threads), timed(stream)
        batch_s = timed(lambda: native_linear(batch, matrix, threads=threads, variant=variant))
        if number > 0:  # the first warms up
            rate = sum(each.size_bytes for each in many) / stream_s / 1e9
            found["gb_per_s"].append(rate)
            found["share"].append(rate / peak)
            found["gop_per_s"].append(2e-9 * num_rows * matrix.columns * matrix.inputs / batch_s)
    return {key: round(statistics.median(values), 2) for key, values in found.items()}


def torch_gop_per_s(columns: int, inputs: int, rounds: int) -> float:
    weight, batch = torch.randn(columns, inputs), torch.randn(ROWS, inputs)
    times = [timed(lambda: F.linear(batch, weight)) for _ in range(rounds + 1)][1:]
    return round(2e-9 * ROWS * columns * inputs / statistics.median(times), 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--matrices", nargs="+", choices=MATRICES, default=list(MATRICES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "kernels.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.matrices:
        columns, inputs = MATRICES[name]
        weight = torch.randn(columns, inputs, generator=torch.Generator().manual_seed(0))
        beside = torch_gop_per_s(columns, inputs, options.rounds)
        for scheme in SCHEMES:
            matrix = quantize_matrix(weight, scheme, method="nearest")
            for variant in native.variants():
                row: dict[str, Any] = {"matrix": name, "scheme": scheme, "variant": variant}
                row |= measure(matrix, variant, options.threads, options.rounds)
                rows.append(row | {"torch_float32_gop_per_s": beside})
                print(rows[-1], file=sys.stderr)
    machine = {"cpu": platform.machine(), "num_cpus": os.cpu_count(), "threads": options.threads}
    result = {"benchmark": "kernels", "machine": machine | {"torch": torch.__version__}, "rows": rows}
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
