"""Greedy answers to HumanEval beside transformers: python benchmarks/evaluate_generation.py --model FOLDER

Protocol: one process, 2 threads, float32, a checkpoint of the 164M shape (--model; random weights do, since
only time and equality count). transformers' `generate` takes the prompts one at a time, as the usual harness
does; ours takes them as `starcoder evaluate` hands them over, through `evaluate.run` without judging. Both
make exactly --tokens tokens a prompt, so neither gains by ending early. --problems of the 164 prompts are
taken, evenly; each side is warmed up with two of them. Prints a table and, last, one JSON line.
"""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from starcoder.engine import local
from starcoder.evaluate import run
from starcoder.evaluate.problems import Problem
from starcoder.evaluate.recipes import named
from starcoder.evaluate.tasks import find

GOAL = 4.0  # times as fast


def asked(problems: list[Problem], num_tokens: int) -> list[Problem]:
    """Greedy, of a fixed length, and compared instead of run."""
    out = []
    for problem in problems:
        one = named("greedy").asked(problem, max_tokens=num_tokens, seed=0)
        sampling = replace(one.request.sampling, stop=(), ignore_eos=True)
        out.append(replace(one, check=None, request=replace(one.request, sampling=sampling)))
    return out


def ours(model: local.Model, problems: list[Problem]) -> tuple[list[str], float]:
    start = time.perf_counter()
    samples = run.run(problems, model, None)
    return [sample.text for sample in samples], time.perf_counter() - start


def theirs(
    network: transformers.PreTrainedModel, model: local.Model, problems: list[Problem]
) -> tuple[list[str], float]:
    texts = []
    start = time.perf_counter()
    for problem in problems:
        prompt = model.tokenizer.encode(problem.request.prefix)
        tokens = torch.tensor([prompt])
        out = network.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=problem.request.sampling.max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        texts.append(model.tokenizer.decode(out[0, len(prompt) :].tolist()))
    return texts, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, help="HumanEval.jsonl.gz; downloaded if not given")
    parser.add_argument("--model", required=True)
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "evaluate_generation.json"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()

    [task] = find(["humaneval"])
    every, _ = task.load(options.dataset)
    step = len(every) / options.problems
    problems = asked([every[int(at * step)] for at in range(options.problems)], options.tokens)
    model = local.load(options.model, dtype="float32")
    network = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    warm = asked([every[1], every[2]], 4)
    ours(model, warm)
    theirs(network, model, warm)

    our_texts, our_s = ours(model, problems)
    their_texts, their_s = theirs(network, model, problems)
    num_tokens = options.problems * options.tokens
    num_same = sum(a == b for a, b in zip(our_texts, their_texts, strict=True))
    result = {
        "benchmark": "evaluate_generation",
        "machine": {"cpu": platform.machine(), "num_cpus": os.cpu_count(), "threads": options.threads},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "problems": options.problems,
        "tokens": options.tokens,
        "transformers_s": round(their_s, 2),
        "ours_s": round(our_s, 2),
        "transformers_tokens_per_s": round(num_tokens / their_s, 1),
        "ours_tokens_per_s": round(num_tokens / our_s, 1),
        "ratio": round(their_s / our_s, 2),
        "same_texts": num_same,
        "goals": {"ratio": GOAL, "same_texts": options.problems},
        "holds": {"ratio": their_s / our_s >= GOAL, "same_texts": num_same == options.problems},
    }
    print(f"{options.problems} prompts of HumanEval, {options.tokens} tokens each, prefill included")
    print(f"transformers, one at a time  {their_s:7.1f} s  {num_tokens / their_s:6.1f} tokens/s")
    print(f"starcoder evaluate           {our_s:7.1f} s  {num_tokens / our_s:6.1f} tokens/s")
    print(f"ratio {their_s / our_s:.2f}, the same text for {num_same} of {options.problems}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    if not all(result["holds"].values()):
        sys.exit("goals missed")


if __name__ == "__main__":
    main()
