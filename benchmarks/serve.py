"""Our server beside llama.cpp's under the same load: python benchmarks/serve.py --model FOLDER --gguf FILE

Protocol: both servers run on --threads threads, one idle while the other works; every round measures one
after the other, and medians of --rounds are kept. Both are asked in llama.cpp's contract, greedy, end tokens
ignored. `throughput`: output tokens/s of N clients, prompts of 256 tokens without a common prefix, 64 new
tokens. `editing`: a 1500-token prefix of real code that grows by 3 tokens a keystroke, 40 keystrokes, 24 new
tokens, with a suffix of 200 tokens and without: latency, time to first token, tokens prefilled. `overhead`:
the same throughput at 16 clients beside that of the engine in this process, 9 rounds at least, alternating.
Without --llama-server only ours is measured. The last line is one JSON document, which --save merges into
benchmarks/results/serve.json under --label.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import socket
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from starcoder.engine import local
from starcoder.request import CompletionRequest, SamplingParams

RESULTS = Path(__file__).parent / "results" / "serve.json"
PROMPT, NEW = 256, 64  # tokens of the throughput test
OVERHEAD_ROUNDS = 9
PREFIX, SUFFIX, TYPED, KEYSTROKES, ANSWER = 1500, 200, 3, 40, 24
GOALS = {"throughput_1": 1.2, "throughput_8": 2.0, "throughput_16": 2.0}  # ours over theirs, at least
LIMITS = {"keystroke_p50": 0.35, "ttft_p50": 0.1, "against_suffix_free": 1.0, "http_overhead": 0.1}


@dataclass(frozen=True)
class Text:
    """Python's own sources as tokens, and how to write tokens as text."""

    ids: list[int]
    argparse_ids: list[int]
    tokenizer: Any

    @classmethod
    def load(cls, tokenizer: Any) -> "Text":
        folder = Path(sysconfig.get_path("stdlib"))
        text = "".join(f.read_text(errors="ignore") for f in sorted(folder.glob("*.py"))[:80])
        return cls(tokenizer.encode(text), tokenizer.encode((folder / "argparse.py").read_text()), tokenizer)

    def window(self, rng: random.Random) -> list[int]:
        at = rng.randrange(len(self.ids) - PROMPT)
        return self.ids[at : at + PROMPT]


@contextlib.contextmanager
def ours(args: argparse.Namespace) -> Iterator[str]:
    command = [sys.executable, "-m", "starcoder", "serve", "--port", "0", f"--threads={args.threads}"]
    command += ["--model", args.model] if args.model else []
    command += ["--quantize", args.quantize] if args.quantize else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"http://\S+", process.stderr.readline())
            if found is None:
                raise SystemExit(process.stderr.read())
            yield found[0]
        finally:
            process.terminate()


@contextlib.contextmanager
def theirs(args: argparse.Namespace) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # -b 4096: /infill cuts the prefix to 3/4 of the batch; a sliding window would spoil its cache.
    options = f"-t {args.threads} -np 16 -c 49152 -b 4096 --no-webui --port {port}".split()
    with subprocess.Popen(
        [args.llama_server, "-m", args.gguf, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait(url: str) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"{url} does not start")


def client_of(url: str) -> httpx.AsyncClient:
    """A new connection for each request: llama.cpp's server closes some that were said to be kept."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=600, trust_env=False, limits=limits)


async def complete(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, float]:
    """One streamed completion: seconds in all and to the first event, tokens made and prefilled."""
    body = body | {"temperature": 0, "ignore_eos": True, "stream": True}
    start, first, events = time.perf_counter(), 0.0, bytearray()
    async with http.stream("POST", path, json=body) as reply:
        reply.raise_for_status()
        async for data in reply.aiter_raw():  # read in the end: the servers need the processor now
            first = first or time.perf_counter() - start
            events += data
    last = [line for line in events.split(b"\n") if line.startswith(b"data: ")][-1]
    timings = json.loads(last[6:])["timings"]
    if timings["predicted_n"] < body["n_predict"]:
        raise SystemExit(f"{path} made {timings['predicted_n']} of {body['n_predict']} tokens")
    return {
        "total_s": time.perf_counter() - start,
        "first_s": first,
        "made": timings["predicted_n"],
        "prefilled": timings["prompt_n"],
    }


async def throughput(url: str, prompts: Sequence[str], num_clients: int) -> float:
    todo = iter(prompts)

    async def client(http: httpx.AsyncClient) -> float:
        made = 0.0
        for prompt in todo:
            body = {"prompt": prompt, "n_predict": NEW, "cache_prompt": False}
            made += (await complete(http, "/completion", body))["made"]
        return made

    async with client_of(url) as http:
        start = time.perf_counter()
        made = sum(await asyncio.gather(*(client(http) for _ in range(num_clients))))
        return made / (time.perf_counter() - start)


async def editing(url: str, text: Text, *, round_: int, has_suffix: bool, layout: str) -> dict[str, float]:
    """Medians over the keystrokes after the first of a session."""
    decode, ids, grown = text.tokenizer.decode, text.argparse_ids, PREFIX + TYPED * KEYSTROKES
    suffix = decode(ids[grown : grown + SUFFIX]) if has_suffix else ""
    seen = []
    async with client_of(url) as http:
        for keystroke in range(KEYSTROKES):
            # Another first line per round, so that a round begins cold.
            prefix = f"# session {round_} {has_suffix}\n" + decode(ids[: PREFIX + TYPED * keystroke])
            body: dict[str, Any] = {"n_predict": ANSWER, "cache_prompt": True}
            if has_suffix:
                body |= {"input_prefix": prefix, "input_suffix": suffix, "layout": layout}
                seen.append(await complete(http, "/infill", body))
            else:
                seen.append(await complete(http, "/completion", body | {"prompt": prefix}))
    return {name: statistics.median(one[name] for one in seen[1:]) for name in seen[0]}


def in_process(model: local.Model, prompts: Sequence[Sequence[int]]) -> float:
    """Output tokens/s of the engine without a server, these prompts at once."""
    params = SamplingParams(max_tokens=NEW, ignore_eos=True)
    requests = [CompletionRequest(tokens=tuple(prompt), sampling=params) for prompt in prompts]
    start = time.perf_counter()
    made = sum(len(chunk.tokens) for chunk in model.generate(requests))
    return made / (time.perf_counter() - start)


def measure(args: argparse.Namespace, urls: dict[str, str], text: Text) -> dict[str, Any]:
    rng = random.Random(0)
    rounds: dict[str, dict[str, list[Any]]] = {name: {} for name in urls}
    for round_ in range(args.rounds):
        for count in args.clients if "throughput" in args.parts else ():
            prompts = [text.tokenizer.decode(text.window(rng)) for _ in range(max(count, args.requests))]
            for name, url in urls.items():
                speed = asyncio.run(throughput(url, prompts, count))
                rounds[name].setdefault(f"throughput_{count}", []).append(speed)
                print(f"round {round_}: {name}, {count} clients: {speed:.1f} tokens/s", flush=True)
        for has_suffix in (True, False) if "editing" in args.parts else ():
            for name, url in urls.items():
                seen = asyncio.run(
                    editing(url, text, round_=round_, has_suffix=has_suffix, layout=args.layout)
                )
                rounds[name].setdefault("infill" if has_suffix else "plain", []).append(seen)
                print(
                    f"round {round_}: {name}, {'suffix' if has_suffix else 'no suffix'}: {seen}", flush=True
                )
    return {name: {key: middle(values) for key, values in found.items()} for name, found in rounds.items()}


def middle(values: list[Any]) -> Any:
    """The median of numbers, or of each field of dicts."""
    if isinstance(values[0], dict):
        return {key: statistics.median(value[key] for value in values) for key in values[0]}
    return statistics.median(values)


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Ours over theirs."""
    if "llama.cpp" not in found:
        return {}
    us, them = found["starcoder"], found["llama.cpp"]
    out = {key: us[key] / them[key] for key in us if key.startswith("throughput")}
    if "infill" in us:
        out["keystroke_p50"] = us["infill"]["total_s"] / them["infill"]["total_s"]
        out["ttft_p50"] = us["infill"]["first_s"] / them["infill"]["first_s"]
        out["against_suffix_free"] = us["infill"]["total_s"] / them["plain"]["total_s"]
    return out


def overhead(args: argparse.Namespace, url: str, text: Text) -> float:
    """Share of the engine's own throughput that HTTP costs at 16 clients: little, so it takes more rounds."""
    model = local.load(args.model, quantize=args.quantize, threads=args.threads)
    rng, shares = random.Random(1), []
    for _ in range(max(args.rounds, OVERHEAD_ROUNDS)):
        prompts = [text.window(rng) for _ in range(16)]
        alone = in_process(model, prompts)
        served = asyncio.run(throughput(url, [text.tokenizer.decode(prompt) for prompt in prompts], 16))
        shares.append(1 - served / alone)
        print(f"engine alone {alone:.1f}, served {served:.1f} tokens/s", flush=True)
    return statistics.median(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="checkpoint folder; the bundled model if not given")
    parser.add_argument("--quantize", choices=["int8", "int4"])
    parser.add_argument("--llama-server", help="llama.cpp's server; without it only ours is measured")
    parser.add_argument("--gguf", help="the same shape for llama.cpp")
    parser.add_argument("--label", default="bundled", help="name of this shape in the results")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--requests", type=int, default=4, help="of one round, at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layout", default="spm", help="of our infills")
    parser.add_argument(
        "--parts", nargs="+", choices=["throughput", "editing", "overhead"], default=["throughput", "editing"]
    )
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        urls = {"starcoder": stack.enter_context(ours(args))}
        if args.llama_server:
            urls["llama.cpp"] = stack.enter_context(theirs(args))
        for url in urls.values():
            wait(url)
        from starcoder import checkpoint
        from starcoder.tokenizer import Tokenizer

        text = Text.load(Tokenizer.load(checkpoint.resolve(args.model)))
        for url in urls.values():
            asyncio.run(throughput(url, ["def f(x):\n"], 1))  # warm up
        found: dict[str, Any] = measure(args, urls, text)
        if "overhead" in args.parts:
            found["http_overhead"] = overhead(args, urls["starcoder"], text)
    before = json.loads(RESULTS.read_text("utf-8"))["shapes"] if RESULTS.is_file() and args.save else {}
    if set(args.parts) == {"overhead"}:
        found = before.get(args.label, {}) | {"http_overhead": found["http_overhead"]}
    else:
        found["ratios"] = ratios(found)
        found["settings"] = {name: getattr(args, name) for name in ("quantize", "gguf", "rounds", "layout")}
    machine = {"cpu": platform.machine(), "num_cpus": os.cpu_count(), "torch": torch.__version__}
    shapes = before | {args.label: found}
    report = {"machine": machine, "goals": GOALS, "limits": LIMITS, "shapes": shapes}
    if args.save:
        RESULTS.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
