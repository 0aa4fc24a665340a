"""The planner of fine-tuning against measured steps: python benchmarks/finetune_memory.py --save

Protocol: random models of several shapes, float32 on a CPU, one thread. Each case runs in a process of its
own: the model and what learns are made as `starcoder finetune` makes them, two steps of the loop's loss and
optimizer over packed rows full of random tokens, and the process's peak (VmHWM) against the plan's total. No
checkpoint is written. Ends with one JSON line.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "finetune_memory.json"
LIMIT = 0.1

# family, hidden size, layers, tokens a row, rows at a time, method, recomputes
CASES: tuple[tuple[str, int, int, int, int, str, bool], ...] = (
    ("gpt_bigcode", 768, 20, 512, 4, "lora", False),
    ("gpt_bigcode", 768, 20, 512, 4, "full", False),
    ("gpt_bigcode", 768, 20, 1024, 2, "lora", True),
    ("gpt_bigcode", 768, 20, 1024, 1, "qlora", False),
    ("gpt_bigcode", 1024, 12, 1024, 2, "full", True),
    ("starcoder2", 768, 12, 1024, 2, "lora", False),
    ("starcoder2", 768, 12, 1024, 1, "full", False),
    ("starcoder2", 1024, 12, 512, 4, "qlora", False),
)


def measured(
    family: str, hidden: int, layers: int, seq: int, rows: int, method: str, recomputes: bool
) -> dict[str, Any]:
    """One case, in this process: bytes planned and seen."""
    import torch

    torch.set_num_threads(1)
    from starcoder.adapters import AdapterSettings
    from starcoder.checkpoint.adapting import add_adapter
    from starcoder.config import ModelConfig
    from starcoder.model import Transformer
    from starcoder.quantize import quantize
    from starcoder.train import optimizer as optim
    from starcoder.train.keeping import keeping
    from starcoder.train.losses import sum_loss
    from starcoder.train.memory import Setup, plan_finetune
    from starcoder.train.packing import stack

    config = ModelConfig(
        family=family,
        vocab_size=49152,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_layers=layers,
        num_heads=hidden // 64,
        num_kv_heads=1 if family == "gpt_bigcode" else 2,
        max_positions=2048,
        rope_theta=1e5 if family == "starcoder2" else None,
    )
    model = Transformer(config)
    model.initialize(torch.Generator().manual_seed(0))
    if method == "qlora":
        quantize(model, "int4", method="nearest")
    if method == "full":
        model.requires_grad_(True)
    else:
        add_adapter(model, AdapterSettings(rank=16))
    model.train()
    model.is_recomputed = recomputes
    tokens = torch.randint(0, config.vocab_size, (rows, seq + 1)).tolist()
    batch = stack([[row] for row in tokens], seq, 0)
    optimizers = optim.build(model, optim.OptimizerSettings())
    with keeping(model):
        for _ in range(2):
            (sum_loss(model, batch) / batch.num_learnt).backward()
            for one in optimizers:
                one.step()
                one.zero_grad(set_to_none=True)
    setup = Setup(
        method=method,
        seq_length=seq,
        micro_batch=rows,
        precision="float32",
        recomputes=recomputes,
        on_gpu=False,
    )
    planned = plan_finetune(config, setup)
    parts = {name: getattr(planned, name) for name in planned.__dataclass_fields__ if name != "setup"}
    return {"plan_bytes": planned.total_bytes, "peak_bytes": _peak_bytes(), "parts": parts}


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", help="JSON of one case, measured in this process")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    asked = parser.parse_args()
    if asked.case:
        with contextlib.redirect_stdout(sys.stderr):
            found = measured(*json.loads(asked.case))
        print(json.dumps(found))
        return
    rows = []
    for case in CASES:
        command = [sys.executable, __file__, "--case", json.dumps(case)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        error = found["plan_bytes"] / found["peak_bytes"] - 1
        rows.append({"case": list(case), "error": error} | found)
        planned, peak = found["plan_bytes"] / 1e6, found["peak_bytes"] / 1e6
        print(f"{case!s:62} plan {planned:7,.0f} MB, peak {peak:7,.0f} MB, {error:+.1%}", flush=True)
    report = {"limit": LIMIT, "worst": max(abs(row["error"]) for row in rows), "cases": rows}
    if asked.save:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
