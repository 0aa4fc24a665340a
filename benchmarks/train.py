"""Fine-tuning speed and memory beside Trainer + PEFT and TRL: python benchmarks/train.py --peers PYTHON

Protocol: a random GPTBigCode checkpoint of 164M parameters (--folder), float32, 2 threads, short
question/answer pairs (20 to 200 tokens, median near 70) that everyone sees as the same token ids, all of
them learned. No dropout: the 0.1 that the config states, which the peers apply by default, takes their
attention off its fast path. No activation checkpointing. Each contestant runs in a process of its own; the
first step is warm-up. Speed counts real tokens, not padding; the median step counts. Memory is the process's
peak, compared where steps compute as many tokens. LoRA: rank 16 on c_attn and both c_proj.

  padded      Trainer + PEFT, 4 pairs a step, padded to 512          needs transformers, peft
  dynamic     the same, padded to the longest of the 4
  padded-dropout, dynamic-dropout     both as a user gets them, with the config's dropout
  packed      TRL's SFTTrainer, packing (best fit), 4 rows of 512 tokens a step      needs trl
  full        the same without an adapter
  ours        4 rows of 512 tokens a step, packed; ours-full the same without an adapter

PYTHON is an interpreter that has the peers, which are none of our dependencies. Prints one JSON line last.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "train.json"
PEERS = ("padded", "dynamic", "padded-dropout", "dynamic-dropout", "packed", "full")
SEQ, BATCH, THREADS, EOS, PAD = 512, 4, 2, 0, 4
GOALS = {"padded": 6.0, "dynamic": 1.6, "packed": 1.2, "full": 1.2, "memory": 0.7}


def pairs(folder: Path, count: int) -> list[list[int]]:
    """Token ids of `count` pairs."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library = Path(sysconfig.get_path("stdlib"))
    names = ("argparse.py", "typing.py", "inspect.py", "tarfile.py", "subprocess.py", "doctest.py")
    ids = tokenizer.encode("".join((library / name).read_text() for name in names)).ids
    question, rng = tokenizer.encode("Question: ").ids, random.Random(0)
    rows = []
    for _ in range(count):
        at = rng.randrange(len(ids) - SEQ)
        size = min(SEQ - len(question) - 1, max(20, int(rng.lognormvariate(4.25, 0.6))))
        rows.append([*question, *ids[at : at + size], EOS])
    return rows


def contestant(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """Run in a process of its own: tokens a second and peak memory."""
    if name.startswith("ours"):
        from starcoder.cli.large_pages import ask_for_large_pages

        ask_for_large_pages()  # as `starcoder finetune` does; the peers run as their users run them
    import torch

    torch.set_num_threads(THREADS)
    run: Callable[[str, Path, int], dict[str, Any]] = ours if name.startswith("ours") else theirs
    found = run(name, folder, steps)
    return found | {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def ours(name: str, folder: Path, steps: int) -> dict[str, Any]:
    import tempfile

    import torch
    from rich.console import Console

    from starcoder import checkpoint
    from starcoder.adapters.settings import AdapterSettings
    from starcoder.checkpoint.adapter import add_adapter
    from starcoder.tokenizer import Tokenizer
    from starcoder.train import loop
    from starcoder.train.bins import PackedExamples
    from starcoder.train.examples import Example
    from starcoder.train.progress import Progress, read_metrics
    from starcoder.train.settings import OptimizerSettings
    from starcoder.train.sources import Row, Table

    model = checkpoint.load(folder, dtype=torch.float32)
    if name == "ours":
        add_adapter(model, AdapterSettings(rank=16, alpha=32, targets=("c_proj", "c_attn")))
    else:
        model.requires_grad_(True)
    rows: list[Row] = [{"ids": ids} for ids in pairs(folder, BATCH * 12 * (steps + 2))]

    def form(row: Row, room: int, rng: random.Random) -> list[Example]:
        ids: Any = row["ids"]
        return [Example(ids, [True] * len(ids))]

    tokenizer = Tokenizer.load(folder)
    data = PackedExamples(Table(rows, ["ids"], seed=0), form, tokenizer, seq_length=SEQ, seed=0)
    settings = loop.LoopSettings(max_steps=steps + 1, batch_size=BATCH, save_every=1000)
    optimizer = OptimizerSettings(learning_rate=1e-4, warmup_steps=2, weight_decay=0.05)
    with tempfile.TemporaryDirectory() as output:
        progress = Progress(Path(output), Console(quiet=True))
        loop.train(model, data, settings, optimizer, Path(output), progress=progress)
        seen = read_metrics(Path(output) / "metrics.jsonl")[1:]
    return rates([row["tokens_per_s"] for row in seen]) | {"loss": seen[-1]["loss"]}


def theirs(name: str, folder: Path, steps: int) -> dict[str, Any]:
    import torch
    import transformers
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "<fim_pad>"
    kind, _, has_dropout = name.partition("-")
    changed = {} if has_dropout else dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **changed)
    targets = ["c_proj", "c_attn", "q_attn"]
    lora = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", target_modules=targets
    )
    is_packed = kind in ("packed", "full")
    rows = Dataset.from_dict({"input_ids": pairs(folder, BATCH * (12 if is_packed else 1) * (steps + 2))})
    settings: dict[str, Any] = {
        "output_dir": "/tmp/starcoder-bench-train",
        "per_device_train_batch_size": BATCH,
        "max_steps": steps + 1,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.05,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "seed": 0,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }

    class Clock(TrainerCallback):
        """When each step began and ended."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter() - self.started)

    class Counter:
        """A collator that counts its real tokens."""

        def __init__(self, inner: Any):
            self.inner, self.real = inner, list[int]()

        def __call__(self, features: Any) -> Any:
            batch = self.inner(features)
            self.real.append(int((batch["input_ids"] != PAD).sum()))
            return batch

    clock = Clock()
    if is_packed:
        from trl import SFTConfig, SFTTrainer

        config = SFTConfig(
            **settings,
            packing=True,
            packing_strategy="bfd",
            padding_free=False,
            max_length=SEQ,
            bf16=False,
            eos_token="<|endoftext|>",
            pad_token="<fim_pad>",
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=lora if kind == "packed" else None,
            callbacks=[clock],
        )
    else:
        collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)

        def to_length(features: Any) -> Any:
            kinds = {"padding": "max_length", "max_length": SEQ}
            return collate([tokenizer.pad({"input_ids": x["input_ids"]}, **kinds) for x in features])

        trainer = Trainer(
            model=get_peft_model(model, lora),
            args=TrainingArguments(**settings),
            data_collator=to_length if kind == "padded" else collate,
            train_dataset=rows,
            callbacks=[clock],
        )
    counter = trainer.data_collator = Counter(trainer.data_collator)
    out = trainer.train()
    steps_seen = zip(counter.real[1 : steps + 1], clock.times[1:], strict=True)
    return rates([real / seconds for real, seconds in steps_seen]) | {"loss": out.training_loss}


def rates(each: list[float]) -> dict[str, Any]:
    """The median step counts: a machine is never quite quiet."""
    return {"real_tokens_per_s": statistics.median(each), "steps": [round(rate, 1) for rate in each]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="a checkpoint of the 164M shape")
    parser.add_argument("--peers", default=sys.executable, help="an interpreter that has the peers")
    parser.add_argument("--only", nargs="*", default=["ours", "ours-full", *PEERS])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--contestant")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}, beside what is in it")
    asked = parser.parse_args()
    if asked.contestant:
        print(json.dumps(contestant(asked.contestant, asked.folder, asked.steps)))
        return
    found = json.loads(RESULTS.read_text())["contestants"] if asked.save and RESULTS.exists() else {}
    for name in asked.only:
        steps = asked.steps * 3 if name.startswith("dynamic") else asked.steps  # its steps are short
        found[name] = measured(name, asked.folder, steps, asked.peers)
        speed, memory = found[name]["real_tokens_per_s"], found[name]["peak_gib"]
        print(f"{name:10} {speed:7.1f} real tokens/s, {memory:.2f} GiB", flush=True)
        if asked.save:
            RESULTS.write_text(json.dumps(summary(found), indent=1) + "\n")
    print(json.dumps(summary(found)))


def measured(name: str, folder: Path, steps: int, peers: str) -> dict[str, Any]:
    python = peers if name in PEERS else sys.executable
    command = [python, __file__, "--contestant", name, "--folder", str(folder), "--steps", str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ratios = {}
    for name in (name for name in PEERS if name in found):
        own = found.get("ours-full" if name == "full" else "ours")
        if own:
            ratios[name] = own["real_tokens_per_s"] / found[name]["real_tokens_per_s"]
    memory = {
        name: found[own]["peak_gib"] / found[name]["peak_gib"]
        for own, name in (
            ("ours", "padded"),
            ("ours", "padded-dropout"),
            ("ours", "packed"),
            ("ours-full", "full"),
        )
        if own in found and name in found
    }
    return {
        "contestants": found,
        "ratios": ratios,
        "memory": memory,
        "goals": GOALS,
        "settings": {
            "shape": "164m",
            "seq_length": SEQ,
            "batch_size": BATCH,
            "threads": THREADS,
            "large_pages": "ours, as `starcoder finetune` asks for them; not the peers, who do not",
        },
        "machine": {"num_cpus": os.cpu_count(), "cpu": platform.machine(), "torch": version("torch")},
    }


if __name__ == "__main__":
    main()
