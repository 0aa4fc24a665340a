"""Speed of the engine beside transformers on a 164M shape: python benchmarks/engine.py

Protocol: one process, 2 threads, float32, a random checkpoint that is written once into --folder. Every
round times, one after the other, transformers' `generate` and the engine: one stream, 8 streams, and the
first token after 3 more tokens typed behind a 1500-token prompt. Speeds are decode alone (tokens after
the first), but for 8 streams, where prefill counts. Ratios are per round; medians of --rounds are kept.
Bandwidth is that of summing 1 GiB of float32. Prints a table and, last, one JSON line.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from shapes import SHAPES, Numbers, float_folder
from transformers import AutoModelForCausalLM

from starcoder import checkpoint
from starcoder.engine.engine import Engine
from starcoder.request import CompletionRequest, SamplingParams

SHAPE = SHAPES["164m"]
GOALS = {"single_ratio": 1.7, "streams_ratio": 6.0, "extension_steps": 2.0}  # the last is a limit
NUM_STREAMS, SHORT, LONG, TYPED = 8, 8, 1500, 3


class Times:
    """When `generate` of transformers put out the prompt and each token."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.seen.append(time.perf_counter())

    def end(self) -> None:
        pass


class Peers:
    """The same weights in transformers and in the engine, and the measurements."""

    def __init__(self, folder: Path, num_tokens: int):
        self.theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.ours = Engine(checkpoint.load(folder, dtype=torch.float32), Numbers())  # type: ignore[arg-type]
        self.num_tokens, self.rng = num_tokens, random.Random(0)
        self.typed = self.prompt(LONG)
        self.first_token(self.typed)

    def prompt(self, length: int) -> tuple[int, ...]:
        return tuple(self.rng.randrange(100, 49000) for _ in range(length))

    def their_decode(self) -> float:
        """Tokens per second of one stream."""
        times, tokens = Times(), torch.tensor([self.prompt(SHORT)])
        self.theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=self.num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            streamer=times,
        )
        assert len(times.seen) == self.num_tokens + 1, "the prompt and every token"
        return (self.num_tokens - 1) / (times.seen[-1] - times.seen[1])

    def request(self, tokens: tuple[int, ...], num_tokens: int) -> CompletionRequest:
        return CompletionRequest(
            tokens=tokens, sampling=SamplingParams(max_tokens=num_tokens, ignore_eos=True)
        )

    def our_decode(self) -> float:
        """Tokens per second of one stream."""
        requests = [self.request(self.prompt(SHORT), self.num_tokens)]
        seen = [time.perf_counter() for _ in self.ours.generate(requests)]
        return (self.num_tokens - 1) / (seen[-1] - seen[0])

    def our_streams(self) -> float:
        """Tokens per second of 8 streams together, prefill included."""
        requests = [self.request(self.prompt(SHORT), self.num_tokens) for _ in range(NUM_STREAMS)]
        start = time.perf_counter()
        num_tokens = sum(len(chunk.tokens) for chunk in self.ours.generate(requests))
        return num_tokens / (time.perf_counter() - start)

    def first_token(self, prompt: tuple[int, ...]) -> float:
        start = time.perf_counter()
        next(iter(self.ours.generate([self.request(prompt, 1)])))
        return time.perf_counter() - start

    def our_extension(self) -> float:
        """Seconds to the first token after 3 more tokens typed."""
        times = []
        for _ in range(3):
            before = self.ours.stats().computed_tokens
            self.typed += self.prompt(TYPED)
            times.append(self.first_token(self.typed))
            assert self.ours.stats().computed_tokens - before <= TYPED + 1, "the rest comes from the cache"
        return statistics.median(times)

    def round(self) -> dict[str, float]:
        theirs, ours = self.their_decode(), self.our_decode()
        streams, extension = self.our_streams(), self.our_extension()
        return {
            "transformers_tokens_per_s": theirs,
            "engine_tokens_per_s": ours,
            "streams_tokens_per_s": streams,
            "extension_ms": 1000 * extension,
            "single_ratio": ours / theirs,
            "streams_ratio": streams / theirs,
            "extension_steps": extension * ours,
            "engine_gb_per_s": ours * bytes_per_step() / 1e9,
            "bandwidth_gb_per_s": bandwidth(),
        }


def bytes_per_step() -> int:
    """Weights that a decode step reads: all but the table of positions."""
    return 4 * (SHAPE.num_parameters - SHAPE.max_positions * SHAPE.hidden_size)


def bandwidth() -> float:
    """GB/s of reading memory, best of 3."""
    buffer = torch.ones(1 << 28)
    return buffer.nbytes / min(timed(buffer.sum) for _ in range(3)) / 1e9


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def report(rounds: list[dict[str, float]], options: argparse.Namespace) -> dict[str, Any]:
    medians = {key: round(statistics.median(one[key] for one in rounds), 2) for key in rounds[0]}
    share = statistics.median(one["engine_gb_per_s"] / one["bandwidth_gb_per_s"] for one in rounds)
    holds = {
        "single_ratio": medians["single_ratio"] >= GOALS["single_ratio"],
        "streams_ratio": medians["streams_ratio"] >= GOALS["streams_ratio"],
        "extension_steps": medians["extension_steps"] <= GOALS["extension_steps"],
    }
    return {
        "benchmark": "engine",
        "machine": {"cpu": platform.machine(), "num_cpus": os.cpu_count(), "threads": options.threads},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rounds": len(rounds),
        "tokens": options.tokens,
        "medians": medians,
        "share_of_bandwidth": round(share, 2),
        "goals": GOALS,
        "holds": holds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path.home() / ".cache" / "starcoder-bench" / "164m-f32"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "engine.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()

    peers = Peers(float_folder(options.folder, SHAPE), options.tokens)
    peers.round()  # warm-up
    rounds = []
    print("round  transformers   engine    ratio  8 streams   ratio   +3 tokens   steps    GB/s  of")
    for number in range(1, options.rounds + 1):
        one = peers.round()
        rounds.append(one)
        print(
            f"{number:5} {one['transformers_tokens_per_s']:8.1f} tok/s"
            f" {one['engine_tokens_per_s']:5.1f} tok/s {one['single_ratio']:5.2f}"
            f" {one['streams_tokens_per_s']:6.1f} tok/s {one['streams_ratio']:5.2f}"
            f" {one['extension_ms']:8.1f} ms {one['extension_steps']:7.2f}"
            f" {one['engine_gb_per_s']:7.1f} {one['bandwidth_gb_per_s']:5.1f}",
            flush=True,
        )
    result = report(rounds, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    if not all(result["holds"].values()):
        sys.exit(f"goals missed: {', '.join(name for name, held in result['holds'].items() if not held)}")


if __name__ == "__main__":
    main()
