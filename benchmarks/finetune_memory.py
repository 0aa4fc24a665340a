"""The planner of fine-tuning against measured steps: python benchmarks/finetune_memory.py --save

Protocol: random models of several shapes, float32 on a CPU, one thread. Each case runs in a process of its
own: the model and what learns are made as `starcoder finetune` makes them, a step of one micro-batch and one
of two of the loop's loss and optimizer over packed rows full of random tokens, and the process's peak (VmHWM)
against the plan's total. No checkpoint is written. The planner's constants were fitted without the cases
marked `unseen`. --only measures some cases, by their number; --save writes them beside those in the file.
Ends with one JSON line.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from starcoder.cli.large_pages import ask_for_large_pages
from starcoder.config import ModelConfig
from starcoder.train.memory import FinetunePlan, Setup, plan_finetune

RESULTS = Path(__file__).parent / "results" / "finetune_memory.json"
LIMIT = 0.1


@dataclass(frozen=True)
class Case:
    """A shape and a way to train it."""

    family: Literal["gpt_bigcode", "starcoder2"]
    hidden_size: int
    num_layers: int
    seq_length: int
    micro_batch: int
    method: Literal["full", "lora", "qlora"]
    recomputes: bool = False
    document: int = 0  # its tokens; 0: a row is one
    unseen: bool = False


CASES = (
    Case("gpt_bigcode", 768, 20, 512, 4, "lora"),
    Case("gpt_bigcode", 768, 20, 512, 4, "full"),
    Case("gpt_bigcode", 768, 20, 1024, 2, "lora", recomputes=True),
    Case("gpt_bigcode", 768, 20, 1024, 1, "qlora"),
    Case("gpt_bigcode", 1024, 8, 1024, 1, "full", recomputes=True),
    Case("starcoder2", 768, 12, 1024, 2, "lora"),
    Case("starcoder2", 768, 12, 1024, 1, "full"),
    Case("starcoder2", 1024, 10, 512, 2, "qlora"),
    Case("gpt_bigcode", 1536, 5, 768, 1, "lora", unseen=True),
    Case("starcoder2", 640, 12, 256, 5, "lora", document=64, unseen=True),
    Case("starcoder2", 1280, 4, 384, 2, "full", unseen=True),
    Case("gpt_bigcode", 640, 10, 1024, 1, "qlora", recomputes=True, unseen=True),
)


def shape(case: Case) -> ModelConfig:
    return ModelConfig(
        family=case.family,
        vocab_size=49152,
        hidden_size=case.hidden_size,
        intermediate_size=4 * case.hidden_size,
        num_layers=case.num_layers,
        num_heads=case.hidden_size // 64,
        num_kv_heads=1 if case.family == "gpt_bigcode" else 2,
        max_positions=2048,
        rope_theta=1e5 if case.family == "starcoder2" else None,
    )


def planned(case: Case) -> FinetunePlan:
    setup = Setup(
        method=case.method,
        seq_length=case.seq_length,
        micro_batch=case.micro_batch,
        precision="float32",
        recomputes=case.recomputes,
        on_gpu=False,
    )
    return plan_finetune(shape(case), setup)


def peak_bytes(case: Case) -> int:
    """Of the training process, which is this one."""
    ask_for_large_pages()
    import torch

    torch.set_num_threads(1)
    from starcoder.adapters.settings import AdapterSettings
    from starcoder.checkpoint.adapter import add_adapter
    from starcoder.model import Transformer
    from starcoder.quantize import quantize
    from starcoder.train import optimizer as optim
    from starcoder.train.allocator import trimming
    from starcoder.train.losses import sum_loss
    from starcoder.train.packing import stack
    from starcoder.train.recompute import recompute
    from starcoder.train.settings import OptimizerSettings

    model = Transformer(shape(case))
    model.initialize(torch.Generator().manual_seed(0))
    if case.method == "qlora":
        quantize(model, "int4", method="nearest")
    if case.method == "full":
        model.requires_grad_(True)
    else:
        add_adapter(model, AdapterSettings(rank=16))
    model.train()
    model.is_recomputed = case.recomputes
    length = case.document or case.seq_length
    size = case.micro_batch, case.seq_length // length, length + 1
    batch = stack(torch.randint(0, model.config.vocab_size, size).tolist(), case.seq_length, 0)
    optimizers = optim.build(model, OptimizerSettings())
    with recompute(model), trimming(model):
        for micro_batches in (1, 2):
            for _ in range(micro_batches):
                (sum_loss(model, batch) / batch.num_learned).backward()
            for one in optimizers:
                one.step()
                one.zero_grad(set_to_none=True)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def measured(case: Case) -> int:
    """As `peak_bytes`, of a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def summary(peaks: dict[Case, int]) -> dict[str, Any]:
    rows = []
    for case, peak in peaks.items():
        plan = planned(case)
        parts = {name: getattr(plan, name) for name in plan.__dataclass_fields__ if name != "setup"}
        error = plan.total_bytes / peak - 1
        sizes = {"plan_bytes": plan.total_bytes, "peak_bytes": peak, "error": error}
        rows.append({"case": asdict(case)} | sizes | {"parts": parts})
    worst = max(abs(row["error"]) for row in rows)
    machine = {"num_cpus": os.cpu_count(), "cpu": platform.machine(), "torch": version("torch")}
    return {"limit": LIMIT, "worst": worst, "machine": machine, "cases": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", help="JSON of one case, measured in this process")
    parser.add_argument("--only", nargs="*", type=int, default=range(len(CASES)), metavar="NUMBER")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}, beside what is in it")
    asked = parser.parse_args()
    if asked.case:
        print(peak_bytes(Case(**json.loads(asked.case))))
        return
    peaks: dict[Case, int] = {}
    if asked.save and RESULTS.exists():
        known = {Case(**row["case"]): row["peak_bytes"] for row in json.loads(RESULTS.read_text())["cases"]}
        peaks = {case: known[case] for case in CASES if case in known}
    for case in (CASES[number] for number in asked.only):
        peaks[case] = measured(case)
        plan, peak = planned(case).total_bytes / 1e6, peaks[case] / 1e6
        print(f"plan {plan:7,.0f} MB, peak {peak:7,.0f} MB, {plan / peak - 1:+.1%}  {case}", flush=True)
        if asked.save:
            RESULTS.write_text(json.dumps(summary(peaks), indent=1) + "\n")
    print(json.dumps(summary(peaks)))


if __name__ == "__main__":
    main()
