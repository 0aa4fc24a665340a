"""Trains a tiny model as one of the processes that torchrun starts; what `test_distributed` runs.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/train/two_ranks.py '{"model": ...}'
"""

import json
import sys
from pathlib import Path

import torch
from rich.console import Console

from starcoder.adapters.settings import AdapterSettings
from starcoder.train import distributed
from starcoder.train.loop import LoopSettings, evaluate, train
from starcoder.train.packing import IGNORE, Batch, stack
from starcoder.train.progress import Progress
from starcoder.train.settings import OptimizerSettings

LENGTH = 24


class Stream:
    """Random documents with some tokens masked; every row another."""

    seq_length = LENGTH

    def __init__(self) -> None:
        self.row = 0

    def next_batch(self, rows: int, seq_length: int | None = None) -> Batch:
        generator = torch.Generator().manual_seed(self.row)
        self.row += rows
        made = [
            [torch.randint(1, 320, (n,), generator=generator).tolist() for n in (10, 8)] for _ in range(rows)
        ]
        batch = stack(made, LENGTH, 4)
        batch.labels_BT[: rows // 2, :5] = IGNORE  # processes learn of different numbers of tokens
        return batch

    def state(self) -> dict[str, int]:
        return {"row": self.row}

    def restore(self, state: dict[str, int]) -> None:
        self.row = state["row"]


LOOP = {"batch_size": 4, "micro_batch_size": 1, "save_every": 3, "eval_every": 100}
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, warmup_steps=1, clip_norm=0.5, schedule="constant")


def main(asked: dict) -> None:
    torch.set_num_threads(1)
    output = Path(asked["output"])
    with distributed.processes("cpu") as group:
        adapter = AdapterSettings(rank=4) if asked["method"] == "lora" else None
        model, added = distributed.build(
            asked["model"], group, adapter=adapter, sharding=asked["sharding"], offload=asked["offload"]
        )
        store = distributed.ShardedCheckpoints(output / "checkpoints", group)
        run = output if group.rank == 0 else output / f"rank{group.rank}"
        train(
            model,
            Stream(),
            LoopSettings(max_steps=asked["steps"], **LOOP),
            OPTIMIZER,
            run,
            progress=Progress(run, Console(quiet=True)),
            group=group,
            checkpoints=store,
        )
        loss = evaluate(model, [Stream().next_batch(8)])
        store.save_best(asked["steps"], loss, model)
        if added is None:
            distributed.save(model, output / "model", group)
        else:
            state = added.state()
            if group.rank == 0:
                torch.save(state, output / "adapter.pt")
        if group.rank == 0:
            held = sum(p.to_local().numel() for p in model.parameters())
            (output / "report.json").write_text(json.dumps({"loss": loss, "held": held, "size": group.size}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
