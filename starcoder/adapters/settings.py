"""Which adapter, on which layers, and how a file keeps those layers: values alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from starcoder.errors import ConfigError

if TYPE_CHECKING:  # the command line reads these settings, and must not wait for torch
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSettings:
    """Which adapter, and on what. `kind` is lora, dora, rslora, pissa, olora or a method of PEFT (loha, oft).

    `targets` are names of the file's layers or ends of them (q_proj, attn.c_proj); empty is every linear
    layer but the head. `tokens` are ids whose rows of embedding and head learn as well; the tables grow to
    those beyond them. What a kind has no word for (a rank, a dropout) is left out; `options` are PEFT's
    own words.
    """

    kind: str = field(default="lora", metadata={"flag": "adapter_kind"})
    """Kind of adapter: lora, dora, rslora, pissa, olora or a method of PEFT."""
    rank: int = 16
    """Rank of the adapter's matrices."""
    alpha: float = 32.0
    """Scale of the adapter: its output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of the adapter's inputs that are dropped at random; doubles what is kept for gradients."""
    targets: tuple[str, ...] = ()
    """Layers to adapt, by their names in transformers; by default all linear layers except the head."""
    tokens: tuple[int, ...] = ()
    seed: int = 0
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"an adapter's rank is {self.rank}; expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"an adapter's dropout is {self.dropout}; expected 0 to below 1")


@dataclass(frozen=True, slots=True)
class Parts:
    """How a file keeps one linear layer: layers `names` of `sizes` rows each, in this order.

    `order`, if the file's rows are not in ours: row i of the file is our row `order[i]`.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    order: tuple[int, ...] | None = None

    @property
    def is_whole(self) -> bool:
        return len(self.names) == 1 and self.order is None


Layout = Mapping[str, Parts]
"""Our path of each linear layer that can be adapted -> how the file keeps it."""


@runtime_checkable
class Selectable(Protocol):
    """A linear layer of another kind, such as a quantized one."""

    def select(self, rows: "Tensor") -> "nn.Module":
        """The layer of these output rows."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Our paths of embedding and head, and what a file calls them."""

    paths: tuple[str, str]
    names: tuple[str, str]
    is_tied: bool

    @property
    def learning(self) -> tuple[str, ...]:
        """Names of the tables that have rows of their own: of tied ones the embedding."""
        return self.names[:1] if self.is_tied else self.names


@runtime_checkable
class Dequantizable(Protocol):
    """A rounded table."""

    def dequantized(self) -> "Tensor":
        """The floats that it stands for."""
