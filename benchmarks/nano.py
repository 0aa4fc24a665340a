"""Measures a small pretrained model on held-out Python and writes its card: benchmarks/results/nano.json and
README.md in the model's folder.

    python benchmarks/nano.py runs/nano/model --corpus runs/nano/data [--humaneval FILE]

Held-out bits per byte (left to right, windows of the model's context) next to xz and to a token trigram
trained on the same documents; the share of greedy 64-token continuations of held-out functions that parse;
exact match on single lines cut from held-out files, PSM and SPM, and on HumanEval-SingleLineInfilling.
What is not covered: whether completions run; evaluation by tests is another tool's job.
"""

import argparse
import ast
import json
import lzma
import math
import os
import platform
import random
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import starcoder
from starcoder import checkpoint
from starcoder.model import Transformer
from starcoder.request import CompletionRequest, Layout, SamplingParams, collect
from starcoder.tokenizer import Tokenizer
from starcoder.train.loop import sum_loss
from starcoder.train.packing import PackedDocuments
from starcoder.train.settings import FimSettings

RESULTS = Path(__file__).parent / "results" / "nano.json"


def corpus(folder: Path) -> tuple[list[str], list[str], dict[str, Any]]:
    """Texts to train on, held-out texts, and the packages with their figures, of a prepared data set."""
    if not (folder / "dataset.json").exists():  # as it was collected before `prepare` made it
        texts = [[row["content"] for row in read(folder / f"{name}.jsonl")] for name in ("train", "held_out")]
        return texts[0], texts[1], json.loads((folder / "sources.json").read_text())
    from pyarrow import parquet

    packages: dict[str, Any] = {}
    texts = []
    for split, name in (("train", "train"), ("validation", "held_out")):
        shards = sorted((folder / "data").glob(f"{split}-*.parquet"))
        rows = [row for shard in shards for row in parquet.read_table(shard).to_pylist()]
        texts.append([row["content"] for row in rows])
        for row in rows:
            package = packages.setdefault(
                row["repository"], {"licence": row["license"], "split": name, "files": 0, "characters": 0}
            )
            package["files"] += 1
            package["characters"] += row["num_characters"]
    dropped = json.loads((folder / "dataset.json").read_text())["dropped"]
    return texts[0], texts[1], {"packages": packages, "dropped": dropped}


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def bits_per_byte(
    transformer: Transformer, tokenizer: Tokenizer, texts: Sequence[str], *, max_bytes: int
) -> dict[str, float]:
    """Loss of `texts` cut into windows of the context, each predicted from its own start."""
    data = PackedDocuments(
        texts,
        tokenizer,
        seq_length=transformer.config.max_positions,
        fim=FimSettings(rate=0),
        seed=0,
    )
    nats, learned, size_bytes, eos = 0.0, 0, 0, tokenizer.sentinels.eos
    with torch.inference_mode():
        while size_bytes < max_bytes:
            batch = data.next_batch(8)
            nats += float(sum_loss(transformer, batch))
            learned += batch.num_learned
            labels = batch.labels_BT[batch.labels_BT >= 0].tolist()
            size_bytes += sum(len(tokenizer.token_bytes(t)) for t in labels if t != eos)
    return {
        "bits_per_byte": nats / math.log(2) / size_bytes,
        "nats_per_token": nats / learned,
        "bytes_per_token": size_bytes / learned,
    }


def xz_bits_per_byte(texts: Sequence[str]) -> float:
    """xz -9e over each of `texts` alone."""
    data = [text.encode() for text in texts]
    packed = sum(len(lzma.compress(x, preset=9 | lzma.PRESET_EXTREME)) for x in data)
    return 8 * packed / sum(map(len, data))


class Trigram:
    """Token trigram with Witten-Bell interpolation down to uniform. Source: Bell, Cleary, Witten 1990."""

    def __init__(self, documents: Iterator[list[int]], vocab_size: int):
        self.vocab_size = vocab_size
        parts: list[list[np.ndarray[Any, Any]]] = [[], [], []]
        for tokens in documents:
            ids = np.array(tokens, dtype=np.int64)
            for order in range(3):
                parts[order].append(self._keys(ids, order)[order:])
        self.counts = []
        for order in range(3):
            keys, counts = np.unique(np.concatenate(parts[order]), return_counts=True)
            contexts, first, kinds = np.unique(keys // vocab_size, return_index=True, return_counts=True)
            self.counts.append((keys, counts, contexts, np.add.reduceat(counts, first), kinds))

    def _keys(self, ids: np.ndarray[Any, Any], order: int) -> np.ndarray[Any, Any]:
        """Each position's last `order` tokens and itself as one number, context in the high digits."""
        keys = ids.copy()
        for back in range(1, order + 1):
            keys[back:] += ids[:-back] * self.vocab_size**back
        return keys

    def nats(self, tokens: Sequence[int]) -> float:
        """Summed negative log-probability of all tokens but the first two."""
        ids = np.array(tokens, dtype=np.int64)
        probability = np.full(len(ids), 1 / self.vocab_size)
        for order, (keys, counts, contexts, totals, kinds) in enumerate(self.counts):
            wanted = self._keys(ids, order)
            seen = _lookup(keys, counts, wanted)
            total = _lookup(contexts, totals, wanted // self.vocab_size)
            kind = _lookup(contexts, kinds, wanted // self.vocab_size)
            mixed = (seen + kind * probability) / np.maximum(total + kind, 1)
            probability = np.where(total > 0, mixed, probability)
        return float(-np.log(probability[2:]).sum())


def _lookup(
    keys: np.ndarray[Any, Any], values: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def trigram_bits_per_byte(
    tokenizer: Tokenizer,
    train: Sequence[str],
    held_out: Sequence[str],
    *,
    train_characters: int,
    max_bytes: int,
) -> float:
    every = max(1, sum(map(len, train)) // train_characters)
    model = Trigram((tokenizer.encode(text) for text in train[::every]), tokenizer.vocab_size)
    nats, size_bytes = 0.0, 0
    for text in held_out:
        tokens = tokenizer.encode(text)
        nats += model.nats(tokens)
        size_bytes += sum(len(tokenizer.token_bytes(t)) for t in tokens[2:])
        if size_bytes >= max_bytes:
            break
    return nats / math.log(2) / size_bytes


def complete(model: starcoder.Model, requests: Sequence[CompletionRequest]) -> list[str]:
    """Texts in the order of the requests."""
    done = collect(model.generate(requests))
    return [done[str(position)][0].text for position in range(len(requests))]


def functions(texts: Sequence[str], count: int, rng: random.Random) -> list[tuple[str, str]]:
    """(everything up to and including a function's first statement, the function's own part of that)."""
    found = []
    for text in texts:
        lines = text.splitlines(keepends=True)
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.FunctionDef)
                and len(node.body) >= 4
                and node.body[1].lineno > node.lineno
            ):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
                end = node.body[1].lineno - 1
                found.append(("".join(lines[:end]), "".join(lines[first:end])))
    return rng.sample(found, count)


def parses(head: str, continuation: str) -> bool:
    """Whether the function so far and the continuation's whole lines are Python.

    A last line that opens a block gets a body: the continuation was cut there, not finished.
    """
    body, newline, _ = continuation.rpartition("\n")
    source = textwrap.dedent(head + (body if newline else continuation)).rstrip()
    last = source.splitlines()[-1]
    if last.endswith(":"):
        source += "\n" + " " * (len(last) - len(last.lstrip()) + 4) + "pass"
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


def single_lines(texts: Sequence[str], count: int, rng: random.Random) -> list[tuple[str, str, str]]:
    """(prefix, line with its end, suffix): lines of code with at least 8 characters, not comments."""
    found = []
    for text in texts:
        lines = text.splitlines(keepends=True)
        for at in range(5, len(lines) - 5):
            stripped = lines[at].strip()
            if len(stripped) >= 8 and not stripped.startswith(("#", '"""')):
                found.append(("".join(lines[:at]), lines[at], "".join(lines[at + 1 :])))
    return rng.sample(found, count)


def exact_match(
    model: starcoder.Model, problems: Sequence[tuple[str, str, str]], layout: Layout, max_tokens: int = 64
) -> float:
    """Share of problems whose first completed line is the line cut out, white space at its ends aside."""
    requests = [
        CompletionRequest(
            prefix=prefix,
            suffix=suffix,
            layout=layout,
            sampling=SamplingParams(max_tokens=max_tokens, stop=("\n",)),
        )
        for prefix, _, suffix in problems
    ]
    texts = complete(model, requests)
    return sum(t.strip() == line.strip() for t, (_, line, _) in zip(texts, problems, strict=True)) / len(
        problems
    )


CARD = """---
license: apache-2.0
language: code
tags: [code, fill-in-the-middle]
---
# nano

A StarCoder-shaped code model of {parameters} parameters that makes `starcoder` work in its first minute,
offline. It knows Python's look, not its meaning: use a real StarCoder for work. Shape: Starcoder2's (rotary
positions, one key/value head), StarCoder's special tokens, context of 1,024 tokens. Recipe:
`recipes/nano.toml`. {training}

| measured by `benchmarks/nano.py` on packages that were held out | |
|---|---|
| bits per byte | {bits_per_byte} |
| bits per byte, xz -9e, each file alone (the model sees 1,024 tokens at most) | {xz_files_bits_per_byte} |
| bits per byte, xz -9e, all {held_out_megabytes} MB in one archive, which it learns from as it goes | \
{xz_archive_bits_per_byte} |
| bits per byte, token trigram over the training documents | {trigram_bits_per_byte} |
| greedy 64-token continuations of functions that parse | {continuations_that_parse:.1%} |
| exact match, single lines of held-out files, PSM / SPM | {held_out} |
| exact match, HumanEval-SingleLineInfilling, PSM / SPM | {humaneval} |

Trained half on infills (half of them in each order). {problems} problems per figure but HumanEval's 1,033.

## What it was trained on

Permissively licensed Python: CPython's standard library and packages from the Python Package Index, as their
metadata states. Tests, generated and vendored files, data tables, exact and near duplicates were left out
({dropped}). Whole packages were held out.

| package | licence | split | files | characters |
|---|---|---|---|---|
{packages}
"""


def card(result: dict[str, Any], sources: dict[str, Any], training: str) -> str:
    """The model card, from what was measured and collected."""

    def both(name: str) -> str:
        shares = [result.get(f"{name}_exact_match_{layout}") for layout in ("psm", "spm")]
        return " / ".join("not measured" if share is None else f"{share:.1%}" for share in shares)

    packages = "\n".join(
        "| {} | {licence} | {split} | {files} | {characters:,} |".format(name, **row)
        for name, row in sorted(sources["packages"].items())
    )
    dropped = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(sources["dropped"].items()))
    held_out_characters = sum(
        r["characters"] for r in sources["packages"].values() if r["split"] == "held_out"
    )
    numbers = result | {
        "held_out_megabytes": round(held_out_characters / 1e6, 1),
        "parameters": f"{result['parameters'] / 1e6:.1f} M",
    }
    return CARD.format(
        **numbers,
        held_out=both("held_out"),
        humaneval=both("humaneval_single_line"),
        dropped=dropped,
        packages=packages,
        training=training,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--corpus", type=Path, required=True, help="folder that `starcoder prepare` wrote")
    parser.add_argument("--humaneval", type=Path, help="HumanEval-SingleLineInfilling.jsonl.gz")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--max-bytes", type=int, default=1_000_000, help="held-out bytes the losses are of")
    parser.add_argument(
        "--training", default="", help="a sentence for the card: steps, tokens, machine, time"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    model = starcoder.load(args.model, threads=args.threads)
    transformer = checkpoint.load(args.model, dtype=torch.float32)
    train, held_out, sources = corpus(args.corpus)
    random.Random(0).shuffle(held_out)

    def say(name: str, value: object) -> None:
        result[name] = value
        print(f"{name}: {value}", file=sys.stderr, flush=True)

    machine = {"cpu": platform.machine(), "num_cpus": os.cpu_count(), "torch": torch.__version__}
    result: dict[str, Any] = {"machine": machine}
    say("parameters", transformer.config.num_parameters)
    for name, value in bits_per_byte(
        transformer, model.tokenizer, held_out, max_bytes=args.max_bytes
    ).items():
        say(name, round(value, 4))
    say("xz_files_bits_per_byte", round(xz_bits_per_byte(held_out[:200]), 4))
    say("xz_archive_bits_per_byte", round(xz_bits_per_byte(["".join(held_out)]), 4))
    trigram = trigram_bits_per_byte(
        model.tokenizer, train, held_out, train_characters=60_000_000, max_bytes=args.max_bytes
    )
    say("trigram_bits_per_byte", round(trigram, 4))
    heads = functions(held_out, args.problems, random.Random(1))
    params = SamplingParams(max_tokens=64)
    continued = complete(model, [CompletionRequest(prefix=prefix, sampling=params) for prefix, _ in heads])
    share = sum(parses(head, text) for (_, head), text in zip(heads, continued, strict=True)) / len(heads)
    say("continuations_that_parse", round(share, 4))
    problems = single_lines(held_out, args.problems, random.Random(2))
    layouts: tuple[Layout, Layout] = ("psm", "spm")
    for layout in layouts:
        say(f"held_out_exact_match_{layout}", round(exact_match(model, problems, layout), 4))
    if args.humaneval:
        import gzip

        with gzip.open(args.humaneval, "rt") as lines:
            tasks = [json.loads(line) for line in lines]
        cut = [(t["prompt"], t["canonical_solution"], t["suffix"]) for t in tasks]
        for layout in layouts:
            say(f"humaneval_single_line_exact_match_{layout}", round(exact_match(model, cut, layout), 4))
    say("problems", args.problems)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    (args.model / "README.md").write_text(card(result, sources, args.training))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
