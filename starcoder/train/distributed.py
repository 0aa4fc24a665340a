"""Several processes train one model: `torchrun` starts them, FSDP2 shards or replicates the weights.

`build` owns the order in which a model comes to be: processes, weights mapped from the files, adapter, then
sharding block by block, so that no process ever holds more than its share and one block. Not here: pipeline
and tensor parallelism. Rounded weights are replicated, not sharded.
Source: torch `distributed/fsdp/_fully_shard`.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from starcoder import checkpoint
from starcoder.adapters.adapter import Adapter
from starcoder.adapters.settings import AdapterSettings
from starcoder.errors import ConfigError
from starcoder.model import Transformer
from starcoder.quantize import Scheme
from starcoder.train.checkpoints import Checkpoints, Optimizers, trainable
from starcoder.train.resize_vocab import resize_vocab

log = logging.getLogger(__name__)

Sharding = Literal["full", "none"]
_TIMEOUT = timedelta(hours=24)  # a run that is paused (SIGSTOP) waits in a collective


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that `torchrun` started. A `loop.Group`."""

    rank: int
    size: int
    device: torch.device

    def total(self, value: float) -> float:
        """The sum of `value` over all processes."""
        tensor = torch.tensor(value, dtype=torch.float32 if self.device.type == "mps" else torch.float64)
        tensor = tensor.to(self.device)
        dist.all_reduce(tensor)
        return float(tensor)

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Nothing: FSDP2 has averaged the gradients in the backward pass."""

    def wait(self) -> None:
        """Until all are here."""
        dist.barrier()


class Replicas(Processes):
    """Processes that each hold a whole plain model, small enough for one sum of all gradients a step."""

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all processes."""
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([x.flatten() for x in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for x, mean in zip(gradients, torch.split(flat, [x.numel() for x in gradients]), strict=True):
            x.copy_(mean.view_as(x))


@contextmanager
def processes(device: str, kind: type[Processes] = Processes) -> Iterator[Processes]:
    """The group of this process, left at the end; each takes a GPU of its own where `device` is cuda.

    Raises:
        ConfigError: `torchrun` did not start this process.
    """
    if not dist.is_torchelastic_launched():
        raise ConfigError(
            "this process is not one of several",
            "start it as `torchrun --nproc_per_node 2 -m starcoder ...`",
        )
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        rank = dist.get_rank()
        own = (
            torch.device("cuda", rank % torch.cuda.device_count())
            if device == "cuda"
            else torch.device(device)
        )
        if own.type == "cuda":
            torch.cuda.set_device(own)
        yield kind(rank, dist.get_world_size(), own)
    finally:
        dist.destroy_process_group()


def build(
    model: str | Path,
    group: Processes,
    *,
    dtype: torch.dtype = torch.float32,
    vocab_size: int = 0,
    adapter: AdapterSettings | None = None,
    quantize: Scheme | None = None,
    sharding: Sharding = "full",
    offload: bool = False,
) -> tuple[Transformer, Adapter | None]:
    """The model, frozen below `adapter` or learning in full, spread over `group`.

    `sharding` full gives every process a share of weights, gradients and optimizer state (ZeRO-3's); none
    gives each all of them (data parallel). `offload` keeps shares in the CPU's memory between uses. A model
    that learns in full grows to `vocab_size` tokens if it has fewer.

    Raises:
        ConfigError: rounded weights were to be sharded or to learn.
        CheckpointError: as `checkpoint.load`.
    """
    if quantize is not None and sharding == "full":
        raise ConfigError(
            "rounded weights are not sharded", "choose sharding none, or lora in place of qlora"
        )
    if quantize is not None and adapter is None:
        raise ConfigError("rounded weights do not learn", "train an adapter on them")
    # In the dtype of the files nothing is read yet: pages of the map become memory where they are used.
    network = checkpoint.load(model, quantize=quantize)
    added = None if adapter is None else checkpoint.add_adapter(network, adapter)
    if adapter is None:
        resize_vocab(network, vocab_size)
        network.requires_grad_(True)
    _shard(network, group, dtype, sharding, offload=offload)
    log.info("rank %d of %d holds its share", group.rank, group.size)
    return network, added


def _shard(
    network: Transformer, group: Processes, dtype: torch.dtype, sharding: Sharding, *, offload: bool
) -> None:
    kind = group.device.type
    shape = {"shard": group.size} if sharding == "full" else {"replicate": group.size, "shard": 1}
    mesh = init_device_mesh(kind, tuple(shape.values()), mesh_dim_names=tuple(shape))
    policy = CPUOffloadPolicy(pin_memory=kind == "cuda") if offload else OffloadPolicy()
    for module in (*network.blocks, network):
        for parameter in module.parameters():
            if isinstance(parameter, DTensor):  # of the blocks that went before: in shares already
                continue
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
        fully_shard(module, mesh=mesh, offload_policy=policy)


def settle(model: nn.Module) -> None:
    """Take back to shares what a pass without gradients left whole.

    Until then `parameters` gives whole copies, which an optimizer would hold and never change.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def gathered(model: nn.Module, names: Sequence[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters by name, one at a time, on the CPU; every process has to go through all of them."""
    for name, parameter in model.named_parameters():
        if names is None or name in names:
            tensor = parameter.detach()
            yield name, (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu()


def save(network: Transformer, folder: Path, group: Processes) -> None:
    """Write the sharded model as `checkpoint.save` does; the first process gathers it whole and writes."""
    whole = dict(gathered(network))
    if group.rank == 0:
        with torch.device("meta"):
            copy = Transformer(network.config)
        state = whole | ({"head.weight": whole["embed.weight"]} if network.config.tied_embeddings else {})
        copy.load_state_dict(state, assign=True)
        copy.tie()
        checkpoint.save(copy, folder)
    group.wait()


class ReplicatedCheckpoints(Checkpoints):
    """Checkpoints of a model that every process holds whole: the first one writes, all read."""

    def __init__(self, folder: Path, group: Processes, *, keep: int = 2):
        super().__init__(folder, keep=keep)
        self.group = group

    def _write(self, path: Path, model: nn.Module, optimizers: Optimizers, extra: dict[str, Any]) -> None:
        if self.group.rank == 0:
            super()._write(path, model, optimizers, extra)
        self.group.wait()

    def _rotate(self) -> None:
        if self.group.rank == 0:
            super()._rotate()


class ShardedCheckpoints(Checkpoints):
    """Checkpoints that every process writes its shares of; any number of processes can go on from them."""

    def __init__(self, folder: Path, group: Processes, *, keep: int = 2):
        super().__init__(folder, keep=keep)
        self.group = group

    def _rotate(self) -> None:
        if self.group.rank == 0:
            super()._rotate()
        self.group.wait()

    def _path(self, name: str) -> Path:
        return self.folder / name

    def _write(self, path: Path, model: nn.Module, optimizers: Optimizers, extra: dict[str, Any]) -> None:
        partial = path.with_name(path.name + ".partial")
        if self.group.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        self.group.wait()
        state_dict_saver.save(_shares(model, optimizers), checkpoint_id=partial)
        if self.group.rank == 0:
            torch.save(extra, partial / "run.pt")
            shutil.rmtree(path, ignore_errors=True)
            partial.rename(path)
        self.group.wait()

    def _read(self, path: Path, model: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
        _fill_optimizers(optimizers)
        try:
            state_dict_loader.load(_shares(model, optimizers), checkpoint_id=path)
            extra: dict[str, Any] = torch.load(path / "run.pt", weights_only=True)
        except (OSError, CheckpointException) as error:  # a file or a part of it that is not there
            raise RuntimeError(str(error)) from None
        return extra


def _shares(model: nn.Module, optimizers: Optimizers) -> dict[str, Any]:
    """This process's shares of both, by the names of parameters: these do not depend on how many share."""
    settle(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return {f"model.{name}": x for name, x in trainable(model).items()} | {
        f"optimizer{number}.{name}.{key}": value
        for number, optimizer in enumerate(optimizers)
        for name, p in named
        if p in optimizer.state
        for key, value in optimizer.state[p].items()
    }


def _fill_optimizers(optimizers: Optimizers) -> None:
    """Make the state that a first step makes, changing no weight."""
    for optimizer in optimizers:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()
        optimizer.zero_grad()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
