"""int4 and int8 on a CPU beside llama.cpp: python benchmarks/decode.py --llama-bench PATH --gguf FOLDER

Protocol: random weights of a StarCoder shape, made straight in packed form here, and in `--gguf` as
SHAPE-Q4_0.gguf and SHAPE-Q8_0.gguf (llama.cpp's converter and quantizer write those). Each round measures
the bandwidth of memory, then in turn this engine and llama-bench for each scheme: a prompt of 512 tokens,
and 64 tokens of one stream. Ours are the engine's own steps, Python and sampling included, behind a prompt
of 8; llama-bench decodes from an empty context and does not sample. Medians of --rounds; ratios are per
round. --pause PID stops other work of this machine while a round runs. The last line is one JSON document.
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

from starcoder.config import ModelConfig
from starcoder.engine.engine import Engine, EngineSettings
from starcoder.kernels import describe, native
from starcoder.model import Transformer
from starcoder.prompts import Sentinels
from starcoder.quantize import QuantizedEmbedding, QuantizedLinear, Scheme, expect
from starcoder.request import CompletionRequest, SamplingParams

# Layers, hidden size, heads: bigcode/tiny_starcoder_py, starcoderbase-1b, starcoder.
SHAPES = {"164m": (20, 768, 12), "1b": (24, 2048, 16), "15b": (40, 6144, 48)}
PEERS: dict[Scheme, str] = {"int4": "Q4_0", "int8": "Q8_0"}
GOALS: dict[Scheme, dict[str, float]] = {
    "int4": {"decode": 1.3, "prefill": 2.0},
    "int8": {"decode": 1.15, "prefill": 2.0},
}
PROMPT, NEW, SHORT = 512, 64, 8


class Numbers:
    """Stands in for a tokenizer: every token is a word."""

    sentinels = Sentinels(style="starcoder", eos=0, end_ids=frozenset({0}))

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def token_text(self, token: int) -> str:
        return f"{token} "

    def stream(self) -> "Numbers":
        return self

    def push(self, token: int) -> str:
        return self.token_text(token)

    def flush(self) -> str:
        return ""


def random_model(shape: str, scheme: Scheme) -> Transformer:
    """Any integers that the format allows, with scales that keep activations in bounds."""
    num_layers, hidden, heads = SHAPES[shape]
    config = ModelConfig(
        family="gpt_bigcode",
        vocab_size=49152,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=1,
        max_positions=8192,
    )
    with torch.device("meta"):
        model = Transformer(config)
    expect(model, scheme)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.fill_(1.0 if parameter.dim() == 1 else 0.0).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            is_int4 = module.packed.scheme == "int4"
            whole = torch.int64  # random eight bytes at a time; int8 keeps neighbours within 128 together
            bits = module.data.view(whole)
            bits.random_(-(2**63), None, generator=generator)
            if not is_int4:
                module.data.view(torch.int8).bitwise_right_shift_(1)
            module.scales.fill_(0.02 / (5 if is_int4 else 40))
    embed, head = model.embed, model.head
    assert isinstance(embed, QuantizedEmbedding) and isinstance(head, QuantizedLinear)
    head.data, head.scales = embed.data, embed.scales
    return model.eval()


def streamed_bytes(model: Transformer) -> int:
    """What a decode step reads: all weights but the tables that are looked up; the head is one of them."""
    buffers = {buffer.data_ptr(): buffer.nbytes for buffer in model.buffers()}
    if isinstance(model.positions, QuantizedEmbedding):
        del buffers[model.positions.data.data_ptr()], buffers[model.positions.scales.data_ptr()]
    return sum(buffers.values()) + sum(parameter.nbytes for parameter in model.parameters())


class Ours:
    """One shape and scheme in the engine."""

    def __init__(self, shape: str, scheme: Scheme):
        self.model, self.rng = random_model(shape, scheme), random.Random(0)
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


def theirs(program: Path, gguf: Path, threads: int) -> dict[str, float]:
    """Tokens per second of llama-bench, which warms up first."""
    command = [program, "-m", gguf, "-p", PROMPT, "-n", NEW, "-t", threads, "-r", 1, "-o", "json"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    prefill, decode = (row["avg_ts"] for row in json.loads(done.stdout))
    return {"prefill": prefill, "decode": decode}


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


def measure(ours: Ours, gguf: Path, options: argparse.Namespace, buffer: torch.Tensor) -> dict[str, float]:
    with paused(options.pause):
        row = {
            "bandwidth": bandwidth(buffer, options.threads),
            "decode": ours.decode(),
            "prefill": ours.prefill(),
        }
        if gguf.exists():
            peer = theirs(options.llama_bench, gguf, options.threads)
            row |= {f"their_{key}": value for key, value in peer.items()}
            row |= {f"{key}_ratio": row[key] / peer[key] for key in ("decode", "prefill")}
    row["gb_per_s"] = row["decode"] * streamed_bytes(ours.model) / 1e9
    row["share"] = row["gb_per_s"] / row["bandwidth"]
    return row


def compare(shape: str, options: argparse.Namespace, buffer: torch.Tensor) -> Iterator[dict[str, Any]]:
    engines: dict[Scheme, Ours] = {scheme: Ours(shape, scheme) for scheme in options.schemes}
    rounds: dict[Scheme, list[dict[str, float]]] = {scheme: [] for scheme in options.schemes}
    for number in range(options.rounds):
        for scheme, engine in engines.items():
            row = measure(engine, options.gguf / f"{shape}-{PEERS[scheme]}.gguf", options, buffer)
            rounds[scheme].append(row)
            texts = (f"{key} {value:.2f}" for key, value in row.items())
            print(f"{shape} {scheme} round {number + 1}: {', '.join(texts)}", file=sys.stderr)
    for scheme, rows in rounds.items():
        medians = {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}
        size_bytes = sum(
            {buffer.data_ptr(): buffer.nbytes for buffer in engines[scheme].model.buffers()}.values()
        )
        yield {
            "shape": shape,
            "scheme": scheme,
            "peer": PEERS[scheme],
            "bits_per_weight": round(8 * size_bytes / engines[scheme].model.config.num_parameters, 2),
            "medians": medians,
            "goals": GOALS[scheme],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--llama-bench", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["164m", "1b"])
    parser.add_argument("--schemes", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause", type=int, nargs="*", default=[])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "decode.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    buffer = torch.zeros(1 << 28, dtype=torch.uint8)
    rows = [row for shape in options.shapes for row in compare(shape, options, buffer)]
    result = {
        "benchmark": "decode",
        "machine": {
            "cpu": platform.machine(),
            "num_cpus": os.cpu_count(),
            "threads": options.threads,
            "kernels": describe(),
            "torch": torch.__version__,
        },
        "rounds": options.rounds,
        "rows": rows,
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
