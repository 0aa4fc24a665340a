"""Peak memory and time of loading a checkpoint of 164M parameters: python benchmarks/load_memory.py

Protocol: each case loads a random checkpoint, written once into --cache, in a fresh process that has made
all imports, then reads every weight. Peak is how far resident memory rose at most, mapped file pages
included; the median of --repeats is kept. It may be 1.15 times the weights at most, else exit status 1.
Needs Linux (/proc). The files are in the page cache, so the times are not those of a disk.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from shapes import SHAPES as PLAIN
from shapes import float_folder, packed_folder

MAX_RATIO = 1.15

_BIGCODE = PLAIN["164m"]
SHAPES = {
    "164m": _BIGCODE,
    # These two convert q, k and v while they load.
    "164m-multi-head": replace(_BIGCODE, num_kv_heads=12),
    "164m-starcoder2": replace(_BIGCODE, family="starcoder2", num_kv_heads=2, rope_theta=1e5),
}


@dataclass(frozen=True, slots=True)
class Case:
    shape: str
    file_dtype: str
    dtype: str
    format: str = "safetensors"  # or "bin"; "int8" and "int4" are quantized folders


CASES = [
    Case("164m", "float32", "float32"),
    Case("164m", "bfloat16", "float32"),
    Case("164m", "bfloat16", "bfloat16"),
    Case("164m", "float32", "float32", "bin"),
    Case("164m-multi-head", "float32", "float32"),
    Case("164m-starcoder2", "float32", "float32"),
    Case("164m-starcoder2", "bfloat16", "float32"),
    Case("164m", "float32", "float32", "int8"),
    Case("164m", "float32", "float32", "int4"),
]

# Runs in the child. Reading a weight makes its page resident, mapped or not.
MEASURE = """
import json, sys, time
import torch
from starcoder import checkpoint

def resident_bytes(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

torch.set_num_threads(1)
baseline = resident_bytes("VmRSS:")
start = time.perf_counter()
model = checkpoint.load(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
load_s = time.perf_counter() - start
tensors = [*model.parameters(), *model.buffers()]
for tensor in tensors:
    for rows in tensor.detach().split(4096):
        rows.max()
weights = sum(tensor.nbytes for tensor in tensors)
print(json.dumps({"weights": weights, "peak": resident_bytes("VmHWM:") - baseline, "load_s": load_s}))
"""


def checkpoint_folder(cache: Path, case: Case) -> Path:
    """A random checkpoint of the case, written if it is not there yet."""
    folder = cache / f"{case.shape}-{case.file_dtype}-{case.format}"
    config = SHAPES[case.shape]
    if case.format == "int8" or case.format == "int4":
        return packed_folder(folder, config, case.format)
    float_folder(folder, config, getattr(torch, case.file_dtype))
    safetensors, bin_file = folder / "model.safetensors", folder / "pytorch_model.bin"
    if case.format == "bin" and not bin_file.exists():
        torch.save(load_file(safetensors), bin_file)
        safetensors.unlink()
    return folder


def measure(case: Case, folder: Path, repeats: int) -> dict[str, Any]:
    """The case's row: medians over fresh processes."""
    command = [sys.executable, "-c", MEASURE, str(folder), case.dtype]
    runs = [json.loads(subprocess.check_output(command, text=True)) for _ in range(repeats)]
    weights, peak, load_s = (
        statistics.median(run[key] for run in runs) for key in ("weights", "peak", "load_s")
    )
    measured = {"weights_bytes": weights, "peak_bytes": peak, "ratio": peak / weights, "load_s": load_s}
    return asdict(case) | {key: round(value, 4) for key, value in measured.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/benchmarks"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "load_memory.json")
    options = parser.parse_args()

    print(
        f"{'checkpoint':16} {'file':9} {'loaded as':9} {'format':11} {'weights':>8} {'peak':>8} ratio  load"
    )
    rows = []
    for case in CASES:
        row = measure(case, checkpoint_folder(options.cache, case), options.repeats)
        rows.append(row)
        print(
            f"{case.shape:16} {case.file_dtype:9} {case.dtype:9} {case.format:11} "
            f"{row['weights_bytes'] / 1e6:5.0f} MB {row['peak_bytes'] / 1e6:5.0f} MB "
            f"{row['ratio']:5.2f} {row['load_s']:4.2f} s"
        )
    machine = {"cpu": platform.machine(), "num_cpus": os.cpu_count(), "torch": torch.__version__}
    worst = max(row["ratio"] for row in rows)
    report = {
        "benchmark": "load_memory",
        "machine": machine,
        "rows": rows,
        "worst": worst,
        "limit": MAX_RATIO,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))
    if worst > MAX_RATIO:
        sys.exit(f"peak memory {worst:.2f} x the weights is above {MAX_RATIO}")


if __name__ == "__main__":
    main()
