"""A completion from a cold start, process and all, beside `import torch`: python benchmarks/cold_start.py

Protocol: after one unmeasured run of each, both commands run in turns, `--repeats` times each, so that a busy
machine slows both alike; medians are compared. The completion is 64 greedy tokens of the bundled model. It
may take 1.5 times the import plus one second at most, else exit status 1. Files are in the page cache.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

FACTOR, CONSTANT_S = 1.5, 1.0
PROMPT = "def fibonacci(n):"


def time_s(command: Sequence[str]) -> float:
    """Wall-clock time of one process that must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="another model than the bundled one")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cold_start.json")
    options = parser.parse_args()

    bare = [sys.executable, "-c", "import torch"]
    ours = [sys.executable, "-m", "starcoder", "generate", PROMPT, "--max-tokens", "64", "--ignore-eos"]
    ours += ["--model", options.model] if options.model else []
    time_s(bare), time_s(ours)
    pairs = [(time_s(bare), time_s(ours)) for _ in range(options.repeats)]
    import_s, completion_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    limit_s = FACTOR * import_s + CONSTANT_S
    print(f"import torch {import_s:.2f} s   completion {completion_s:.2f} s   at most {limit_s:.2f} s")
    report = {
        "benchmark": "cold_start",
        "machine": {"cpu": platform.machine(), "num_cpus": os.cpu_count(), "torch": torch.__version__},
        "import_torch_s": round(import_s, 3),
        "completion_s": round(completion_s, 3),
        "limit_s": round(limit_s, 3),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))
    if completion_s > limit_s:
        sys.exit(f"a completion from a cold start takes {completion_s:.2f} s, above {limit_s:.2f} s")


if __name__ == "__main__":
    main()
