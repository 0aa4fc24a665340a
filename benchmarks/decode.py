"""int4 and int8 on a CPU beside three peers: python benchmarks/decode.py --peers FOLDER

Protocol: random weights of a StarCoder shape, made straight in packed form here. `--peers` holds, for each
shape and where the peer is wanted, SHAPE-Q4_0.gguf and SHAPE-Q8_0.gguf (llama.cpp's converter and quantizer
write them; --llama-bench runs them), SHAPE (a checkpoint, for transformers) and SHAPE-ct2 (CTranslate2's
converter). Each round measures the bandwidth of memory, in pages of 4 KiB as programs get them and in large
ones, which our weights ask for (`share`, `large_page_share`), then in turn this engine and the peers of each
scheme: a prompt of 512 tokens, and 64 tokens of one stream. Ours are the engine's own steps, Python and
sampling included, behind a prompt of 8; llama-bench decodes from an empty context and does not sample.
Medians of --rounds; ratios are per round. --more adds rounds to those of an earlier run. --pause PID stops
other work of this machine while a round runs. The last line is one JSON document.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from shapes import SHAPES, Numbers, packed_model

from starcoder.engine.engine import Engine
from starcoder.engine.settings import EngineSettings
from starcoder.kernels import describe, native
from starcoder.kernels.memory import Arena
from starcoder.model import Transformer
from starcoder.quantize import QuantizedEmbedding, Scheme
from starcoder.request import CompletionRequest, SamplingParams

PEERS: dict[Scheme, str] = {"int4": "Q4_0", "int8": "Q8_0"}
GOALS: dict[Scheme, dict[str, float]] = {
    "int4": {"decode": 1.3, "prefill": 2.0},
    "int8": {"decode": 1.15, "prefill": 2.0},
}
PROMPT, NEW, SHORT = 512, 64, 8


def streamed_bytes(model: Transformer) -> int:
    """What a decode step reads: all weights but the tables that are looked up; the head is one of them."""
    buffers = {buffer.data_ptr(): buffer.nbytes for buffer in model.buffers()}
    if isinstance(model.positions, QuantizedEmbedding):
        del buffers[model.positions.data.data_ptr()], buffers[model.positions.scales.data_ptr()]
    return sum(buffers.values()) + sum(parameter.nbytes for parameter in model.parameters())


class Ours:
    """One shape and scheme in the engine."""

    def __init__(self, shape: str, scheme: Scheme):
        self.model, self.rng = packed_model(SHAPES[shape], scheme), random.Random(0)
        settings = EngineSettings(cache_bytes=1 << 28)
        self.engine = Engine(self.model, Numbers(), settings=settings)  # type: ignore[arg-type]
        self.prefill(), self.decode()

    def run(self, length: int, new: int) -> list[float]:
        """When each new token came; the start first."""
        prompt = tuple(self.rng.randrange(100, 49000) for _ in range(length))
        request = CompletionRequest(tokens=prompt, sampling=SamplingParams(max_tokens=new, ignore_eos=True))
        return [time.perf_counter(), *(time.perf_counter() for _ in self.engine.generate([request]))]

    def prefill(self) -> float:
        start, end = self.run(PROMPT, 1)
        return PROMPT / (end - start)

    def decode(self) -> float:
        times = self.run(SHORT, NEW + 1)
        return NEW / (times[-1] - times[1])


def llama_cpp(program: Path, gguf: Path, threads: int) -> dict[str, float]:
    """Tokens per second of llama-bench, which warms up first."""
    prefill, decode = output(
        program, "-m", gguf, "-p", PROMPT, "-n", NEW, "-t", threads, "-r", 1, "-o", "json"
    )
    return {"prefill": prefill["avg_ts"], "decode": decode["avg_ts"]}


def other(peer: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of CTranslate2 or transformers, both in int8."""
    script, sizes = Path(__file__).with_name("peer.py"), ("--prompt", PROMPT, "--new", NEW)
    found = output(options.peer_python, script, peer, folder, "--threads", options.threads, *sizes)
    return {"prefill": found["prefill"], "decode": found["decode"]}


def output(*command: object) -> Any:
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return json.loads(done.stdout)


def bandwidth(buffer: torch.Tensor, threads: int) -> float:
    """GB/s of reading memory by the threads of the kernels, median of 5."""
    library = native.library()
    assert library is not None, "build the kernels first: pip install -e ."
    rates = [library.sc_bandwidth(threads, buffer.data_ptr(), buffer.numel()) for _ in range(5)]
    return float(statistics.median(rates)) / 1e9


@contextlib.contextmanager
def paused(pids: list[int]) -> Iterator[None]:
    try:
        _send(pids, signal.SIGSTOP)
        yield
    finally:
        _send(pids, signal.SIGCONT)


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(pid, number)


def measure(ours: Ours, shape: str, scheme: Scheme, options: argparse.Namespace) -> dict[str, float]:
    """One round."""
    gguf = options.peers / f"{shape}-{PEERS[scheme]}.gguf"
    buffer = torch.ones(1 << 28, dtype=torch.uint8)
    in_large_pages = Arena().empty(buffer.shape, buffer.dtype).fill_(1)
    with paused(options.pause):
        row = {
            "bandwidth": bandwidth(buffer, options.threads),
            "large_page_bandwidth": bandwidth(in_large_pages, options.threads),
            "decode": ours.decode(),
            "prefill": ours.prefill(),
        }
        if options.llama_bench is not None and gguf.exists():
            peer = llama_cpp(options.llama_bench, gguf, options.threads)
            row |= {f"their_{key}": value for key, value in peer.items()}
            row |= {f"{key}_ratio": row[key] / peer[key] for key in ("decode", "prefill")}
        for name, folder in (("ctranslate2", f"{shape}-ct2"), ("transformers", shape)):
            if scheme == "int8" and (options.peers / folder / "config.json").exists():
                peer = other(name, options.peers / folder, options)
                row |= {f"{name}_{key}": value for key, value in peer.items()}
    row["gb_per_s"] = row["decode"] * streamed_bytes(ours.model) / 1e9
    row["share"] = row["gb_per_s"] / row["bandwidth"]
    row["large_page_share"] = row["gb_per_s"] / row["large_page_bandwidth"]
    return {key: round(value, 3) for key, value in row.items()}


def compare(shape: str, options: argparse.Namespace, rows: dict[str, Any]) -> None:
    """Add rounds of every scheme to `rows`."""
    engines: dict[Scheme, Ours] = {scheme: Ours(shape, scheme) for scheme in options.schemes}
    for number in range(options.rounds):
        for scheme, ours in engines.items():
            found = measure(ours, shape, scheme, options)
            rows.setdefault(f"{shape} {scheme}", about(ours, shape, scheme))["rounds"].append(found)
            texts = (f"{key} {value:.2f}" for key, value in found.items())
            print(f"{shape} {scheme} round {number + 1}: {', '.join(texts)}", file=sys.stderr)


def about(ours: Ours, shape: str, scheme: Scheme) -> dict[str, Any]:
    buffers = {buffer.data_ptr(): buffer.nbytes for buffer in ours.model.buffers()}
    bits = 8 * sum(buffers.values()) / ours.model.config.num_parameters
    row = {"shape": shape, "scheme": scheme, "peer": PEERS[scheme], "bits_per_weight": round(bits, 2)}
    return row | {"goals": GOALS[scheme], "rounds": []}


def median_of(row: dict[str, Any]) -> dict[str, float]:
    rounds = row["rounds"]
    return {key: round(statistics.median(one[key] for one in rounds if key in one), 2) for key in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, default=Path())
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--peer-python", default=sys.executable, help="has CTranslate2 and transformers")
    parser.add_argument("--shapes", nargs="+", choices=["164m", "1b"], default=["164m", "1b"])
    parser.add_argument("--schemes", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--more", action="store_true")
    parser.add_argument("--pause", type=int, nargs="*", default=[])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "decode.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: dict[str, Any] = {}
    if options.more and options.output.exists():
        rows = {
            f"{row['shape']} {row['scheme']}": row for row in json.loads(options.output.read_text())["rows"]
        }
    for shape in options.shapes:
        compare(shape, options, rows)
    result = {
        "benchmark": "decode",
        "machine": {
            "cpu": platform.machine(),
            "num_cpus": os.cpu_count(),
            "threads": options.threads,
            "kernels": describe(),
            "torch": torch.__version__,
        },
        "rows": [row | {"medians": median_of(row)} for row in rows.values()],
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
